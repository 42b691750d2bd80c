"""What the tests of training share: a run that nothing disturbs, and ways to disturb one."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState

from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration as Model
from pipeline.run import train
from tests.conftest import small_config

LONG = {"max_steps": 8, "eval_strategy": "no", "logging_steps": 1}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def output_dir(config) -> Path:
    return Path(config.training["output_dir"])


def assert_equal(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in weights(folder).items():
        assert torch.equal(tensor, expected[name]), name


def history(folder: Path, step: int) -> list[dict]:
    return TrainerState.load_from_json(folder / f"checkpoint-{step}" / "trainer_state.json").log_history


def spoil(output) -> None:
    output.loss = output.loss * math.nan


def spoil_gradient(output) -> None:
    output.loss.register_hook(lambda gradient: gradient * math.inf)


@pytest.fixture
def at_step(monkeypatch):
    """Run an action in the forward pass of some steps, counted from 1 over the life of the model class."""

    def make(action, *steps):
        original = Model.forward
        calls: list[None] = []

        def forward(self, *args, **kwargs):
            output = original(self, *args, **kwargs)
            if self.training:
                calls.append(None)
                if len(calls) in steps:
                    action(output)
            return output

        monkeypatch.setattr(Model, "forward", forward)
        monkeypatch.setattr("pipeline.run.rehearse", lambda scene: [])  # it goes forward too, and would be counted

    return make


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Path:
    """The folder of a run of eight steps that nothing disturbs, with checkpoints 2, 4, 6 and 8; not to be changed."""
    return train(small_config(tmp_path_factory.mktemp("undisturbed") / "run", training=LONG)).output_dir


@pytest.fixture(scope="session")
def reference(undisturbed) -> dict[str, torch.Tensor]:
    """The final weights of that run."""
    return weights(undisturbed)


@pytest.fixture
def unfinished(undisturbed, make_config) -> Path:
    """A copy of that run as if it was killed before its result was written, where `make_config` has its folder."""
    folder = shutil.copytree(undisturbed, output_dir(make_config()))
    for name in ("metrics.json", "model.safetensors"):
        (folder / name).unlink()
    return folder
