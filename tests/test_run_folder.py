"""The folder of a run: who may work in it, what may change, and that one of an older version goes on as ever."""

import multiprocessing
import os
import shutil
import signal
from dataclasses import asdict, replace

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file

from pipeline import run_folder
from pipeline.data.batch_stream import Position
from pipeline.errors import ConfigError, RunError
from pipeline.inference.generation import generate
from pipeline.manifest import damage
from pipeline.run import train
from pipeline.run_folder import RunFolder, explain_storage, find_fingerprints, write_text
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.trained_model import load_trained
from pipeline.training.changes import changed_content, other_training_data
from pipeline.training.checkpoints import NEW_RUN, Phase, commit, find_config, save_run_state
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


@pytest.fixture
def stopped(make_config, tmp_path):
    """A run on files that stopped after step 4: its folder, and a function that makes its config with changes."""
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation", "test"):
        (data / f"{split}.jsonl").write_text('{"source": "a b", "target": "b a"}\n')

    def make(**changes):
        section = {"path": str(data), "test": "test", "options": {}, **changes.pop("data", {})}
        return make_config(data=section, **changes)

    folder = RunFolder(make().output_dir)
    state = replace(NEW_RUN, fingerprints=find_fingerprints(make(), {}))
    folder.begin(make(), state)
    staging = folder.path / "staging"
    staging.mkdir()
    (staging / "trainer_state.json").write_text('{"global_step": 4}')
    save_run_state(staging, replace(state, data=asdict(Position(next_batch=8, first_row=2))))
    commit(staging, folder.path / "checkpoint-4")
    return folder, make


def edit(folder: RunFolder, split: str, text: str) -> None:
    """Change a file of the data under its time."""
    path = folder.path.parent / "data" / f"{split}.jsonl"
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_same_data_are_gone_on_with(stopped):
    folder, make = stopped
    os.utime(folder.path.parent / "data" / "train.jsonl", (1, 1))
    point = folder.find_resume_point(make(training={"save_steps": 1}), None, accept_changes=False)
    assert point.checkpoint == folder.path / "checkpoint-4" and point.changes == ()
    assert point.state.data["lanes"][0]["first_row"] == 2 and point.state.phases == [Phase(1, {})]


@pytest.mark.parametrize(
    "text",
    [
        '{"source": "a c", "target": "b a"}\n',
        '{"source": "a b", "target": "b a"}\n' * 2,
        "\n",
        '{"target": "b a", "source": "a b"}\n',
    ],
    ids=["edited", "appended", "removed", "reordered"],
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_data_that_changed_are_noticed(stopped, split, text):
    """Under the same time; with consent, other training rows are read from the first one on."""
    folder, make = stopped
    edit(folder, split, text)
    with pytest.raises(ConfigError, match=f"holds a run on other data: the content of data.{split} changed; .*accept"):
        folder.find_resume_point(make(), None, accept_changes=False)
    point = folder.find_resume_point(make(), None, accept_changes=True)
    assert point.changes == (f"the content of data.{split}",)
    first_row, pass_index = (0, 1) if split == "train" else (2, 0)
    (lane,) = point.state.data["lanes"]
    assert (lane["first_row"], lane["pass_index"]) == (first_row, pass_index)
    assert point.state.data["next_batch"] == 8 and [phase.first_step for phase in point.state.phases] == [1, 5]


def test_other_paths_columns_and_splits_are_other_data(stopped):
    """A folder that moved has the same rows, so that they are gone on with; its path is a change all the same."""
    folder, make = stopped
    moved = shutil.move(folder.path.parent / "data", folder.path.parent / "moved")
    config = make(data={"path": str(moved)})
    with pytest.raises(ConfigError, match=r"holds a run with other settings \(data.path\)"):
        folder.find_resume_point(config, None, accept_changes=False)
    point = folder.find_resume_point(config, None, accept_changes=True)
    assert point.changes == ("data.path",) and point.state.data["lanes"][0]["first_row"] == 2
    config = make(data={"path": str(moved), "source": "target"})
    point = folder.find_resume_point(config, None, accept_changes=True)
    assert "data.source" in point.changes and point.state.data["lanes"][0]["first_row"] == 0


def test_some_settings_are_refused_even_so(stopped):
    folder, make = stopped
    changed = make(tokenizer={"vocab_size": 50}, training={"learning_rate": 1.0})
    message = (
        r"\(tokenizer.vocab_size, training.learning_rate\); tokenizer.vocab_size cannot change while a run goes on"
    )
    for accept_changes in (False, True):
        with pytest.raises(ConfigError, match=message):
            folder.find_resume_point(changed, None, accept_changes=accept_changes)
    assert folder.find_resume_point(changed, False, accept_changes=True).checkpoint is None  # a new run may have them


def test_what_was_accepted_is_applied_after_a_kill(stopped):
    """No checkpoint was written since: the same command need not ask again, and still applies the change."""
    folder, make = stopped
    changed = make(training={"learning_rate": 1.0})
    point = folder.find_resume_point(changed, None, accept_changes=True)
    folder.begin(changed, point.state)
    again = folder.find_resume_point(changed, None, accept_changes=False)
    assert again.changes == point.changes == ("training.learning_rate",) and again.state == point.state
    assert "# from step 5 on: training.learning_rate: 1.0 (before: null)" in (folder.path / "run.yaml").read_text()


def test_a_checkpoint_of_another_run_must_fit(stopped, tmp_path):
    folder, make = stopped
    other = RunFolder(tmp_path / "other")
    with pytest.raises(
        ConfigError, match=r"whose .*checkpoint-4 has other settings \(model.d_model\); model.d_model can"
    ):
        other.find_resume_point(make(model={"d_model": 32}), str(folder.path / "checkpoint-4"), accept_changes=True)


def test_a_changed_value_stays_in_its_comment(make_config, tmp_path):
    """Whatever ends a line for YAML."""
    changes = {"data.path": ["a\u0085task: x", "b\u2028task: y"]}
    RunFolder(tmp_path).begin(make_config(), replace(NEW_RUN, phases=[Phase(1, {}), Phase(5, changes)]))
    assert load_config(tmp_path / "run.yaml") == make_config()
    assert (tmp_path / "run.yaml").read_text().splitlines()[1].startswith("task: ")


def test_a_finished_model_is_not_a_checkpoint(finished_folder, make_config):
    with pytest.raises(ConfigError, match=r"has no state of a training; name a checkpoint"):
        RunFolder(finished_folder).find_resume_point(make_config(), str(finished_folder), accept_changes=False)


def test_a_run_without_fingerprints_goes_on(old_run, caplog):
    caplog.set_level("INFO", "pipeline")
    point = RunFolder(old_run).find_resume_point(old_config(old_run), None, accept_changes=False)
    assert point.checkpoint == old_run / "checkpoint-2" and point.changes == ()
    assert "does not say on which data it was trained" in caplog.text
    assert point.state.fingerprints is not None and {*point.state.fingerprints} == {"train", "validation", "test"}


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.json", "run.yaml", "tokenizer.json", "config.json"])
def test_a_finished_run_that_is_damaged_is_made_again(finished_folder, make_config, caplog, name):
    folder = RunFolder(finished_folder)
    assert folder.find_resume_point(make_config(), None, accept_changes=False).is_finished
    content = (finished_folder / name).read_bytes()
    (finished_folder / name).write_bytes(content[: len(content) // 2])
    point = folder.find_resume_point(make_config(), None, accept_changes=False)
    assert not point.is_finished and point.checkpoint == finished_folder / "checkpoint-4"
    assert f"is finished, but damaged: {name}" in caplog.text


def test_damaged_scores_of_an_older_version_are_made_again(finished_folder, make_config):
    (finished_folder / "manifest.json").unlink()
    (finished_folder / "run_state.json").write_text("[")
    assert RunFolder(finished_folder).find_resume_point(make_config(), None, accept_changes=False).is_finished
    (finished_folder / "metrics.json").write_text("{")
    assert not RunFolder(finished_folder).find_resume_point(make_config(), None, accept_changes=False).is_finished


def test_a_damaged_model_is_made_again_bit_by_bit(finished_run, finished_folder, make_config):
    (finished_folder / "model.safetensors").write_bytes(b"")
    result = train(make_config())
    assert not result.was_finished and damage(finished_folder) is None
    assert (finished_folder / "model.safetensors").read_bytes() == (finished_run / "model.safetensors").read_bytes()
    assert train(make_config()).was_finished


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


def test_filters_are_part_of_what_is_trained_on(stopped):
    """Other filters begin the rows anew; with `drop_held_out` so does another test set, whose content alone changed."""
    folder, make = stopped
    with pytest.raises(ConfigError, match=r"other settings \(data.filters\); .*--accept-changes"):
        folder.find_resume_point(make(data={"filters": {"drop_held_out": True}}), None, False)
    resume = folder.find_resume_point(make(data={"filters": {"drop_held_out": True}}), None, True)
    assert [*resume.changes] == ["data.filters"]
    assert resume.state.data["lanes"][0]["pass_index"] == 1 and resume.state.data["lanes"][0]["first_row"] == 0
    before = resume.state.fingerprints
    edit(folder, "test", '{"source": "c", "target": "c"}\n')
    now = find_fingerprints(make(data={"filters": {"drop_held_out": True}}), {})
    assert [*changed_content(before, now)] == ["the content of data.test"]
    assert other_training_data(before, now, ()) == {"train"}
    without = find_fingerprints(make(), {})
    assert without["train"] == before["train"].split("+")[0]
    identical = [find_fingerprints(make(data={"filters": {"drop_identical": True}}), {}) for _ in range(2)]
    assert identical[0] == identical[1] and other_training_data(without, identical[0], ()) == {"train"}
