"""Steps that are not finite, and runs that a signal stops."""

import json
import math
import os
import signal

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import RunError, Stopped
from pipeline.manifest import MANIFEST_FILE, describe, to_json
from pipeline.run import train
from pipeline.training.checkpoints import find_last_good
from pipeline.training.step_guard import MAX_NOT_FINITE, StepGuard
from pipeline.training.trainer import TeacherForcingTrainer
from tests.conftest import write_config
from tests.training.conftest import LONG, assert_equal, history, output_dir, spoil, spoil_gradient, weights


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_and_saves(make_config, reference, at_step, number):
    """In step 3, where no checkpoint is due; the signal is received twice, as under torchrun."""

    def receive_twice(_) -> None:
        for _ in range(2):
            os.kill(os.getpid(), number)

    at_step(receive_twice, 3)
    config = make_config(training=LONG)
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="stopped and saved after step 3; the same command goes on from there"):
        train(config)
    assert signal.getsignal(number) == before
    folder = train(config).output_dir  # counts its own forward passes on, so is not stopped again
    assert_equal(folder, reference)
    assert [log["step"] for log in history(folder, 8) if "loss" in log] == list(range(1, 9))


def test_nothing_runs_after_a_stop(make_config, at_step, monkeypatch):
    """Neither evaluation at a pass that has not ended, nor the loading of the best model, nor a result."""
    at_step(lambda _: os.kill(os.getpid(), signal.SIGTERM), 5)
    training = {"max_steps": 12, "eval_strategy": "epoch", "save_strategy": "epoch", "metric_for_best_model": "loss"}
    config = make_config(training={**training, "load_best_model_at_end": True})
    for name in ("evaluate", "score"):
        monkeypatch.setattr(TeacherForcingTrainer, name, lambda *_, **__: pytest.fail("evaluated"))
    with pytest.raises(Stopped):
        train(config)
    names = {path.name for path in output_dir(config).iterdir()}
    assert "checkpoint-5" in names and not {"metrics.json", "model.safetensors"} & names


def test_patience_outlasts_a_stop(make_config, at_step, tmp_path):
    """Early stopping counts on over a resume."""
    training = {"learning_rate": 3.0, "max_steps": 40, "load_best_model_at_end": True, "metric_for_best_model": "loss"}
    changes = {"evaluation": {"early_stopping_patience": 3}}

    def last_step(folder):
        return max(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))

    whole = train(make_config(training={**training, "output_dir": str(tmp_path / "whole")}, **changes)).output_dir
    at_step(lambda _: os.kill(os.getpid(), signal.SIGTERM), last_step(whole) - 1)
    config = make_config(training=training, **changes)
    with pytest.raises(Stopped):
        train(config)
    assert last_step(train(config).output_dir) == last_step(whole)


@pytest.mark.parametrize("harm", [spoil, spoil_gradient])
def test_a_step_that_is_not_finite_changes_nothing(make_config, at_step, harm):
    """Step 3 of 4 leaves weights and moments as step 2 did; it is counted, and its loss is not in the mean."""
    at_step(harm, 3)
    training = {**LONG, "max_steps": 4, "save_steps": 1, "logging_steps": 1, "max_grad_norm": 0.0}
    result = train(make_config(training=training))
    assert result.scores["training"]["skipped_steps"] == 1
    before, after = (weights(result.output_dir / f"checkpoint-{step}") for step in (2, 4))
    assert not (result.output_dir / "checkpoint-3").exists()  # not to be gone back to
    logs = [log for log in history(result.output_dir, 4) if "loss" in log]
    assert math.isnan(logs[2]["loss"]) and logs[3]["skipped_steps"] == 1
    assert all(math.isfinite(logs[index]["loss"]) and logs[index]["loss"] > 0 for index in (0, 1, 3))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(tensor.isfinite().all() for tensor in after.values())


def test_a_skipped_step_is_no_step_for_the_optimizer(make_config, at_step):
    """Step 2 of 2 is skipped: the weights at the end are those after step 1, which Adam's moments would have moved."""
    at_step(spoil, 2)
    training = {**LONG, "max_steps": 2, "save_steps": 1, "lr_scheduler_type": "constant"}
    folder = train(make_config(training=training)).output_dir
    assert_equal(folder, weights(folder / "checkpoint-1"))


def test_many_such_steps_lead_back_to_the_checkpoint(make_config, at_step, caplog, monkeypatch):
    """Steps 5 to 14 are spoiled: back to checkpoint-4 with its weights and moments, and on with the rows behind."""
    original = TeacherForcingTrainer.go_back_to
    restored: list[tuple[dict[str, torch.Tensor], list[torch.Tensor]]] = []

    def go_back_to(self, checkpoint):
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(1.0)
                self.optimizer.state[parameter]["exp_avg"].add_(1.0)
        original(self, checkpoint)
        tensors = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        moments = [state["exp_avg"].clone() for state in self.optimizer.state_dict()["state"].values()]
        restored.append((tensors, moments))

    monkeypatch.setattr(TeacherForcingTrainer, "go_back_to", go_back_to)
    at_step(spoil, *range(5, 5 + MAX_NOT_FINITE))
    result = train(make_config(training={**LONG, "save_steps": 2, "max_steps": 16}))
    assert "going back to" in caplog.text and "checkpoint-4" in caplog.text
    assert result.scores["training"]["skipped_steps"] == MAX_NOT_FINITE
    assert [log["step"] for log in history(result.output_dir, 16) if "loss" in log] == list(range(1, 17))
    state = json.loads((result.output_dir / "checkpoint-16" / "run_state.json").read_text())
    assert state["data"]["next_batch"] == 16 + MAX_NOT_FINITE
    ((tensors, moments),) = restored
    for name, tensor in weights(result.output_dir / "checkpoint-4").items():
        assert torch.equal(tensors[name], tensor), name
    saved = torch.load(result.output_dir / "checkpoint-4" / "optimizer.pt")["state"]
    assert len(moments) == len(saved)
    for moment, parameter in zip(moments, saved.values(), strict=True):
        assert torch.equal(moment, parameter["exp_avg"])


def test_for_ever_not_finite_is_the_end(make_config, at_step):
    at_step(spoil, *range(5, 1000))
    config = make_config(training={**LONG, "save_steps": 2, "max_steps": 40})
    with pytest.raises(RunError, match=r"not finite in 10 steps in a row, after going on from .*checkpoint-4"):
        train(config)
    assert not (output_dir(config) / "metrics.json").exists()


def test_not_finite_from_the_start_is_the_end(make_config, at_step):
    at_step(spoil, *range(1, 1000))
    with pytest.raises(RunError, match="in a row, with no checkpoint to go back to; lower"):
        train(make_config(training={**LONG, "max_steps": 40}))


@pytest.mark.parametrize("rate, problem", [(1e6, "loss on validation is nan"), (1e38, "the weights are not finite")])
def test_a_run_that_diverged_has_not_finished(make_config, command, tmp_path, rate, problem):
    """In fewer steps than lead back to a checkpoint: exit code 3, and no model where a finished one would lie."""
    training = {"learning_rate": rate, "max_steps": 3, "eval_strategy": "no", "save_strategy": "no"}
    done = command("train", write_config(make_config, tmp_path / "run.yaml", training=training))
    assert done.returncode == 3
    message = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert f"the run diverged: {problem}" in message and "there is no good checkpoint; lower training" in message
    assert not {"metrics.json", "model.safetensors"} & {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_without_validation_that_diverged_has_not_finished(make_config, steps):
    """The first step spoils the weights, which stay finite; the others are skipped."""
    training = {"learning_rate": 1e6, "max_steps": steps, "eval_strategy": "no", "save_strategy": "no"}
    config = make_config(data={"validation": None, "test": None}, training=training)
    with pytest.raises(RunError, match="the run diverged: no loss of the last batches is finite"):
        train(config)
    assert not (output_dir(config) / "metrics.json").exists()


def test_no_step_that_counts_is_divergence(tmp_path):
    guard, model = StepGuard(None, torch.device("cpu")), nn.Linear(2, 2)
    for step in (1, 2):
        guard.check_step(model, math.nan, step)
    with pytest.raises(RunError, match="diverged: no step had a finite loss and gradient"):
        guard.refuse_divergence(model, tmp_path, 2)
    guard.check_step(model, 1.0, 3)
    guard.check_step(model, math.nan, 4)
    guard.refuse_divergence(model, tmp_path, 4)


def test_weights_that_are_not_finite_are_not_saved(make_config, monkeypatch, caplog):
    monkeypatch.setattr("pipeline.training.trainer.has_finite_weights", lambda model: False)
    folder = train(make_config(training={**LONG, "max_steps": 2})).output_dir
    assert not list(folder.glob("checkpoint-*")) and "step 2: the weights are not finite" in caplog.text


def test_the_last_good_checkpoint_is_named(unfinished):
    """Eight has a weight that is not finite, six a loss."""
    newest = unfinished / "checkpoint-8"
    spoiled = weights(newest)
    next(iter(spoiled.values())).fill_(math.inf)
    save_file(spoiled, newest / "model.safetensors")
    state = json.loads((unfinished / "checkpoint-6" / "trainer_state.json").read_text())
    state["log_history"][-1]["loss"] = math.nan
    (unfinished / "checkpoint-6" / "trainer_state.json").write_text(json.dumps(state))
    for checkpoint in (newest, unfinished / "checkpoint-6"):
        files = [path for path in checkpoint.iterdir() if path.name != MANIFEST_FILE]
        (checkpoint / MANIFEST_FILE).write_text(to_json(describe(checkpoint, files)))
    assert find_last_good(unfinished) == unfinished / "checkpoint-4"


def test_a_checkpoint_of_weights_that_are_not_finite_is_refused(make_config, unfinished):
    newest = unfinished / "checkpoint-8"
    spoiled = weights(newest)
    next(iter(spoiled.values())).fill_(math.nan)
    save_file(spoiled, newest / "model.safetensors")
    files = [path for path in newest.iterdir() if path.name != MANIFEST_FILE]
    (newest / MANIFEST_FILE).write_text(to_json(describe(newest, files)))
    with pytest.raises(RunError, match=r"checkpoint-8 has weights that are not finite: .*; name an earlier"):
        train(make_config(training=LONG))
