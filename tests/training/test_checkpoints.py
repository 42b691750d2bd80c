import json
import os
import subprocess
import sys

import pytest

from pipeline.errors import RunError
from pipeline.training.checkpoints import (
    MANIFEST_FILE,
    changed_keys,
    commit,
    damage,
    explain_storage,
    find_newest,
    list_checkpoints,
    lock,
    rotate,
    write_text,
)
from tests.conftest import ROOT


@pytest.fixture
def save(tmp_path):
    """Commits a checkpoint of two files."""

    def make(step: int):
        staging = tmp_path / "staging"
        (staging / "sub").mkdir(parents=True)
        (staging / "weights").write_bytes(bytes([step % 256]) * 1000)
        (staging / "sub" / "state").write_text(f"state {step}")
        commit(staging, tmp_path / f"checkpoint-{step}")
        assert not staging.exists()
        return tmp_path / f"checkpoint-{step}"

    return make


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_committed_checkpoint_is_whole(save):
    checkpoint = save(4)
    assert damage(checkpoint) is None
    manifest = json.loads((checkpoint / MANIFEST_FILE).read_text())["files"]
    assert set(manifest) == {"weights", "sub/state"} and manifest["weights"]["size"] == 1000


@pytest.mark.parametrize(
    "harm, reason",
    [
        (lambda path: path.unlink(), "weights is missing"),
        (lambda path: path.write_bytes(b""), "weights has 0 bytes instead of 1000"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "weights has 500 bytes instead of 1000"),
        (flip, "weights was changed: its SHA-256 is another"),
        (lambda path: flip(path.parent / "sub" / "state"), "sub/state was changed"),
        (lambda path: (path.parent / MANIFEST_FILE).unlink(), "it has no manifest.json"),
        (lambda path: (path.parent / MANIFEST_FILE).write_text(""), "manifest.json cannot be read"),
        (lambda path: (path.parent / MANIFEST_FILE).write_text('{"files": {}}'), "manifest.json names no file"),
        (lambda path: (path.parent / MANIFEST_FILE).write_text('{"files": [1]}'), "manifest.json cannot be read"),
    ],
)
def test_damage_is_found_and_passed_over(save, caplog, harm, reason):
    older, newest = save(4), save(10)
    harm(newest / "weights")
    assert damage(newest).startswith(reason)
    assert find_newest(newest.parent) == older
    assert f"{newest} is passed over: {reason}" in caplog.text


def test_a_flip_of_any_byte_of_the_manifest_harms_nothing(save):
    """It is found, or what the manifest says of the files stays true."""
    checkpoint = save(4)
    path = checkpoint / MANIFEST_FILE
    content = path.read_bytes()
    found = 0
    for place in range(len(content)):
        flip(path, place)
        found += damage(checkpoint) is not None
        path.write_bytes(content)
    assert found >= len(content.translate(None, b" \n"))  # all but blanks


def test_an_empty_newest_folder_is_passed_over(save, tmp_path):
    whole = save(4)
    (tmp_path / "checkpoint-12").mkdir()
    assert find_newest(tmp_path) == whole


def test_no_whole_checkpoint_is_refused(save, tmp_path):
    assert find_newest(tmp_path) is None
    (save(4) / "weights").unlink()
    (tmp_path / "checkpoint-6").mkdir()
    with pytest.raises(RunError, match=r"no checkpoint is whole \(checkpoint-6: it has no .*; checkpoint-4: weights"):
        find_newest(tmp_path)


def test_what_is_no_checkpoint_is_left_alone(save, tmp_path):
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "staging" / "checkpoint-9").mkdir(parents=True)
    assert find_newest(tmp_path) is None


def test_a_damaged_checkpoint_is_replaced(save):
    checkpoint = save(4)
    (checkpoint / "weights").unlink()
    (checkpoint / "more").write_text("of another time")
    assert damage(save(4)) is None and not (checkpoint / "more").exists()


@pytest.mark.parametrize(
    "limit, keep, left", [(None, [1], [9, 7, 5, 1]), (2, [9], [9, 7]), (2, [9, 1], [9, 1]), (1, [9, 1], [9, 1])]
)
def test_rotation_keeps_the_newest_and_the_best(save, tmp_path, limit, keep, left):
    for step in (1, 5, 7, 9):
        save(step)
    rotate(tmp_path, limit, {tmp_path / f"checkpoint-{step}" for step in keep})
    assert [int(path.name.split("-")[1]) for path in list_checkpoints(tmp_path)] == left


def test_rotation_after_going_back_keeps_the_one_just_written(save, tmp_path):
    """Step 5 is newer than 7 and 9, from which the run went back."""
    for step in (7, 9, 5):
        save(step)
    rotate(tmp_path, 1, {tmp_path / "checkpoint-5"})
    assert list_checkpoints(tmp_path) == [tmp_path / "checkpoint-5"]


def test_text_is_written_as_a_whole(tmp_path, monkeypatch):
    write_text(tmp_path / "file", "one")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        write_text(tmp_path / "file", "two")
    assert (tmp_path / "file").read_text() == "one"


def test_changed_keys(make_config, save, tmp_path):
    from pipeline.training.checkpoints import begin

    config = make_config()
    begin(config, tmp_path)
    assert changed_keys(make_config(model={"d_model": 32}), tmp_path) == []  # nothing was trained yet
    save(4)
    assert changed_keys(config, tmp_path) == []
    free = {"output_dir": "elsewhere", "dataloader_num_workers": 2, "report_to": "none"}
    assert changed_keys(make_config(training=free), tmp_path) == []
    changed = make_config(model={"d_model": 32}, training={"max_steps": 8}, data={"streaming": True})
    assert changed_keys(changed, tmp_path) == ["data.streaming", "model.d_model", "training.max_steps"]


def test_one_run_in_a_folder(tmp_path, monkeypatch):
    """Another process is refused while this one holds the folder, and let in afterwards."""
    code = """
import sys
from pathlib import Path
from pipeline.training import checkpoints
checkpoints.LOCK_PATIENCE = 0.3
with checkpoints.lock(Path(sys.argv[1])):
    print("in")
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    with lock(tmp_path):
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "another process trains in this folder" in done.stderr
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "in\n"


def test_storage_is_explained(save, tmp_path):
    save(4)
    text = explain_storage(tmp_path, OSError(28, "No space left on device"))
    assert text.startswith(f"{tmp_path} could not be written: [Errno 28]")
    assert "MB are free there" in text and "a checkpoint takes" in text and "run the same command again" in text
