"""The folder of a run: one written by an older version goes on, loads and is published as ever."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import ConfigError
from pipeline.inference.generation import generate
from pipeline.run import train
from pipeline.run_folder import RunFolder, find_config
from pipeline.tasks.registry import load_config, load_trained
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
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)
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
    assert {"model.safetensors", "modeling_seq2seq.py", "run.yaml"} <= set(hub.files("me/old"))
