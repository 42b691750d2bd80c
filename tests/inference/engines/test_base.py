"""An engine in place of the model: loaded by name, asked for all that a task asks of a model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from pipeline.errors import ConfigError
from pipeline.inference.engines.base import (
    ENGINES,
    EQUIVALENCE_FILE,
    Engine,
    EngineSpec,
    describe_weights,
    find_export,
    load_engine,
)
from pipeline.manifest import MANIFEST_FILE, describe, to_json
from pipeline.tasks.trained_model import load_trained
from tests.conftest import ROOT

WHOLE = ROOT / "tests" / "fixtures" / "run_0.1.0" / "checkpoint-2"


class FakeEngine(Engine):
    """Answers every source with itself, and finds every label as probable as any other."""

    @classmethod
    def load(cls, folder, config, generation):
        assert (folder / "runtime.bin").read_bytes() == b"weights"
        return cls(config, generation, torch.device("cpu"))

    def __call__(self, **batch):
        return ModelOutput(losses=batch["labels"].ne(-100) * torch.tensor(8.0).log())

    def generate(
        self,
        input_ids,
        attention_mask=None,
        generation_config=None,
        custom_generate=None,
        decoder_input_ids=None,
        **settings,
    ):
        assert custom_generate is None and attention_mask is not None
        start = torch.full_like(input_ids[:, :1], self.config.decoder_start_token_id)
        return torch.cat([start, input_ids[:, : generation_config.max_new_tokens]], 1)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setitem(ENGINES, "fake", EngineSpec(__name__, "FakeEngine"))


def write_export(checkpoint: Path, name: str = "fake") -> Path:
    folder = checkpoint / "exports" / name
    folder.mkdir(parents=True)
    (folder / "runtime.bin").write_bytes(b"weights")
    (folder / EQUIVALENCE_FILE).write_text(json.dumps({"weights": describe_weights(checkpoint)}))
    (folder / MANIFEST_FILE).write_text(to_json(describe(folder, folder.iterdir())))
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    folder = shutil.copytree(WHOLE, tmp_path / "checkpoint-2")
    write_export(folder)
    return folder


def test_an_engine_has_what_tasks_use_of_a_model(checkpoint):
    engine, task = load_engine("fake", checkpoint)
    model, model_task = load_trained(checkpoint)
    assert isinstance(engine, FakeEngine) and type(task) is type(model_task)
    assert engine.config.to_dict() == model.config.to_dict() and engine.device == model.device
    assert engine.generation_config and engine.generation_config.to_dict() == model.generation_config.to_dict()
    assert engine.can_generate() and not engine.training
    assert engine.eval() is engine and engine.train() is engine and not engine.training


def test_torch_is_the_model_itself(cudnn_attention, checkpoint):
    assert isinstance(load_engine("torch", checkpoint)[0], PreTrainedModel)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_generate_runs_the_export(command, checkpoint, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("5 1\n\n3 2 1\n4\n")
    result = command("generate", checkpoint, "--engine", "fake", "--file", lines, "--batch-size", 2)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["5 1", "", "3 2 1", "4"]
    result = command("generate", checkpoint, "3 2 1", "--engine", "fake", "--set", "max_new_tokens=2")
    assert result.stdout == "3 2\n"


def test_score_says_what_an_engine_does_not_give(command, checkpoint):
    result = command("score", checkpoint, "--engine", "fake", "--split", "validation")
    assert result.returncode == 0 and result.stderr == "--engine fake does not give token_accuracy\n"
    scores = json.loads(result.stdout)
    assert scores["perplexity"] == pytest.approx(8) and scores["exact_match"] == 0
    assert "token_accuracy" not in scores


def test_what_is_no_engine_is_named(command, checkpoint):
    result = command("generate", checkpoint, "1", "--engine", "ctranslate")
    assert result.returncode == 2
    assert result.stderr == "error: --engine: 'ctranslate' is unknown; did you mean ctranslate2?\n"


def test_an_engine_that_is_not_installed_says_how(checkpoint, monkeypatch):
    monkeypatch.setitem(ENGINES, "fake", EngineSpec(__name__, "FakeEngine", ("a_library_that_nobody_has",)))
    with pytest.raises(ConfigError, match=r"fake needs a_library_that_nobody_has: pip install 'teacher-forcing\[exp"):
        load_engine("fake", checkpoint)


def test_the_hub_has_no_exports():
    with pytest.raises(ConfigError, match=r"owner/name is not a folder.*hf download owner/name --local-dir FOLDER"):
        load_engine("fake", "owner/name")


def test_without_an_export_the_command_is_named(checkpoint):
    shutil.rmtree(checkpoint / "exports")
    with pytest.raises(ConfigError, match=rf"no such export; run teacher-forcing export {checkpoint} --to fake"):
        load_engine("fake", checkpoint)


def test_an_export_of_other_weights_is_refused(checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(ConfigError, match=r"was made from other weights .* export again: teacher-forcing export"):
        find_export("fake", checkpoint)


@pytest.mark.parametrize("name", ["runtime.bin", EQUIVALENCE_FILE, MANIFEST_FILE])
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-3])])
def test_a_damaged_export_is_refused(checkpoint, name, harm):
    harm(checkpoint / "exports" / "fake" / name)
    with pytest.raises(ConfigError, match=f"exports/fake is damaged: .*{name}"):
        load_engine("fake", checkpoint)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weights": 3}'])
def test_an_export_that_does_not_say_its_weights_is_refused(checkpoint, text):
    folder = checkpoint / "exports" / "fake"
    (folder / EQUIVALENCE_FILE).write_text(text)
    (folder / MANIFEST_FILE).write_text(to_json(describe(folder, [folder / "runtime.bin"])))
    with pytest.raises(ConfigError, match=r"which weights it was made from|made from other weights"):
        load_engine("fake", checkpoint)
