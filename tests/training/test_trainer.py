"""What happens to a run when something goes wrong in the middle of it."""

import json
import logging
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState

from pipeline.errors import DataError, RunError, Stopped
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration as Model
from pipeline.run import run
from pipeline.training.checkpoints import list_checkpoints
from pipeline.training.trainer import MAX_NOT_FINITE, TeacherForcingTrainer
from tests.conftest import ROOT

LONG = {"max_steps": 8, "eval_strategy": "no", "logging_steps": 1}


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def output_dir(config) -> Path:
    return Path(config.training["output_dir"])


def assert_equal(folder, expected) -> None:
    for name, tensor in weights(folder).items():
        assert torch.equal(tensor, expected[name]), name


def history(folder, step: int) -> list[dict]:
    return TrainerState.load_from_json(folder / f"checkpoint-{step}" / "trainer_state.json").log_history


@pytest.fixture
def at_step(monkeypatch):
    """Runs an action in the forward pass of chosen steps, counted from 1 over the life of the model class."""

    def make(action, *steps):
        original, calls = Model.forward, []

        def forward(self, *args, **kwargs):
            output = original(self, *args, **kwargs)
            if self.training:
                calls.append(None)
                if len(calls) in steps:
                    action(output)
            return output

        monkeypatch.setattr(Model, "forward", forward)

    return make


def spoil(output) -> None:
    output.loss = output.loss * math.nan


def spoil_gradient(output) -> None:
    output.loss.register_hook(lambda gradient: gradient * math.inf)


@pytest.fixture
def reference(make_config, tmp_path):
    """The final weights of a run of eight steps that nothing disturbs."""
    return weights(run(make_config(training={**LONG, "output_dir": str(tmp_path / "undisturbed")})).output_dir)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_and_saves(make_config, reference, at_step, number):
    """In step 3, where no checkpoint is due; the signal is received twice, as under torchrun."""
    at_step(lambda _: [os.kill(os.getpid(), number) for _ in range(2)], 3)
    config = make_config(training=LONG)
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="stopped and saved after step 3; the same command goes on from there"):
        run(config)
    assert signal.getsignal(number) == before
    folder = run(config).output_dir  # counts its own forward passes on, so is not stopped again
    assert_equal(folder, reference)
    assert [entry["step"] for entry in history(folder, 8) if "loss" in entry] == list(range(1, 9))


def test_nothing_runs_after_a_stop(make_config, at_step, monkeypatch):
    """Neither evaluation at a pass that has not ended, nor the loading of the best model, nor a result."""
    at_step(lambda _: os.kill(os.getpid(), signal.SIGTERM), 5)
    training = {"max_steps": 12, "eval_strategy": "epoch", "save_strategy": "epoch", "metric_for_best_model": "loss"}
    config = make_config(training={**training, "load_best_model_at_end": True})
    for name in ("evaluate", "score"):
        monkeypatch.setattr(TeacherForcingTrainer, name, lambda *_, **__: pytest.fail("evaluated"))
    with pytest.raises(Stopped):
        run(config)
    names = {path.name for path in output_dir(config).iterdir()}
    assert "checkpoint-5" in names and not {"metrics.json", "model.safetensors"} & names


@pytest.mark.parametrize("harm", [spoil, spoil_gradient])
def test_a_step_that_is_not_finite_changes_nothing(make_config, at_step, harm):
    """Step 3 of 4 leaves weights and moments as step 2 did; it is counted, and its loss is not in the mean."""
    at_step(harm, 3)
    training = {**LONG, "max_steps": 4, "save_steps": 1, "logging_steps": 1, "max_grad_norm": 0.0}
    result = run(make_config(training=training))
    assert result.scores["training"]["skipped_steps"] == 1
    before, after = (weights(result.output_dir / f"checkpoint-{step}") for step in (2, 4))
    assert not (result.output_dir / "checkpoint-3").exists()  # not to be gone back to
    entries = [entry for entry in history(result.output_dir, 4) if "loss" in entry]
    assert math.isnan(entries[2]["loss"]) and entries[3]["skipped_steps"] == 1
    assert all(math.isfinite(entries[index]["loss"]) and entries[index]["loss"] > 0 for index in (0, 1, 3))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(tensor.isfinite().all() for tensor in after.values())


def test_a_skipped_step_is_no_step_for_the_optimizer(make_config, at_step, tmp_path):
    """With a constant learning rate, weights after steps 1, 2, (3), 4 on rows 1, 2, 4 are those of three steps."""
    at_step(spoil, 2)
    training = {**LONG, "max_steps": 2, "save_steps": 1, "lr_scheduler_type": "constant"}
    folder = run(make_config(training=training)).output_dir
    assert_equal(folder, weights(folder / "checkpoint-1"))


def test_many_such_steps_lead_back_to_the_checkpoint(make_config, at_step, caplog):
    """Steps 5 to 14 are spoiled: back to checkpoint-4 with its weights, and on with the rows behind."""
    at_step(spoil, *range(5, 5 + MAX_NOT_FINITE))
    training = {**LONG, "save_steps": 2, "max_steps": 16}
    result = run(make_config(training=training))
    assert "going back to" in caplog.text and "checkpoint-4" in caplog.text
    assert result.scores["training"]["skipped_steps"] == MAX_NOT_FINITE
    assert [entry["step"] for entry in history(result.output_dir, 16) if "loss" in entry] == list(range(1, 17))
    state = json.loads((result.output_dir / "checkpoint-16" / "run_state.json").read_text())
    assert state["data"]["next_batch"] == 16 + MAX_NOT_FINITE


def test_going_back_restores_weights_and_moments(make_config, at_step, tmp_path, monkeypatch):
    config = make_config(training={**LONG, "save_steps": 2, "max_steps": 20})
    at_step(spoil, *range(5, 5 + MAX_NOT_FINITE))
    seen = []
    original = TeacherForcingTrainer.roll_back

    def roll_back(self):
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(1.0)
        original(self)
        seen.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})

    monkeypatch.setattr(TeacherForcingTrainer, "roll_back", roll_back)
    folder = run(config).output_dir
    for name, tensor in weights(folder / "checkpoint-4").items():
        assert torch.equal(seen[0][name], tensor), name


def test_for_ever_not_finite_is_the_end(make_config, at_step):
    at_step(spoil, *range(5, 1000))
    config = make_config(training={**LONG, "save_steps": 2, "max_steps": 40})
    with pytest.raises(RunError, match=r"not finite in 10 steps in a row, after going on from .*checkpoint-4"):
        run(config)
    assert not (output_dir(config) / "metrics.json").exists()


def test_not_finite_from_the_start_is_the_end(make_config, at_step):
    at_step(spoil, *range(1, 1000))
    with pytest.raises(RunError, match="in a row, with no checkpoint to go back to; lower"):
        run(make_config(training={**LONG, "max_steps": 40}))


def test_killed_between_last_step_and_result(make_config, reference, monkeypatch):
    """No step is done twice, nor one more."""
    config = make_config(training=LONG)
    monkeypatch.setattr("pipeline.run.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.undo()
    assert_equal(run(config).output_dir, reference)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARMS = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip_a_byte,
}
SAVED = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "run_state.json"]
SAVED += ["config.json", "manifest.json"]


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_damage_costs_only_the_steps_behind(make_config, caplog, harm):
    """Each file of the newest checkpoint: passed over by name, and the weights at the end are the same."""
    config = make_config(training={**LONG, "save_steps": 4}, data={"validation": None, "test": None})
    folder = run(config).output_dir
    expected = weights(folder)
    caplog.set_level(logging.INFO, "pipeline")
    for name in SAVED:
        (folder / "metrics.json").unlink()
        (folder / "model.safetensors").unlink()
        harm(folder / "checkpoint-8" / name)
        caplog.clear()
        assert_equal(run(config).output_dir, expected)
        assert "checkpoint-8 is passed over: " in caplog.text
        assert name in caplog.text or name == "manifest.json"  # a flipped byte of it is taken for another file's
        assert "going on from" in caplog.text and "checkpoint-4" in caplog.text


def test_an_empty_newest_folder_is_passed_over(make_config, reference, caplog):
    config = make_config(training=LONG)
    folder = run(config).output_dir
    (folder / "metrics.json").unlink()
    shutil.rmtree(folder / "checkpoint-8")
    (folder / "checkpoint-8").mkdir()
    assert_equal(run(config).output_dir, reference)
    assert "checkpoint-8 is passed over: it has no manifest.json" in caplog.text


def test_without_a_whole_checkpoint_a_run_is_refused(make_config):
    config = make_config(training={**LONG, "save_steps": 4})
    folder = run(config).output_dir
    (folder / "metrics.json").unlink()
    for path in folder.glob("checkpoint-*/scheduler.pt"):
        path.unlink()
    with pytest.raises(RunError, match=r"no checkpoint is whole \(checkpoint-8: scheduler.pt is missing; checkpoint-4"):
        run(config)


def test_a_damaged_best_model_is_not_taken(make_config, monkeypatch):
    training = {"max_steps": 4, "load_best_model_at_end": True, "metric_for_best_model": "loss"}
    config = make_config(training={**training, "learning_rate": 3.0})
    original = TeacherForcingTrainer._load_best_model

    def harm(self):
        path = output_dir(config) / f"checkpoint-{self.state.best_global_step}" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        original(self)

    monkeypatch.setattr(TeacherForcingTrainer, "_load_best_model", harm)
    with pytest.raises(RunError, match=r"the best checkpoint, is damaged: model.safetensors was changed"):
        run(config)


def test_the_best_model_is_found_in_a_folder_that_moved(make_config, tmp_path):
    training = {"learning_rate": 3.0, "warmup_steps": 4, "max_steps": 6, "load_best_model_at_end": True}
    training["metric_for_best_model"] = "loss"
    folder = run(make_config(training=training)).output_dir
    expected = weights(folder)
    moved = tmp_path / "moved"
    folder.rename(moved)
    (moved / "metrics.json").unlink()
    (moved / "model.safetensors").unlink()
    assert_equal(run(make_config(training={**training, "output_dir": str(moved)})).output_dir, expected)


def test_patience_outlasts_a_stop(make_config, at_step, tmp_path):
    """Early stopping counts on over a resume."""
    training = {"learning_rate": 3.0, "max_steps": 40, "load_best_model_at_end": True, "metric_for_best_model": "loss"}
    changes = {"evaluation": {"early_stopping_patience": 3}}

    def last_step(folder):
        return max(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))

    whole = run(make_config(training={**training, "output_dir": str(tmp_path / "whole")}, **changes)).output_dir
    at_step(lambda _: os.kill(os.getpid(), signal.SIGTERM), last_step(whole) - 1)
    config = make_config(training=training, **changes)
    with pytest.raises(Stopped):
        run(config)
    assert last_step(run(config).output_dir) == last_step(whole)


def test_a_checkpoint_that_cannot_be_written(make_config, reference, monkeypatch):
    """As on a full disk: the error names path and space, what was saved stays whole, the same command goes on."""
    config = make_config(training=LONG)
    original = torch.save

    def full(thing, path, *args, **kwargs):
        if "scheduler" in str(path) and (output_dir(config) / "checkpoint-4").exists():
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        return original(thing, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"run could not be written: PytorchStreamWriter failed .* MB are free there"):
        run(config)
    monkeypatch.undo()
    assert not (output_dir(config) / "staging").exists()
    assert_equal(run(config).output_dir, reference)


@pytest.mark.parametrize("size_limit", [2_000, 30_000, 100_000], ids=["state", "weights", "optimizer"])
def test_a_limit_of_file_sizes(make_config, reference, at_step, size_limit):
    """As by `ulimit -f`, from step 5 on: which file is the first that does not fit depends on the limit."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step(lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (size_limit, limits[1])), 5)
    config = make_config(training={**LONG, "report_to": "none"})
    try:
        with pytest.raises(RunError, match=r"run could not be written: .* a file may have .* MB \(ulimit -f\)"):
            run(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in list_checkpoints(output_dir(config))] == ["checkpoint-4", "checkpoint-2"]
    assert not (output_dir(config) / "staging").exists()
    assert_equal(run(config).output_dir, reference)


FULL_DISK = """
mount -t tmpfs -o size=$2 tmpfs $1 || exit 77
$3 scripts/train.py $4
echo "exit code $?"
ls $1
mount -o remount,size=100m $1
$3 scripts/train.py $4 && cp $1/model.safetensors $5
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["20k", "150k", "400k", "700k"])
def test_a_full_disk(make_config, reference, tmp_path, size):
    """A file system of its own for the run, made larger after the run is ended by it."""
    config = make_config(training={**LONG, "report_to": "none"})
    output_dir(config).mkdir()
    (tmp_path / "run.yaml").write_text(json.dumps(config.model_dump()))
    arguments = [output_dir(config), size, sys.executable, tmp_path / "run.yaml", tmp_path / "result"]
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, "sh", *map(str, arguments)]
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=threads)
    except FileNotFoundError:
        pytest.skip("there is no unshare(1) here")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert "exit code 3" in done.stdout and "staging" not in done.stdout
    assert f"{output_dir(config)} could not be written: " in done.stderr and " MB are free there" in done.stderr
    for name, tensor in load_file(tmp_path / "result").items():
        assert torch.equal(tensor, reference[name]), name


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_in_training(make_config, make_pairs, streaming, workers):
    """Named by file and line, or skipped and counted in the metrics."""
    folder = make_pairs(rows=40)
    bad = [b'{"source": "a", "target": null}', b'{"source": 3, "target": "a"}', b'{"source": " ", "target": "a"}']
    bad += [b'{"target": "a"}', b'{"source": "a b c", "target": "a b', b'{"source": "\xff", "target": "a"}']
    bad += [b'{"source": "%s", "target": "a"}' % b" ".join([b"a"] * 40)]
    with (folder / "train.jsonl").open("ab") as stream:
        stream.write(b"\n".join(bad) + b"\n")
    data = {"path": str(folder), "options": {}, "streaming": streaming, "max_source_length": 20, "shuffle_window": 8}
    training = {"max_steps": 12, "eval_strategy": "no", "dataloader_num_workers": workers}
    with pytest.raises(DataError, match=r"train.jsonl:4\d: .*; fix or remove the row, or set data.on_bad_row=skip"):
        run(make_config(data=data, training=training))
    result = run(make_config(data={**data, "on_bad_row": "skip"}, training=training))
    assert result.scores["training"]["skipped_rows"] >= len(bad)
    metrics = json.loads((result.output_dir / "metrics.json").read_text())
    assert metrics["training"] == result.scores["training"]
    with pytest.raises(DataError, match=r"7 bad rows in one pass, where data.max_bad_rows=6; one: .*train.jsonl:4\d: "):
        folder = str(result.output_dir) + "-2"
        run(make_config(data={**data, "on_bad_row": "skip", "max_bad_rows": 6, "shuffle_window": 100},
                        training={**training, "output_dir": folder}))  # fmt: skip
