"""Checkpoints that are whole or are not there, whatever happens while they are written or afterwards."""

import errno
import json
import logging
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import ConfigError, RunError
from pipeline.manifest import MANIFEST_FILE, damage
from pipeline.run import train
from pipeline.training import checkpoints
from pipeline.training.checkpoints import commit, find_newest, list_checkpoints, read_log, rotate, write_checkpoint
from tests.conftest import ROOT
from tests.training.conftest import LONG, assert_equal, output_dir


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


def test_a_file_that_cannot_be_flushed_makes_no_checkpoint(save, tmp_path, monkeypatch):
    """The files are flushed beside one another, and none of them is forgotten, nor is a folder's list of names."""
    flush, flushed = checkpoints.flush_to_disk, set()

    def remember(path):
        flushed.add(path.relative_to(tmp_path).as_posix())
        flush(path)

    def refuse(path):
        if path.name == "state":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        flush(path)

    monkeypatch.setattr(checkpoints, "flush_to_disk", remember)
    save(4)
    assert flushed == {*(f"staging{name}" for name in ("", "/weights", "/sub", "/sub/state", "/manifest.json")), "."}
    monkeypatch.setattr(checkpoints, "flush_to_disk", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        save(6)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4"]


def test_what_a_commit_replaces_stays_until_the_new_one_is_there(save, tmp_path, monkeypatch):
    checkpoint, rename = save(4), Path.rename
    (checkpoint / "weights").write_text("old")

    def interrupt(path, target):
        if path.name == "staging":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(4)
    assert (checkpoint / "weights").read_text() == "old"
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "staging")
    assert damage(save(4)) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_nothing_is_saved_through_a_link(tmp_path):
    elsewhere, staging = tmp_path / "elsewhere", tmp_path / "run" / "staging"
    elsewhere.mkdir()
    staging.parent.mkdir()
    staging.symlink_to(elsewhere)
    with pytest.raises(RunError, match="staging is a link; remove it"):
        write_checkpoint(staging.parent, 2, lambda folder: (folder / "weights").touch())
    staging.unlink()
    with pytest.raises(RunError, match="weights is a link; remove it"):
        write_checkpoint(staging.parent, 2, lambda folder: (folder / "weights").symlink_to(elsewhere / "x"))
    assert not [*elsewhere.iterdir()] and not list_checkpoints(staging.parent)


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
    found = damage(newest)
    assert found is not None and found.startswith(reason)
    assert find_newest(newest.parent) == older
    assert f"{newest} is passed over: {reason}" in caplog.text


def test_a_flip_of_any_byte_of_the_manifest_harms_nothing(save):
    """It is found, or what the manifest says of the files stays true."""
    checkpoint = save(4)
    path = checkpoint / MANIFEST_FILE
    content = path.read_bytes()
    num_noticed = 0
    for place in range(len(content)):
        flip(path, place)
        num_noticed += damage(checkpoint) is not None
        path.write_bytes(content)
    assert num_noticed >= len(content.translate(None, b" \n"))  # all but blanks


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


def flip_a_byte_in_the_middle(path):
    flip(path, path.stat().st_size // 2)


HARMS = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip_a_byte_in_the_middle,
}
SAVED = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "run_state.json"]
SAVED += ["config.json", "run.yaml", "manifest.json"]


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_damage_to_any_file_of_a_run_is_found(undisturbed, tmp_path, harm):
    """In the checkpoint that a training wrote: each file is in its manifest, and named."""
    checkpoint = shutil.copytree(undisturbed / "checkpoint-8", tmp_path / "checkpoint-8")
    assert {*SAVED} <= {path.name for path in checkpoint.iterdir()}
    for name in SAVED:
        harm(checkpoint / name)
        problem = damage(checkpoint)
        assert problem is not None
        assert name in problem or name == "manifest.json"  # a flipped byte of it is taken for another file's
        shutil.copy(undisturbed / "checkpoint-8" / name, checkpoint / name)
        assert damage(checkpoint) is None


@pytest.mark.parametrize(
    "harmed, left",
    [
        ({"8 model.safetensors": "deleted", "6 optimizer.pt": "emptied", "4 run_state.json": "flipped"}, 2),
        ({"8 scheduler.pt": "halved"}, 6),
    ],
    ids=["three", "one"],
)
def test_damage_costs_only_the_steps_behind(make_config, unfinished, reference, caplog, harmed, left):
    """What is damaged is passed over by name, and the weights at the end are the same."""
    caplog.set_level(logging.INFO, "pipeline")
    for place, harm in harmed.items():
        step, name = place.split()
        HARMS[harm](unfinished / f"checkpoint-{step}" / name)
    assert_equal(train(make_config(training=LONG)).output_dir, reference)
    for place in harmed:
        step, name = place.split()
        assert re.search(rf"checkpoint-{step} is passed over: {name} ", caplog.text)
    assert re.search(rf"going on from .*checkpoint-{left}\n", caplog.text)


def test_a_run_passes_over_an_empty_newest_folder(make_config, unfinished, reference, caplog):
    shutil.rmtree(unfinished / "checkpoint-8")
    (unfinished / "checkpoint-8").mkdir()
    assert_equal(train(make_config(training=LONG)).output_dir, reference)
    assert "checkpoint-8 is passed over: it has no manifest.json" in caplog.text


def test_without_a_whole_checkpoint_a_run_is_refused(make_config, unfinished):
    for path in unfinished.glob("checkpoint-*/scheduler.pt"):
        path.unlink()
    with pytest.raises(RunError, match=r"no checkpoint is whole \(checkpoint-8: scheduler.pt is missing; checkpoint-6"):
        train(make_config(training=LONG))


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
        train(config)
    monkeypatch.undo()
    assert not (output_dir(config) / "staging").exists()
    assert_equal(train(config).output_dir, reference)


@pytest.mark.parametrize(
    "size_limit",
    [pytest.param(2_000, marks=pytest.mark.slow), 30_000, pytest.param(100_000, marks=pytest.mark.slow)],
    ids=["state", "weights", "optimizer"],
)
def test_a_limit_of_file_sizes(make_config, reference, at_step, size_limit):
    """As by `ulimit -f`, from step 5 on: which file is the first that does not fit depends on the limit."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step(lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (size_limit, limits[1])), 5)
    config = make_config(training={**LONG, "report_to": "none"})
    try:
        with pytest.raises(RunError, match=r"run could not be written: .* a file may have .* MB \(ulimit -f\)"):
            train(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in list_checkpoints(output_dir(config))] == ["checkpoint-4", "checkpoint-2"]
    assert not (output_dir(config) / "staging").exists()
    assert_equal(train(config).output_dir, reference)


FULL_DISK = """
mount -t tmpfs -o size=$2 tmpfs $1 || exit 77
$3 scripts/train.py $4
echo "exit code $?"
ls $1
mount -o remount,size=100m $1
$3 scripts/train.py $4 && cp $1/model.safetensors $5
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("20k", " could not be written: .* MB are free there"),
        ("150k", " could not be written: .* MB are free there"),
        ("400k", ": 4 checkpoints of 0.2 MB need 1.1 MB of 0 MB on the disk; make room"),
        ("700k", " could not be written: .* MB are free there"),
    ],
    ids=["20k", "150k", "400k", "700k"],
)
def test_a_full_disk(make_config, reference, tmp_path, size, message):
    """A separate file system for the run, made larger after the run is ended by it."""
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
    assert re.search(re.escape(str(output_dir(config))) + message, done.stderr), done.stderr
    for name, tensor in load_file(tmp_path / "result").items():
        assert torch.equal(tensor, reference[name]), name


def test_the_log_is_that_of_the_newest_checkpoint_that_can_be_read(tmp_path):
    for step, content in ((2, '{"log_history": [{"step": 2, "loss": 1.0}, {"note": 1}]}'), (4, "{"), (10, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if content is not None:
            (folder / "trainer_state.json").write_text(content)
    assert read_log(tmp_path) == read_log(tmp_path / "checkpoint-2") == [{"step": 2, "loss": 1.0}]
    with pytest.raises(ConfigError, match="checkpoint-4: no trainer_state"):
        read_log(tmp_path / "checkpoint-4")
    with pytest.raises(ConfigError, match="checkpoint-10: there is no checkpoint"):
        read_log(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text('{"log_history": []}')  # before the first line
    assert read_log(tmp_path) == []
