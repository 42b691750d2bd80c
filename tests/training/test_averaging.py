"""Averages of weights: as their formula says, the same in a run that goes on, and what is used of a run in the end."""

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import ConfigError, RunError, Stopped
from pipeline.manifest import damage
from pipeline.run import train
from pipeline.tasks.trained_model import load_trained
from pipeline.training import checkpoints
from pipeline.training.averaging import MovingAverage
from pipeline.training.checkpoints import RAW_WEIGHTS_FILE, find_best
from pipeline.training.trainer import TeacherForcingTrainer
from tests.training.conftest import assert_equal, history, output_dir, weights

EMA = {"ema_decay": 0.9, "save_steps": 1, "eval_steps": 1}


def raw_weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / RAW_WEIGHTS_FILE)


def test_the_moving_average_follows_its_formula():
    layer = nn.Linear(1, 1, bias=False)
    average, expected = MovingAverage(layer, 0.4), layer.weight.item()
    for step in range(1, 8):
        nn.init.constant_(layer.weight, float(step))
        average.update(step)
        decay = min(0.4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.in_model() as kept:
        assert layer.weight.item() == pytest.approx(expected, rel=1e-6) and kept["weight"].item() == 7
    assert layer.weight.item() == 7
    average.put_into_model()
    assert layer.weight.item() == pytest.approx(expected, rel=1e-6)


def test_frozen_weights_are_left_out_and_half_ones_refused():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    assert MovingAverage(layer, 0.9).names == ["weight"]
    with pytest.raises(ConfigError, match=r"training\.ema_decay: weight is in bfloat16"):
        MovingAverage(layer.bfloat16(), 0.9)


def test_a_run_uses_the_average_and_trains_the_weights(make_config, tmp_path):
    """Weights are those of a run without it, bit for bit; what is scored, saved and finished is their average."""
    plain = train(make_config(training={"output_dir": str(tmp_path / "plain"), "save_steps": 1})).output_dir
    result = train(make_config(training=EMA))
    expected = None
    for step in (1, 2, 3, 4):
        checkpoint = result.output_dir / f"checkpoint-{step}"
        raw = raw_weights(checkpoint)
        assert damage(checkpoint) is None
        assert_equal(plain / f"checkpoint-{step}", raw)
        decay = (1 + step) / (10 + step)
        if expected is not None:
            expected = {name: decay * expected[name] + (1 - decay) * tensor for name, tensor in raw.items()}
            for name, tensor in weights(checkpoint).items():
                torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
        expected = weights(checkpoint)
    assert_equal(result.output_dir, weights(result.output_dir / "checkpoint-4"))
    assert not (result.output_dir / RAW_WEIGHTS_FILE).exists()
    last = history(result.output_dir, 4)[-1]
    assert last["eval_loss"] == pytest.approx(result.scores["validation"]["loss"])
    model, _ = load_trained(result.output_dir / "checkpoint-4")
    assert torch.equal(model.state_dict()["model.shared.weight"], expected["model.shared.weight"])


def test_a_run_that_goes_on_has_the_same_average(make_config, tmp_path, at_step, monkeypatch):
    """After a stop, a kill in the middle of a save, and one behind the last step."""
    undisturbed = train(make_config(training=EMA | {"output_dir": str(tmp_path / "undisturbed")})).output_dir
    config = make_config(training=EMA)
    with monkeypatch.context() as patch:
        at_step(lambda _: os.kill(os.getpid(), signal.SIGTERM), 2)
        with pytest.raises(Stopped):
            train(config)
        patch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_run_state", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.run.finish", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    train(config)
    for name in ("", "checkpoint-3", "checkpoint-4"):
        assert_equal(output_dir(config) / name, weights(undisturbed / name))
    assert_equal(output_dir(config) / "checkpoint-4", weights(undisturbed / "checkpoint-4"))
    for name, tensor in raw_weights(output_dir(config) / "checkpoint-4").items():
        assert torch.equal(tensor, raw_weights(undisturbed / "checkpoint-4")[name]), name


def killed(*args):
    raise KeyboardInterrupt
