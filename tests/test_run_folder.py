"""The folder of a run: who may work in it, what may change, and that one of an older version goes on as ever."""

import multiprocessing
import os
import shutil
import signal

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file

from pipeline import run_folder
from pipeline.errors import ConfigError, RunError
from pipeline.inference.generation import generate
from pipeline.run import train
from pipeline.run_folder import RunFolder, explain_storage, find_config, write_text
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.trained_model import load_trained
from tests.conftest import ROOT

# A run of version 0.1.0, stopped after step 2 of 4; `expected.safetensors` is what that version made of it.
OLD_RUN = ROOT / "tests" / "fixtures" / "run_0.1.0"


@pytest.fixture
def old_run(tmp_path):
    return shutil.copytree(OLD_RUN, tmp_path / "run", ignore=shutil.ignore_patterns("expected.*"))


def old_config(folder, *overrides):
    return load_config(folder / "run.yaml", [f"training.output_dir={folder}", *overrides])


def test_a_run_of_an_older_version_goes_on(old_run):
    """To the weights that the older version would have made; bits differ between processors."""
    result = train(old_config(old_run))
    assert result.output_dir == old_run and not result.was_finished
    expected = load_file(OLD_RUN / "expected.safetensors")
    weights = load_file(old_run / "model.safetensors")
    assert weights.keys() == expected.keys()
    start = load_file(OLD_RUN / "checkpoint-2" / "model.safetensors")
    for name, tensor in weights.items():
        # A softmax is blind to what all its scores have in common, so a key's bias has no gradient but rounding, which
        # Adam blows up to steps of the learning rate.
        tolerance = 1e-2 if name.endswith("k_proj.bias") else 1e-5
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=tolerance)
    assert any(not torch.allclose(start[name], expected[name], atol=1e-3) for name in start)  # two steps do show


def test_keys_that_moved_are_the_same_settings(old_run):
    folder = RunFolder(old_run)
    assert folder.changed_keys(old_config(old_run)) == []
    changed = old_config(old_run, "model.d_model=32", "training.max_steps=6", "data.worker_timeout=5")
    assert folder.changed_keys(changed) == ["model.d_model", "training.max_steps"]
    with pytest.raises(ConfigError, match=r"other settings \(model.d_model, training.max_steps\)"):
        folder.find_resume_point(changed, None, accept_changes=False)


def test_a_checkpoint_of_an_older_version_loads_and_is_published(old_run, command, hub):
    model, task = load_trained(old_run / "checkpoint-2")
    assert len(generate(model, task, ["1 2 3 4", "5 6"])) == 2
    assert find_config(old_run / "checkpoint-2") == old_run / "checkpoint-2" / "run.yaml"
    done = command("publish", old_run / "checkpoint-2", "me/old")
    assert done.returncode == 0, done.stderr
    assert {"model.safetensors", "modeling_seq2seq.py", "run.yaml"} <= set(HfApi().list_repo_files("me/old"))


def test_changed_keys(make_config, tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin(make_config())
    assert folder.changed_keys(make_config(model={"d_model": 32})) == []  # nothing was trained yet
    (tmp_path / "checkpoint-4").mkdir()
    assert folder.changed_keys(make_config()) == []
    free = {"output_dir": "elsewhere", "dataloader_num_workers": 2, "report_to": "none"}
    assert folder.changed_keys(make_config(training=free)) == []
    changed = make_config(model={"d_model": 32}, training={"max_steps": 8}, data={"streaming": True})
    assert folder.changed_keys(changed) == ["data.streaming", "model.d_model", "training.max_steps"]


def enter(path, answers) -> None:
    """Try to lock a folder, and send what came of it."""
    run_folder.LOCK_PATIENCE = 0.1  # of this process only
    try:
        with RunFolder(path).locked():
            answers.send("in")
    except RunError as error:
        answers.send(str(error))


def test_one_run_in_a_folder(tmp_path):
    """A second process is refused while the first holds the folder, and let in afterwards, even if that was killed."""

    def start(hold: bool = False):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(
            target=hold_on if hold else enter, args=(tmp_path, sender)
        )
        process.start()
        assert receiver.poll(60)
        return process, receiver.recv()

    with RunFolder(tmp_path).locked():
        process, answer = start()
        assert "another process trains in this folder" in answer
        process.join()
    process, answer = start(hold=True)
    assert answer == "in" and "another process" in start()[1]
    process.kill()
    process.join()
    assert start()[1] == "in"


def test_a_folder_that_cannot_be_locked_is_not_taken_for_a_free_one(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pipeline.run_folder.FileLock.acquire", refuse)
    with pytest.raises(RunError, match="cannot be locked: Permission denied"), RunFolder(tmp_path).locked():
        pass


def hold_on(path, answers) -> None:
    """Lock a folder, and keep it until this process is killed."""
    with RunFolder(path).locked():
        answers.send("in")
        signal.pause()


def test_text_is_written_as_a_whole(tmp_path, monkeypatch):
    write_text(tmp_path / "file", "one")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        write_text(tmp_path / "file", "two")
    assert (tmp_path / "file").read_text() == "one"


def test_storage_is_explained(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "weights").write_bytes(bytes(1000))
    text = explain_storage(tmp_path, OSError(28, "No space left on device"))
    assert text.startswith(f"{tmp_path} could not be written: [Errno 28]")
    assert "MB are free there" in text and "a checkpoint takes" in text and "run the same command again" in text


def test_output_folders_that_cannot_be(tmp_path, make_config, no_step):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for path, message in (
        ("/dev/null", "/dev/null cannot be written: it is not a folder; choose another folder"),
        (tmp_path / "file", "it is not a folder"),
        (tmp_path / "file" / "x", "Not a directory"),
        ("/proc/run", "/proc/run cannot be written"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
        (tmp_path / ("x" * 300), "File name too long"),
        ("", "at least 1 character"),
    ):
        with pytest.raises(ConfigError, match=r"training\.output_dir") as caught:
            train(make_config(training={"output_dir": str(path)}))
        assert message in str(caught.value)


def test_a_folder_on_a_full_disk(tmp_path, monkeypatch):
    def fill(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.mkdir", fill)
    with pytest.raises(RunError, match="No space left on device; make room"), RunFolder(tmp_path / "x").locked():
        pass
