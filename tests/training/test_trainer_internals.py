"""What this project expects of private names of transformers and accelerate, held against the installed versions.

A library may rename or drop a private name in any release. An override of the old name is then never called, and
nothing fails. So each name is in a table here with its parameters, and each override must be called in a short run.
"""

import ast
import inspect
import os
import signal
from collections import Counter

import pytest
import torch
import transformers.trainer
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import fsdp_utils
from accelerate.utils.constants import FSDP_MODEL_NAME
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from transformers import AutoModelForSeq2SeqLM, MarianConfig, PreTrainedModel, Seq2SeqTrainer, Trainer
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.trainer_callback import DefaultFlowCallback, ExportableState

from pipeline.decoding.search import beam_search, greedy_search
from pipeline.errors import Stopped
from pipeline.models.configuration_lstm import LSTMConfig
from pipeline.models.modeling_lstm import LSTMForCausalLM
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration
from pipeline.run import train
from pipeline.signals import is_launched_by_accelerate
from pipeline.training import trainer_internals
from pipeline.training.trainer import TeacherForcingTrainer
from pipeline.training.trainer_internals import TrainerInternals
from tests.conftest import ROOT

RESUME = "num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial"
EPOCH = "epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial ignore_keys_for_eval start_time"
CALLABLES = [
    # Overridden by TrainerInternals.
    (Trainer, "_init_training_state", f"max_steps {RESUME}"),
    (Trainer, "_run_epoch", f"model {EPOCH} resume_from_checkpoint epochs_trained steps_trained_in_current_epoch"),
    (Trainer, "_get_num_items_in_batch", "batch_samples device"),
    (Trainer, "_get_grad_norm", "model grad_norm"),
    (Trainer, "_save_checkpoint", "model trial"),
    (Trainer, "_load_best_model", ""),
    (Trainer, "_load_from_checkpoint", "resume_from_checkpoint model"),
    (Trainer, "_save", "output_dir state_dict"),
    (Trainer, "save_model", "output_dir _internal_call"),
    # Called by TrainerInternals.
    (Trainer, "_save_optimizer_and_scheduler", "output_dir"),
    (Trainer, "_save_scaler", "output_dir"),
    (Trainer, "_save_rng_state", "output_dir"),
    (Trainer, "_load_optimizer_and_scheduler", "checkpoint"),
    (Trainer, "_load_scaler", "checkpoint"),
    (ExportableState, "state", ""),
    (DefaultFlowCallback, "on_epoch_end", "args state control kwargs"),
    # Public methods that TeacherForcingTrainer overrides.
    (Trainer, "get_train_dataloader", ""),
    (Trainer, "compute_loss", "model inputs return_outputs num_items_in_batch"),
    (Trainer, "training_step", "model inputs num_items_in_batch"),
    (Trainer, "log", "logs start_time"),
    (Seq2SeqTrainer, "evaluate", "eval_dataset ignore_keys metric_key_prefix gen_kwargs"),
    # Overridden or called by the models and the search.
    (GenerationMixin, "_expand_inputs_for_generation", "expand_size is_encoder_decoder input_ids model_kwargs"),
    (GenerationMixin, "_supports_default_dynamic_cache", ""),
    (PreTrainedModel, "_init_weights", "module"),
    (EncoderDecoderCache, "batch_select_indices", "indices"),
    (DynamicCache, "batch_select_indices", "indices"),
    (DynamicCache, "reorder_cache", "beam_idx"),
]  # fmt: skip
CLASS_ATTRIBUTES = [
    (AutoModelForSeq2SeqLM, "_model_mapping"),
    (PreTrainedModel, "_auto_class"),
    (PreTrainedModel, "_can_record_outputs"),
    (PreTrainedModel, "_keys_to_ignore_on_save"),
    (PreTrainedModel, "_no_split_modules"),
    (PreTrainedModel, "_supports_flash_attn"),
    (PreTrainedModel, "_supports_flex_attn"),
    (PreTrainedModel, "_supports_sdpa"),
    (PreTrainedModel, "_tied_weights_keys"),
]
TRAINER_ATTRIBUTES = ["_tr_loss", "_globalstep_last_logged", "model_accepts_loss_kwargs", "compute_loss_func"]


def what_changed(owner: type, name: str, parameters: str) -> str | None:
    """Say how a method is not as expected; None where it is."""
    method = getattr(owner, name, None)
    if method is None:
        return f"{owner.__name__}.{name} is gone"
    now = " ".join(name for name in inspect.signature(method).parameters if name != "self")  # static in some versions
    return None if now == parameters else f"{owner.__name__}.{name} takes {now!r}, not {parameters!r}"


def attributes_of_self(module) -> set[str]:
    """Names that the code of a module reads or sets on `self` or calls on `super()`."""
    names = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Attribute):
            owner = node.value.func if isinstance(node.value, ast.Call) else node.value
            if isinstance(owner, ast.Name) and owner.id in ("self", "super"):
                names.add(node.attr)
    return names


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


TRAINER_NAMES = {*dir(Seq2SeqTrainer)} | attributes_of_self(transformers.trainer)


def overrides(cls: type, base: type) -> set[str]:
    """Return the methods of `base` that a class defines anew, itself or in its bases of this project."""
    ours = [owner for owner in cls.__mro__ if owner.__module__.startswith("pipeline")]
    methods = {
        name
        for owner in ours
        for name, value in vars(owner).items()
        if inspect.isfunction(value) or isinstance(value, classmethod)
    }
    return {name for name in methods if hasattr(base, name) and not name.startswith("__")}


def record_calls(monkeypatch, cls: type, names: set[str]) -> Counter:
    """Count the calls of methods of a class."""
    calls: Counter = Counter()

    def counted(name: str, method):
        def call(*args, **kwargs):
            calls[name] += 1
            return method(*args, **kwargs)

        return call

    for name in names:
        value = inspect.getattr_static(cls, name)
        method = value.__func__ if isinstance(value, classmethod) else value
        wrapped = counted(name, method)
        monkeypatch.setattr(cls, name, classmethod(wrapped) if isinstance(value, classmethod) else wrapped)
    return calls


@pytest.mark.parametrize("owner, name, parameters", CALLABLES, ids=[f"{o.__name__}.{name}" for o, name, _ in CALLABLES])
def test_a_method_is_as_expected(owner, name, parameters):
    assert what_changed(owner, name, parameters) is None


def test_a_change_is_noticed():
    """The check itself: a made-up name, and a made-up parameter."""
    assert what_changed(Trainer, "_made_up", "") == "Trainer._made_up is gone"
    assert what_changed(Trainer, "_load_best_model", "made_up") == ("Trainer._load_best_model takes '', not 'made_up'")


@pytest.mark.parametrize("owner, name", CLASS_ATTRIBUTES, ids=[name for _, name in CLASS_ATTRIBUTES])
def test_an_attribute_is_there(owner, name):
    assert hasattr(owner, name)


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


def test_each_override_of_generation_is_called(make_model, batch, monkeypatch):
    """In transformers' own beam search; a made-up one beside them is not."""
    for cls in (GenerationMixin, Seq2SeqTransformerForConditionalGeneration):
        monkeypatch.setattr(cls, "_made_up", lambda self: None, raising=False)
    names = overrides(Seq2SeqTransformerForConditionalGeneration, GenerationMixin) - {"_init_weights"}
    assert names >= {"_expand_inputs_for_generation", "generate", "_made_up"}
    names.add("_reorder_cache")  # which a model may have, and GenerationMixin has not
    calls = record_calls(monkeypatch, Seq2SeqTransformerForConditionalGeneration, names)
    model = make_model()
    model.generate(batch["input_ids"], num_beams=2, max_new_tokens=4)
    assert names - {*calls} == {"_made_up"}


def test_the_cache_of_the_lstm_is_its_own(monkeypatch):
    calls = record_calls(monkeypatch, LSTMForCausalLM, {"_supports_default_dynamic_cache", "_init_weights"})
    model = LSTMForCausalLM(LSTMConfig(vocab_size=9, embedding_size=4, hidden_size=4)).eval()
    model.generate(torch.ones(1, 2, dtype=torch.long), max_new_tokens=2)
    assert {*calls} == {"_supports_default_dynamic_cache", "_init_weights"}


@pytest.mark.parametrize("search, beams", [(greedy_search, 1), (beam_search, 2)])
def test_a_search_of_ones_own_gets_what_it_needs(make_model, batch, search, beams):
    """`generate` calls a callable `custom_generate` with what it prepared, and returns what that returns."""
    received = {}

    def custom(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        received.update(kwargs)
        return search(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)

    model = make_model()
    options = {"num_beams": beams, "max_new_tokens": 4}
    ids = model.generate(batch["input_ids"], custom_generate=custom, **options)
    assert torch.equal(ids, model.generate(batch["input_ids"], **options))
    assert len(received["encoder_outputs"].last_hidden_state) == len(received["attention_mask"]) == 2
    cache = received["past_key_values"]
    assert isinstance(cache, EncoderDecoderCache)
    assert cache.is_updated == {0: True, 1: True}
    assert {tensor.shape[1:] for tensor in (cache.cross_attention_cache.layers[0].keys,
            cache.cross_attention_cache.layers[1].values)} == {(4, 6, 4)}  # fmt: skip


def test_the_kernel_is_in_the_config(make_model):
    model = make_model()
    for kernel in ("eager", "sdpa"):
        model.set_attn_implementation(kernel)
        assert model.config._attn_implementation == model.decoder.config._attn_implementation == kernel


def test_auto_classes():
    assert MarianConfig in AutoModelForSeq2SeqLM._model_mapping
    assert LSTMConfig not in AutoModelForSeq2SeqLM._model_mapping
    assert Seq2SeqTransformerForConditionalGeneration._auto_class == "AutoModelForSeq2SeqLM"
    assert PreTrainedModel._auto_class is None


def test_fsdp_saves_the_weights_a_second_time_under_this_name():
    """Which `save_training_state` removes, as model.safetensors has them."""
    assert FSDP_MODEL_NAME == "pytorch_model_fsdp"
    assert 'f"{FSDP_MODEL_NAME}.bin"' in inspect.getsource(fsdp_utils.save_fsdp_model)


@pytest.mark.parametrize("options", [[], ["--num_processes", "2", "--multi_gpu"]])
def test_accelerate_launch_sets_the_variable_it_is_known_by(monkeypatch, options):
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args([*options, "script.py"]))
    environment = prepare_multi_gpu_env(arguments) if options else prepare_simple_launcher_cmd_env(arguments)[1]
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert not is_launched_by_accelerate()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", environment["ACCELERATE_MIXED_PRECISION"])
    assert is_launched_by_accelerate()
