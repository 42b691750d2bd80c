"""Averages of weights: as their formula says, the same in a run that goes on, and what is used of a run in the end."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.errors import ConfigError, RunError, Stopped
from pipeline.manifest import damage
from pipeline.run import train
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.trained_model import load_trained
from pipeline.training import checkpoints
from pipeline.training.averaging import (
    MovingAverage,
    average_models,
    choose_checkpoints,
    exponential_decay,
    find_begin,
    uniform_decay,
)
from pipeline.training.checkpoints import RAW_WEIGHTS_FILE, find_best
from tests.training.conftest import assert_equal, history, output_dir, spoil, weights

EMA = {"ema_decay": 0.9, "save_steps": 1, "eval_steps": 1}


def raw_weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / RAW_WEIGHTS_FILE)


def test_the_moving_average_follows_its_formula():
    layer = nn.Linear(1, 1, bias=False)
    average, expected = MovingAverage(layer, "training.ema_decay"), layer.weight.item()
    for step in range(1, 8):
        nn.init.constant_(layer.weight, float(step))
        average.update(exponential_decay(step, 0.4))
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
    assert MovingAverage(layer, "training.ema_decay").names == ["weight"]
    with pytest.raises(ConfigError, match=r"training\.ema_decay: weight is in bfloat16"):
        MovingAverage(layer.bfloat16(), "training.ema_decay")


def test_the_mean_begins_behind_a_step():
    layer = nn.Linear(1, 1, bias=False)
    average, seen = MovingAverage(layer, "training.average_patience"), []
    for step in range(1, 7):
        nn.init.constant_(layer.weight, float(step))
        average.update(uniform_decay(step, 3 if step > 3 else None))
        seen.append(average.averages[0].item())
    assert seen == pytest.approx([1, 2, 3, 4, 4.5, 5])


@pytest.mark.parametrize(
    "scores, patience, begin",
    [
        ([5, 4, 3, 2, 1], 1, None),
        ([5, 4, 4.5, 4.6, 4.7], 1, 4),  # worse than 4, and one evaluation lies between
        ([5, 4, 4.5, 4.6, 4.7], 2, 5),
        ([5, 4, 4.5, 4.6, 4.7], 3, None),
        ([5, 4, 4, 4, 4], 1, None),  # no worse
        ([5, 4, 4.9, 3, 2, 7, 8], 1, 6),
        ([1, 2, 3], 5, None),
        ([float("nan"), 5, 4, 4.5, 4.6, 4.7], 1, 5),  # no score
    ],
)
def test_an_average_begins_when_scores_no_longer_improve(scores, patience, begin):
    """By steps, one an evaluation; as the published code has it: worse than min(scores[:-patience])."""
    log = [{"step": step, "eval_loss": score} for step, score in enumerate(scores, 1)]
    assert find_begin([{"step": 1, "loss": 9.0}, *log], "eval_loss", False, patience) == begin
    better = [{"step": line["step"], "eval_bleu": -line["eval_loss"]} for line in log]
    assert find_begin(better, "eval_bleu", True, patience) == begin


def test_scores_that_mean_something_else_are_not_compared():
    log = [{"step": 10 * step, "eval_loss": score} for step, score in enumerate((5, 4, 7, 8, 9), 1)]
    assert find_begin(log, "eval_loss", False, 1) == 30
    assert find_begin(log, "eval_loss", False, 1, turns=[21]) == 50


@pytest.mark.slow
def test_a_mean_over_steps_is_that_of_a_run_that_goes_on(make_config, monkeypatch):
    """Begun behind step 2: the model of a checkpoint is the mean of all weights since, and so it is after a kill."""
    begun = lambda log, *_: 2 if any("eval_loss" in line and line["step"] == 2 for line in log) else None  # noqa: E731
    monkeypatch.setattr("pipeline.training.trainer.find_begin", begun)
    config = make_config(training={"average_patience": 1, "save_steps": 1, "eval_steps": 1})
    folder = train(config).output_dir
    raw = {step: raw_weights(folder / f"checkpoint-{step}") for step in (1, 2, 3, 4)}
    for step in (1, 2, 3):
        assert_equal(folder / f"checkpoint-{step}", raw[step])
    for name, tensor in weights(folder / "checkpoint-4").items():
        torch.testing.assert_close(tensor, (raw[3][name] + raw[4][name]) / 2)
    finished = weights(folder)
    assert_equal(folder / "checkpoint-4", finished)
    for name in ("checkpoint-4/manifest.json", "metrics.json", "model.safetensors"):
        (folder / name).unlink()
    train(config)
    assert_equal(folder, finished)
    assert_equal(folder / "checkpoint-4", finished)
    assert all(torch.equal(tensor, raw[4][name]) for name, tensor in raw_weights(folder / "checkpoint-4").items())


@pytest.mark.slow
def test_a_run_uses_the_average_and_trains_the_weights(make_config, tmp_path):
    """Weights are those of a run without it, bit for bit; what is scored, saved and finished is their average."""
    plain = train(make_config(training={"output_dir": str(tmp_path / "plain"), "save_steps": 1})).output_dir
    result = train(make_config(training=EMA))
    expected: dict[str, torch.Tensor] = {}
    for step in (1, 2, 3, 4):
        checkpoint = result.output_dir / f"checkpoint-{step}"
        raw = raw_weights(checkpoint)
        assert damage(checkpoint) is None
        assert_equal(plain / f"checkpoint-{step}", raw)
        decay = (1 + step) / (10 + step)
        if expected:
            expected = {name: decay * expected[name] + (1 - decay) * tensor for name, tensor in raw.items()}
            for name, tensor in weights(checkpoint).items():
                torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
        expected = weights(checkpoint)
    assert_equal(result.output_dir, weights(result.output_dir / "checkpoint-4"))
    assert not (result.output_dir / RAW_WEIGHTS_FILE).exists()
    last = history(result.output_dir, 4)[-1]
    assert last["eval_loss"] == pytest.approx(result.scores["validation"]["loss"])
    model, _ = load_trained(result.output_dir / "checkpoint-4")
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_best_checkpoint_is_an_average(make_config):
    config = make_config(training=EMA | {"load_best_model_at_end": True, "learning_rate": 0.3, "max_steps": 6})
    folder = train(config).output_dir
    losses = {line["step"]: line["eval_loss"] for line in history(folder, 6) if "eval_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert_equal(folder, weights(folder / f"checkpoint-{best}"))


@pytest.mark.slow
def test_averaging_may_begin_and_end_on_the_way(make_config):
    """It begins with the weights of then, and what goes on without it are the weights, not their average."""
    train(make_config(training={"max_steps": 2, "save_steps": 1}))
    folder = train(make_config(training=EMA | {"max_steps": 3}), accept_changes=True).output_dir
    before, raw = weights(folder / "checkpoint-2"), raw_weights(folder / "checkpoint-3")
    for name, tensor in weights(folder / "checkpoint-3").items():
        torch.testing.assert_close(tensor, before[name] * 4 / 13 + raw[name] * 9 / 13, rtol=1e-5, atol=1e-6)
    plain = {"max_steps": 4, "save_steps": 1, "learning_rate": 0.0}
    assert_equal(train(make_config(training=plain), accept_changes=True).output_dir, raw)


def test_a_skipped_step_is_not_averaged(make_config, at_step):
    at_step(spoil, 3)
    folder = train(make_config(training=EMA)).output_dir
    before, after = (folder / f"checkpoint-{step}" for step in (2, 4))
    decay = 5 / 14
    for name, tensor in weights(after).items():
        expected = decay * weights(before)[name] + (1 - decay) * raw_weights(after)[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)


def killed(*args):
    raise KeyboardInterrupt


# The mean of the best


@pytest.fixture
def make_checkpoints(tmp_path):
    """Makes folders with the log of a run up to their step; returns the whole log."""

    def make(losses: dict[int, float], folder=tmp_path) -> list[dict]:
        log: list[dict] = []
        for step, loss in losses.items():
            log += [{"step": step, "loss": 1.0}, {"step": step, "eval_loss": loss}]
            (folder / f"checkpoint-{step}").mkdir(exist_ok=True)
            state = json.dumps({"log_history": log})
            (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
        return log

    return make


def steps(found) -> list[int]:
    return [checkpoints.step_of(path) for path in found]


def test_the_best_are_found_by_their_score(make_checkpoints, tmp_path):
    log = make_checkpoints({2: 3.0, 4: 1.0, 6: float("nan"), 8: 2.0, 10: 1.0})
    assert steps(find_best(tmp_path, log, "eval_loss", False)) == [4, 10, 8, 2]
    assert steps(find_best(tmp_path, log, "eval_loss", True)) == [2, 8, 4, 10]
    assert steps(find_best(tmp_path, log, "eval_chrf", True)) == []
    # One without an evaluation, one half removed, and scores that mean something else from step 9 on, or 11.
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-8" / "trainer_state.json").unlink()
    assert steps(find_best(tmp_path, log, "eval_loss", False)) == [4, 10, 2]
    assert steps(find_best(tmp_path, log, "eval_loss", False, [9])) == [10]
    assert steps(find_best(tmp_path, log, "eval_loss", False, [3, 11])) == [4, 10]


def test_what_another_course_of_the_run_left_is_not_among_the_best(make_checkpoints, tmp_path):
    make_checkpoints({2: 3.0, 3: 0.5, 4: 0.4, 6: 0.3})
    log = make_checkpoints({2: 3.0, 4: 2.0})
    log.insert(2, {"step": 3, "eval_loss": 2.5})
    assert steps(find_best(tmp_path, log, "eval_loss", False)) == [4, 2]


@pytest.mark.parametrize("is_stopped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_mean_of_the_best_checkpoints(make_config, at_step, monkeypatch, is_stopped):
    """Is what is scored and saved; the rotation keeps them, and a run that goes on takes the same."""
    training = {"max_steps": 8, "eval_steps": 1, "save_steps": 1, "save_total_limit": 1, "learning_rate": 0.3}
    config = make_config(training=training, evaluation={"average_best": 3, "metrics": []})
    if is_stopped:
        with monkeypatch.context():
            at_step(lambda _: os.kill(os.getpid(), signal.SIGTERM), 5)
            with pytest.raises(Stopped):
                train(config)
        monkeypatch.undo()
    folder = train(config).output_dir
    losses = {line["step"]: line["eval_loss"] for line in history(folder, 8) if "eval_loss" in line}
    assert len(losses) == 8
    best = sorted(losses, key=lambda step: losses[step])[:3]
    assert {*best, 8} == {*steps(checkpoints.list_checkpoints(folder))}
    tensors = [weights(folder / f"checkpoint-{step}") for step in best]
    for name, tensor in weights(folder).items():
        torch.testing.assert_close(tensor, sum(others[name] for others in tensors) / 3, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_too_few_with_a_score(make_config):
    training = {"eval_delay": 3, "eval_steps": 1, "save_steps": 1}
    config = make_config(training=training, evaluation={"average_best": 3, "metrics": []})
    with pytest.raises(RunError, match=r"average_best: .* has 2 of 3 with a score; save more often, or lower it"):
        train(config)
    fewer = make_config(training=training, evaluation={"average_best": 2, "metrics": []})
    assert train(fewer, accept_changes=True).scores["validation"]


@pytest.mark.slow
def test_a_stopped_run_keeps_its_newest_checkpoint(make_config, at_step):
    """Trainer would remove all but the best where one is to be kept."""
    best = {"metric_for_best_model": "loss", "save_total_limit": 1, "learning_rate": 3.0}
    at_step(lambda _: os.kill(os.getpid(), signal.SIGTERM), 3)
    config = make_config(
        training={"max_steps": 8, "eval_steps": 1, "save_steps": 1, **best}, evaluation={"metrics": []}
    )
    with pytest.raises(Stopped):
        train(config)
    assert (output_dir(config) / "checkpoint-3").is_dir()


# A model of several


def test_the_mean_of_models_is_a_model(finished_run, tmp_path):
    """With all that the first has beside its weights."""
    sources = [finished_run / "checkpoint-4", finished_run / "checkpoint-2"]
    assert choose_checkpoints(finished_run, 2, is_best=False) == sources
    assert {*choose_checkpoints(finished_run, 2, is_best=True)} == {*sources}
    average_models(sources, tmp_path / "mean")
    assert damage(tmp_path / "mean") is None
    state, before = load_trained(tmp_path / "mean")[0].state_dict(), [weights(source) for source in sources]
    for name, tensor in before[0].items():
        torch.testing.assert_close(state[name], (tensor + before[1][name]) / 2, rtol=1e-6, atol=1e-7)
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "mean" / name).read_bytes() == (sources[0] / name).read_bytes(), name
    assert (tmp_path / "mean" / "modeling_seq2seq.py").is_file()
    config = tmp_path / "mean" / "run.yaml"
    assert config.read_text().startswith("# the weights are the mean of run/checkpoint-4, run/checkpoint-2\n")
    assert load_config(config) == load_config(finished_run / "run.yaml")
    with pytest.raises(ConfigError, match=r"mean is there already"):
        average_models(sources, tmp_path / "mean")
    with pytest.raises(ConfigError, match=r"has 2 of 3 checkpoints with a score; ask for fewer"):
        choose_checkpoints(finished_run, 3, is_best=True)


def test_what_only_training_reads_may_differ(finished_folder, tmp_path):
    first, other = finished_folder / "checkpoint-4", finished_folder / "checkpoint-2"
    (other / "manifest.json").unlink()
    config = json.loads((other / "config.json").read_text())
    changes = {"dropout": config["dropout"] + 0.1, "r_drop": config["r_drop"] + 1, "label_smoothing": 0.2}
    (other / "config.json").write_text(json.dumps(config | changes))
    average_models([first, other], tmp_path / "mean")
    assert (tmp_path / "mean" / "config.json").read_bytes() == (first / "config.json").read_bytes()


def test_models_that_are_not_alike_have_no_mean(finished_folder, make_model, tmp_path):
    first, other = finished_folder / "checkpoint-4", finished_folder / "checkpoint-2"
    (other / "manifest.json").unlink()
    tokenizer = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(tokenizer.replace('"8"', '"x"'))
    with pytest.raises(ConfigError, match=r"checkpoint-2 is not like .*checkpoint-4.*: the token '8' of its tokenizer"):
        average_models([first, other], tmp_path / "mean")
    (other / "tokenizer.json").write_text(tokenizer)
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"attention_heads": 4', '"attention_heads": 2'))
    with pytest.raises(ConfigError, match=r"attention_heads of its config\.json is 2 in place of 4"):
        average_models([first, other], tmp_path / "mean")
    (other / "config.json").write_text(config)
    (other / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"checkpoint-2: no complete checkpoint"):
        average_models([first, other], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
