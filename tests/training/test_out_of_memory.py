"""A run that memory ends: one line, exit code 3, a whole checkpoint, and the same command goes on bit by bit."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import RunError
from pipeline.manifest import damage
from pipeline.run import train
from pipeline.training.out_of_memory import advice, lost_worker_explained, out_of_memory_explained
from pipeline.training.ranks import fail_together
from tests.conftest import write_config
from tests.training.conftest import LONG, assert_equal, history, output_dir


def ask_for_too_much(_=None) -> None:
    torch.empty(2**50, dtype=torch.uint8)  # more than a process can address


def run_out_of_gpu_memory(_) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines")


@pytest.mark.parametrize("action", [run_out_of_gpu_memory, pytest.param(ask_for_too_much, marks=pytest.mark.slow)])
def test_a_run_ends_by_one_line_and_goes_on(make_config, at_step, reference, command, tmp_path, action):
    at_step(action, 3)
    config = make_config(training=LONG)
    path = write_config(make_config, tmp_path / "run.yaml", training={**LONG, "disable_tqdm": False})
    done = command("train", path)
    assert done.returncode == 3
    message = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    checkpoint = output_dir(config) / "checkpoint-2"
    assert message.startswith(
        f"error: out of memory: the same command with --accept-changes goes on from {checkpoint}, with "
        "training.gradient_checkpointing=true, training.bf16=true or training.per_device_train_batch_size below 8 and "
        "training.gradient_accumulation_steps above 1 (the allocator: "
    )
    assert message in done.stderr.split("\n")  # on a line of its own, behind the progress bar
    assert "Traceback" not in done.stderr and "More lines" not in done.stderr
    assert damage(checkpoint) is None
    assert command("train", path).returncode == 0  # counts its own forward passes on, so has memory
    assert_equal(output_dir(config), reference)


def test_the_run_goes_on_with_what_the_message_names(make_config, at_step):
    at_step(ask_for_too_much, 3)
    training: dict[str, Any] = {**LONG, "max_steps": 4}
    with pytest.raises(RunError, match="out of memory"):
        train(make_config(training=training))
    training |= {"gradient_checkpointing": True, "bf16": True, "use_cpu": True}
    training |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    folder = train(make_config(training=training), accept_changes=True).output_dir
    assert [entry["step"] for entry in history(folder, 4) if "loss" in entry] == [1, 2, 3, 4]


def test_only_what_is_not_set_is_named(make_config, at_step):
    """Batches counted in tokens can change in a new run only, or before there is a checkpoint."""
    at_step(ask_for_too_much, 1)
    training = {**LONG, "bf16": True, "use_cpu": True, "gradient_checkpointing": True}
    with pytest.raises(RunError) as caught:
        train(make_config(training=training, data={"batch_tokens": 64}))
    expected = "out of memory: there is no checkpoint yet; run it again with data.batch_tokens below 64 (the allocator:"
    assert str(caught.value).startswith(expected)


def test_an_evaluation_has_a_setting_of_its_own(make_config, monkeypatch):
    monkeypatch.setattr("pipeline.training.trainer.evaluate_features", lambda *_, **__: ask_for_too_much())
    with pytest.raises(RunError, match=r"run it again with training\.per_device_eval_batch_size below 8 \("):
        train(make_config(training={"eval_steps": 1}))


@pytest.mark.parametrize(
    ("changes", "new_run", "expected"),
    [
        (["a=1"], ["b=2"], "goes on from run/checkpoint-2, with a=1; only a new run, in another training.output_dir"),
        ([], ["b=2", "c=3"], "only a new run, in another training.output_dir, can have b=2 or c=3"),
        ([], [], "only a new run, in another training.output_dir, can have a smaller model"),
    ],
)
def test_a_new_run_is_told_from_one_that_goes_on(changes, new_run, expected):
    assert expected in advice(Path("run/checkpoint-2"), changes, new_run)


def test_other_errors_stay_as_they_are(tmp_path):
    with pytest.raises(RuntimeError, match=r"^a bug$"), out_of_memory_explained(tmp_path, ["a=1"]):
        raise RuntimeError("a bug")


def kill_a_worker(_=None) -> None:
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_by_one_line(make_config, at_step, reference, command, tmp_path):
    """Behind the progress bar's line, not in it; the same command goes on."""
    training = {**LONG, "dataloader_num_workers": 2, "disable_tqdm": False}
    at_step(kill_a_worker, 3)
    path = write_config(make_config, tmp_path / "run.yaml", training=training)
    done = command("train", path)
    assert done.returncode == 3
    message = done.stderr.rstrip("\n").split("\n")[-1]
    checkpoint = output_dir(make_config()) / "checkpoint-2"
    assert message.startswith("error: a loader worker was lost (DataLoader worker (pid ")
    assert f"the same command goes on from {checkpoint}" in message and damage(checkpoint) is None
    assert command("train", path).returncode == 0
    assert_equal(output_dir(make_config()), reference)


def test_a_lost_worker_is_told_from_other_errors(tmp_path):
    def lose_a_worker():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    with pytest.raises(RunError, match=r"pid 7.*the same command begins anew"), lost_worker_explained(tmp_path):
        lose_a_worker()
    with pytest.raises(RunError, match=r"pid 7.*the same command begins anew"), lost_worker_explained(tmp_path):
        fail_together(lose_a_worker)  # as while a checkpoint is written, which has nothing to do with it
    with pytest.raises(RuntimeError, match=r"^a bug$"), lost_worker_explained(tmp_path):
        raise RuntimeError("a bug")
