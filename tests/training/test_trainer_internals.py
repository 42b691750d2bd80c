"""What this project expects of private names of Trainer, held against the installed version.

transformers may rename or drop a private name in any release. An override of the old name is then never called, and
nothing fails. So each name is in a table here with its parameters, and each override must be called in a short run.
tests/test_private_names.py has the names of models, generation and accelerate.
"""

import ast
import inspect
import os
import signal

import pytest
import transformers.trainer
from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer_callback import DefaultFlowCallback, ExportableState

from pipeline.errors import Stopped
from pipeline.run import train
from pipeline.training import trainer_internals
from pipeline.training.trainer import TeacherForcingTrainer
from pipeline.training.trainer_internals import TrainerInternals
from tests.conftest import ROOT
from tests.upstream import is_private, overrides, record_calls, what_changed

RESUME = "num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial"
EPOCH = "epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial ignore_keys_for_eval start_time"
CALLABLES = [
    # Overridden by TrainerInternals.
    (Trainer, "_init_training_state", f"max_steps {RESUME}"),
    (Trainer, "_run_epoch", f"model {EPOCH} resume_from_checkpoint epochs_trained steps_trained_in_current_epoch"),
    (Trainer, "get_batch_samples", "epoch_iterator num_batches device"),
    (Trainer, "_get_num_items_in_batch", "batch_samples device"),
    (Trainer, "_get_grad_norm", "model grad_norm"),
    (Trainer, "_save_checkpoint", "model trial"),
    (Trainer, "_finalize_training", "trial num_train_samples start_time"),
    (Trainer, "_load_best_model", ""),
    (Trainer, "_load_from_checkpoint", "resume_from_checkpoint model"),
    (Trainer, "_issue_warnings_after_load", "load_result"),
    (Trainer, "_load_callback_state", ""),
    (Trainer, "_load_optimizer_and_scheduler", "checkpoint"),
    (Trainer, "_load_scaler", "checkpoint"),
    (Trainer, "_save", "output_dir state_dict"),
    (Trainer, "save_model", "output_dir _internal_call"),
    # Called by TrainerInternals.
    (Trainer, "_save_optimizer_and_scheduler", "output_dir"),
    (Trainer, "_save_scaler", "output_dir"),
    (Trainer, "_save_rng_state", "output_dir"),
    (ExportableState, "state", ""),
    (DefaultFlowCallback, "on_epoch_end", "args state control kwargs"),
    # Public methods that TeacherForcingTrainer overrides.
    (Trainer, "get_train_dataloader", ""),
    (Trainer, "compute_loss", "model inputs return_outputs num_items_in_batch"),
    (Trainer, "training_step", "model inputs num_items_in_batch"),
    (Trainer, "log", "logs start_time"),
    (Seq2SeqTrainer, "evaluate", "eval_dataset ignore_keys metric_key_prefix gen_kwargs"),
]  # fmt: skip
TRAINER_ATTRIBUTES = ["_tr_loss", "_globalstep_last_logged", "model_accepts_loss_kwargs", "compute_loss_func"]


def attributes_of_self(module) -> set[str]:
    """Names that the code of a module reads or sets on `self` or calls on `super()`."""
    names = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Attribute):
            owner = node.value.func if isinstance(node.value, ast.Call) else node.value
            if isinstance(owner, ast.Name) and owner.id in ("self", "super"):
                names.add(node.attr)
    return names


TRAINER_NAMES = {*dir(Seq2SeqTrainer)} | attributes_of_self(transformers.trainer)


@pytest.mark.parametrize("owner, name, parameters", CALLABLES, ids=[f"{o.__name__}.{name}" for o, name, _ in CALLABLES])
def test_a_method_is_as_expected(owner, name, parameters):
    assert what_changed(owner, name, parameters) is None


def test_a_change_is_noticed():
    """The check itself: a made-up name, and a made-up parameter."""
    assert what_changed(Trainer, "_made_up", "") == "Trainer._made_up is gone"
    assert what_changed(Trainer, "_load_best_model", "made_up") == ("Trainer._load_best_model takes '', not 'made_up'")


@pytest.mark.parametrize("name", TRAINER_ATTRIBUTES)
def test_trainer_has_an_attribute(name):
    """To set one that Trainer does not know would change nothing."""
    assert name in TRAINER_NAMES and "_made_up" not in TRAINER_NAMES


def test_every_private_name_is_in_the_table():
    """Also of methods to come: what trainer_internals.py overrides or uses has its line above."""
    known = {name for owner, name, _ in CALLABLES if owner is Trainer} | {*TRAINER_ATTRIBUTES}
    used = attributes_of_self(trainer_internals) | overrides(TrainerInternals, Trainer)
    private = {name for name in used if is_private(name)}
    assert private <= known and len(private) > 10
    assert private <= TRAINER_NAMES, "a private name of our own, or one that Trainer does not have"
    assert overrides(TeacherForcingTrainer, Trainer) <= known | {name for _, name, _ in CALLABLES} | {"train"}


def test_no_other_file_knows_private_names_of_trainer():
    """Neither do attributes of our own classes hide one of Trainer's."""
    names = {name for name in TRAINER_NAMES if is_private(name)}
    for path in [*(ROOT / "pipeline" / "training").glob("*.py"), ROOT / "pipeline" / "run.py"]:
        if path.name == "trainer_internals.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", None) or getattr(node, "arg", None) or getattr(node, "name", None)
            assert name not in names | {"_internal_call"}, f"{path.name}: {name}"


def two_steps(make_config, at_step) -> None:
    """Run two steps, stopped after the first and taken up again, with the best model loaded at the end."""
    at_step(lambda _: os.kill(os.getpid(), signal.SIGTERM), 1)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    config = make_config(training={"max_steps": 2, "eval_steps": 1, "save_steps": 1, "logging_steps": 1, **best})
    with pytest.raises(Stopped):
        train(config)
    train(config)


def test_each_override_is_called(make_config, at_step, monkeypatch):
    """In a run of two steps; a made-up one beside them is not."""
    monkeypatch.setattr(Trainer, "_made_up", lambda self: None, raising=False)
    monkeypatch.setattr(TrainerInternals, "_made_up", lambda self: None, raising=False)
    names = overrides(TeacherForcingTrainer, Trainer)
    assert {"_save_checkpoint", "_get_grad_norm", "compute_loss", "_made_up"} <= names
    calls = record_calls(monkeypatch, TeacherForcingTrainer, names)
    two_steps(make_config, at_step)
    assert names - {*calls} == {"_made_up"}
