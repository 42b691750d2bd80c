"""Runs of seconds through `pipeline.run`: what they leave behind, and what is refused before the first step."""

import json
import math
import os
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, TrainerState

from pipeline.errors import ConfigError, DataError
from pipeline.inference.evaluation import Evaluation
from pipeline.run import choose_length_penalty, refuse_where_spread, train, use_all_cores
from pipeline.run_folder import RunFolder
from pipeline.training.checkpoints import list_checkpoints
from pipeline.training.trainer import TeacherForcingTrainer
from tests.conftest import small_config

EACH_STEP = {"logging_steps": 1, "save_steps": 100, "eval_strategy": "no"}
UNSCORED = {"validation": None, "test": None}


def logged(folder, name: str) -> list[float]:
    """All values that the logs of a run have under a name."""
    newest = list_checkpoints(folder)[0]
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [log[name] for log in history if name in log]


def test_what_a_run_leaves(make_config):
    result = train(make_config(generation={"num_beams": 2, "max_new_tokens": 9}))
    folder = result.output_dir
    left = {path.name for path in folder.iterdir()}
    assert left >= {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"}
    assert left >= {"training_curves.png", "metrics.json", "run.yaml", "runs", "checkpoint-2", "checkpoint-4"}
    assert list((folder / "runs").rglob("events.out.tfevents.*"))
    assert not list(folder.rglob("training_args.bin"))
    assert json.loads((folder / "metrics.json").read_text()) == result.scores
    assert set(result.scores["test"]) == {"loss", "perplexity", "token_accuracy", "exact_match"}
    assert result.last is not None and len(result.last.predictions) == 8
    generation = GenerationConfig.from_pretrained(folder)
    assert (generation.num_beams, generation.max_new_tokens) == (2, 9)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert model.config.use_cache is True
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.generate(**tokenizer(["1 2 3"], return_tensors="pt")).shape[0] == 1
    history = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert {"loss", "token_accuracy", "grad_norm"} <= set(history[0])
    assert any("eval_exact_match" in log for log in history)


def test_packed_batches_train(make_config):
    training = {"max_steps": 16, "logging_steps": 4, "learning_rate": 0.03, "eval_strategy": "no", "save_steps": 16}
    folder = train(make_config(data={"packing": True, "batch_tokens": 256}, training=training)).output_dir
    losses = logged(folder, "loss")
    assert losses[-1] < losses[0] - 0.3


def test_a_finished_run_is_only_reported(make_config, finished_folder, no_step):
    changed = (finished_folder / "model.safetensors").stat().st_mtime_ns
    again = train(make_config())
    assert again.was_finished and again.scores == RunFolder(finished_folder).read_scores()
    assert (finished_folder / "model.safetensors").stat().st_mtime_ns == changed


def test_another_config_is_refused_in_the_same_folder(make_config, finished_folder, no_step):
    with pytest.raises(ConfigError, match=r"holds a run with other settings \(model.d_model, training.max_steps\)"):
        train(make_config(model={"d_model": 32}, training={"max_steps": 6}))


def test_a_start_that_failed_leaves_nothing_behind_that_counts(make_config):
    """The tokenizer of a start that was refused is not taken for that of the next one."""
    with pytest.raises(ConfigError, match="top_k"):
        train(make_config(generation={"top_k": 10}, tokenizer={"kind": "character"}))
    folder = train(make_config()).output_dir
    assert AutoTokenizer.from_pretrained(folder).tokenize("1 2") == ["1", "2"]


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"model": {"d_model": 30}}, ConfigError, "model: d_model=30 is not divisible by attention_heads=4"),
        ({"model": {"d_modell": 30}}, ConfigError, "model.d_modell: .*did you mean d_model"),
        ({"model": {"vocab_size": 5}}, ConfigError, "model.vocab_size: 5 is too small for the tokenizer's 12 tokens"),
        ({"model": {"activation_function": "reloo"}}, ConfigError, "model: .*reloo"),
        ({"model": {"dropout": "high"}}, ConfigError, r"model\.dropout: 'high' is not of the kind"),
        ({"generation": {"top_k": 10}}, ConfigError, "(?s)generation: .*`top_k`.*do_sample=True"),
        ({"generation": {"num_beems": 3}}, ConfigError, "generation.num_beems .*did you mean num_beams"),
        ({"data": {"source": "src"}}, DataError, r"reversal \(train\): there is no column 'src'"),
        ({"data": {"test": "tset"}}, ConfigError, "did you mean test"),
        (
            {"tokenizer": {"kind": "words"}},
            ConfigError,
            "'words' is unknown .did you mean 'word'.*; choose from bpe",
        ),
        ({"tokenizer": {"kind": "bpe", "vocab_size": 100}}, ConfigError, "tokenizer.vocab_size: 100 is too small"),
        ({"tokenizer": {"path": "nowhere/at-all"}}, ConfigError, "tokenizer.path: .*nowhere/at-all"),
        ({"evaluation": {"metrics": ["blue"]}}, ConfigError, "evaluation.metrics: 'blue' is not built in"),
        ({"training": {"metric_for_best_model": "bleu"}}, ConfigError, "metric_for_best_model: 'bleu' is not scored"),
        ({"training": {"optim": "adamm"}}, ConfigError, "training: .*adamm"),
        ({"training": {"lr_scheduler_type": "noam"}}, ConfigError, "training.warmup_steps: noam needs"),
        (
            {"training": {"lr_scheduler_type": "noam", "warmup_steps": 2}, "model": {"d_model": 30}},
            ConfigError,
            "model: d_model=30 is not divisible",
        ),
        ({"training": {"load_best_model_at_end": True, "save_steps": 3}}, ConfigError, "training: .*saving steps"),
        ({"training": {"max_steps": -1}, "data": {"streaming": True}}, ConfigError, "training.max_steps: a streamed"),
        ({"data": {"validation": None}}, ConfigError, "training.eval_strategy: .*data.validation"),
        ({"training": {"report_to": ["tensorboard", "swanlab"]}}, ConfigError, "report_to: swanlab is not installed"),
        ({"data": {"packing": True}}, ConfigError, "data.packing: needs data.batch_tokens"),
        (
            {"data": {"packing": True, "batch_tokens": 64}, "model": {"attention_dropout": 0.1}},
            ConfigError,
            "data.packing: needs .* model.attention_dropout=0",
        ),
        ({"hub": {"push": True}}, ConfigError, "hub.model_id: name the repository"),
        ({"training": {"r_drop": 5.0}, "model": {"dropout": 0.0}}, ConfigError, "training.r_drop: .* has no dropout"),
    ],
)
def test_errors_come_before_the_first_step(make_config, no_step, changes, error, message):
    with pytest.raises(error, match=message):
        train(make_config(**changes))


def test_too_short_a_maximum_is_named(make_config):
    with pytest.raises(DataError, match=r"row \d+: target has 5 tokens, where data.max_target_length=3; fix or"):
        train(make_config(data={"max_target_length": 3}))


def test_noam_in_a_run(make_config):
    """The learning rates of the paper's equation for d_model 16, half of them, in a warm-up of two steps."""
    training = {"lr_scheduler_type": "noam", "learning_rate": 0.5, "warmup_steps": 2, "max_steps": 4}
    folder = train(make_config(training={**training, **EACH_STEP})).output_dir
    expected = [0.5 * 16**-0.5 * min(step**-0.5, step * 2**-1.5) for step in (1, 2, 3)]
    assert logged(folder, "learning_rate") == pytest.approx([0.0, *expected])  # the first step has that of step 0


def test_inverse_sqrt_in_a_run(make_config):
    training = {"lr_scheduler_type": "inverse_sqrt", "learning_rate": 0.01, "warmup_steps": 1, "max_steps": 4}
    folder = train(make_config(training={**training, **EACH_STEP})).output_dir
    assert logged(folder, "learning_rate") == pytest.approx([0.0, 0.01, 0.01 * 2**-0.5, 0.01 * 3**-0.5])


def test_plateau_in_a_run(make_config):
    """A learning rate that ruins the model is lowered at each evaluation that is worse than the best one."""
    training: dict[str, object] = {"lr_scheduler_type": "reduce_lr_on_plateau"}
    training |= {"lr_scheduler_kwargs": {"patience": 0, "factor": 0.1}}
    training |= {"metric_for_best_model": "loss", "learning_rate": 3.0, "eval_steps": 1, "max_steps": 6}
    folder = train(make_config(training={**training, **EACH_STEP, "eval_strategy": "steps"})).output_dir
    best, expected = math.inf, [3.0]
    for loss in logged(folder, "eval_loss")[:-1]:
        expected.append(expected[-1] * (1 if loss < best * (1 - 1e-4) else 0.1))
        best = min(best, loss)
    rates = logged(folder, "learning_rate")
    assert rates == pytest.approx(expected) and rates[-1] < 3.0


@pytest.mark.parametrize(
    "training, tolerance",
    [pytest.param({}, 1e-6, marks=pytest.mark.slow), ({"bf16": True, "use_cpu": True}, 0.02)],
    ids=["float32", "bf16"],
)
def test_activations_computed_anew_change_no_loss(make_config, tmp_path, training, tolerance):
    """Nor does bfloat16, to its precision; each step is two micro-batches."""

    def losses(folder: str, **changes) -> list[float]:
        options = {"max_steps": 4, "optim": "sgd", "learning_rate": 0.5, "gradient_accumulation_steps": 2, **EACH_STEP}
        options |= {"output_dir": str(tmp_path / folder), **changes}
        return logged(train(make_config(training=options, model={"dropout": 0.0}, data=UNSCORED)).output_dir, "loss")

    plain = losses("plain")
    # transformers 5.17, the oldest that is supported, knows `activation_checkpointing` by this name only.
    assert losses("changed", gradient_checkpointing=True, **training) == pytest.approx(plain, rel=tolerance)
    assert plain[-1] < plain[0]


def test_smoothing_in_a_run(make_config, tmp_path):
    """The training loss is smoothed, that of evaluation is not; the norm of the gradient is logged before clipping."""

    def first_step(folder: str, **changes) -> dict[str, float]:
        options = {
            "output_dir": str(tmp_path / folder),
            "max_steps": 1,
            "learning_rate": 0.0,
            "eval_steps": 1,
            **EACH_STEP,
        }
        options |= {"eval_strategy": "steps", **changes}
        output_dir = train(make_config(training=options, model={"dropout": 0.0})).output_dir
        return {name: logged(output_dir, name)[0] for name in ("loss", "eval_loss", "grad_norm")}

    plain = first_step("plain")
    smoothed = first_step("smoothed", label_smoothing_factor=0.1, max_grad_norm=0.5, optim="adamw_torch")
    assert smoothed["eval_loss"] == plain["eval_loss"]
    assert smoothed["loss"] != pytest.approx(plain["loss"], rel=1e-3)
    assert smoothed["grad_norm"] > 0.5


def test_r_drop_in_a_run(make_config, tmp_path):
    """Two passes that are equal, as so small a dropout leaves out nothing, are one pass in each log: of the same eight
    rows in every step."""
    data = {"options": {"length": 4, "symbols": 8, "rows": 8, "held_out": 8}, **UNSCORED}

    def logs(folder: str, rows: int, accumulation: int, **changes) -> list[dict[str, float]]:
        training = {"output_dir": str(tmp_path / folder), "max_steps": 2, **EACH_STEP, **changes}
        training |= {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
        result = train(make_config(training=training, model={"dropout": 1e-6}, data=data))
        history = json.loads((result.output_dir / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
        return [log for log in history if "loss" in log]

    for plain, twice in zip(logs("plain", 8, 1), logs("twice", 4, 2, r_drop=5.0), strict=True):
        assert 0 <= twice["kl_divergence"] < 1e-6 and "kl_divergence" not in plain
        for name in ("loss", "token_accuracy", "grad_norm"):
            assert twice[name] == pytest.approx(plain[name], rel=1e-4), name


def test_all_cores_are_used_under_accelerate(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    try:
        for variable, expected in (("1", len(os.sched_getaffinity(0))), ("3", 1)):  # 3 is somebody's own choice
            torch.set_num_threads(1)
            monkeypatch.setenv("OMP_NUM_THREADS", variable)
            use_all_cores()
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_attention_plans_for_no_shape(cudnn_attention, make_config):
    """Of PyTorch's kernels cuDNN's does; the others stay."""
    train(make_config(training={"max_steps": 1}), dry_run=True)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


def test_epochs_and_their_strategies(make_config):
    """Two passes of 64 rows in batches of 8, evaluated and saved where each pass ends."""
    training = {"max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "epoch"}
    folder = train(make_config(training=training)).output_dir
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-16", "checkpoint-9"]
    state = json.loads((folder / "checkpoint-16" / "trainer_state.json").read_text())
    assert state["global_step"] == 16 and state["epoch"] == pytest.approx(2)


@pytest.mark.parametrize("score", ["perplexity", pytest.param("loss", marks=pytest.mark.slow)])
def test_the_best_model_is_kept(make_config, score):
    """A learning rate that ruins the model: what is kept is not the last, but the best on validation."""
    training = {
        "learning_rate": 3.0,
        "max_steps": 6,
        "load_best_model_at_end": True,
        "metric_for_best_model": score,
        "warmup_steps": 4,
    }
    folder = train(make_config(training=training)).output_dir
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())
    losses = {log["step"]: log["eval_loss"] for log in state["log_history"] if "eval_loss" in log}
    best = min(losses, key=lambda step: losses[step])
    assert best == 2
    expected = load_file(folder / f"checkpoint-{best}" / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, expected[name])


def test_early_stopping(make_config):
    training = {"learning_rate": 3.0, "max_steps": 40, "load_best_model_at_end": True, "metric_for_best_model": "loss"}
    folder = train(make_config(training=training, evaluation={"early_stopping_patience": 2})).output_dir
    assert max(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")) < 40


@pytest.mark.slow
def test_early_stopping_by_itself(make_config):
    """It watches the loss: a run whose loss falls goes on to its end, one whose loss rises stops."""
    for rate, is_stopped in ((1e-3, False), (3.0, True)):
        training = {"learning_rate": rate, "max_steps": 16, "output_dir": f"{make_config().output_dir}-{rate}"}
        folder = train(make_config(training=training, evaluation={"early_stopping_patience": 2})).output_dir
        losses = logged(folder, "eval_loss")
        assert (len(losses) < 8) == is_stopped
        assert is_stopped or losses == sorted(losses, reverse=True)


@pytest.mark.slow
def test_a_score_that_rises_stops_nothing_and_cuts_no_rate(make_config):
    """Accuracy on easy data: the rate is cut after each evaluation that is no better than the best, and then only."""
    training: dict[str, object] = {"lr_scheduler_type": "reduce_lr_on_plateau"}
    training |= {"lr_scheduler_kwargs": {"patience": 0}}
    training |= {"metric_for_best_model": "token_accuracy", "learning_rate": 0.02, "eval_steps": 10, "max_steps": 80}
    training |= {"logging_steps": 10, "save_steps": 10}
    data = {"validation": "train", "options": {"length": 2, "symbols": 8, "rows": 24, "held_out": 4}}
    evaluation = {"early_stopping_patience": 2, "metrics": []}
    folder = train(make_config(training=training, data=data, evaluation=evaluation)).output_dir
    best, expected = -1.0, [0.02]
    accuracies = logged(folder, "eval_token_accuracy")
    for accuracy in accuracies[:-1]:
        expected.append(expected[-1] * (1 if accuracy > best * (1 + 1e-4) else 0.1))
        best = max(best, accuracy)
    assert logged(folder, "learning_rate") == pytest.approx(expected)
    assert expected[2] == 0.02 and accuracies[2] > accuracies[0], "nothing has risen, so nothing is tested"


@pytest.mark.slow
@pytest.mark.parametrize("score", ["mse", "mae"])
def test_the_best_forecaster_has_the_lowest_error(tmp_path, score):
    lines = [f"{math.sin(step / 4):.4f}" for step in range(90)]
    (tmp_path / "train.csv").write_text("\n".join(["load", *lines]))
    training = {"load_best_model_at_end": True, "metric_for_best_model": score, "learning_rate": 3e-3, "max_steps": 6}
    config = small_config(
        tmp_path / "run",
        "forecasting",
        data={"path": str(tmp_path), "validation": "train[:40]", "test": None, "options": {}},
        forecasting={"series": ["load"]},
        model={"context_length": 12, "prediction_length": 4, "patch_length": 4, "patch_stride": 2, "d_model": 16},
        training=training,
    )
    folder = train(config).output_dir
    errors = logged(folder, f"eval_{score}")
    assert min(errors) == errors[-1] < errors[0]
    expected = load_file(folder / "checkpoint-6" / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, expected[name])


def test_scores_that_cannot_be_reached_are_told_before_training(make_config, no_step, tmp_path, caplog):
    rows = [{"source": f"{number} a", "target": "A dog" if number else "a dog"} for number in range(4)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(
        data={"path": str(tmp_path), "options": {}, "test": None},
        tokenizer={"kind": "word", "lowercase": True},
        evaluation={"metrics": ["exact_match", "sacrebleu"]},
    )
    with pytest.raises(AssertionError, match="the training was started"):
        train(config)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    (line,) = [line for line in lines if line.startswith("warning: scores: ")]
    assert line.startswith(
        "warning: scores: tokenizer: 3 of 4 targets cannot be written as they stand: 'A dog' becomes"
    )
    assert "the best scores possible are exact_match 0.25 of 1" in line


def test_several_references(make_config, tmp_path):
    """Of a column with lists of texts all count in evaluation; the first is learned."""
    for split, count in (("train", 16), ("validation", 4)):
        rows = [
            {"source": f"{number} a", "target": [f"a {number}", f"b {number}", "c"][: 1 + number % 3]}
            for number in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data: dict[str, object] = {"path": str(tmp_path), "options": {}, "test": None}
    evaluation = {"metrics": ["exact_match", "sacrebleu"]}
    result = train(make_config(data=data, training={"max_steps": 1}, evaluation=evaluation))
    assert result.scores["validation"]["sacrebleu_signature"].startswith("nrefs:var|")
    assert result.last is not None and result.last.predictions[1].reference == ["a 1", "b 1"]
    vocabulary = AutoTokenizer.from_pretrained(result.output_dir).get_vocab()
    assert "a" in vocabulary and "b" not in vocabulary, "the tokenizer is trained on what is learned"


def test_real_pairs_streamed(make_config, shared_data, tmp_path):
    for split in ("train", "validation"):
        lines = (shared_data / "multi30k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{split}.jsonl").write_text("".join(lines[: 600 if split == "train" else 20]), encoding="utf-8")
    data = {"path": str(tmp_path), "options": {}, "source": "en", "target": "fr", "streaming": True, "test": None}
    config = make_config(
        data={**data, "batch_tokens": 512, "shuffle_window": 100},
        tokenizer={"kind": "bpe", "vocab_size": 500},
        training={"max_steps": 2},
        evaluation={"metrics": ["sacrebleu", "chrf"]},
    )
    scores = train(config).scores["validation"]
    assert scores["sacrebleu_signature"] and scores["chrf_signature"] and scores["token_accuracy"] > 0


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("evaluation", "average_checkpoints", 2), ("evaluation", "average_best", 2), ("training", "ema_decay", 0.9)],
)
def test_no_average_of_weights_that_are_spread(make_config, section, key, value):
    config = make_config(**{section: {key: value}})
    refuse_where_spread(config, is_fsdp=False, is_deepspeed=False)
    with pytest.raises(ConfigError, match=rf"{section}\.{key}: not with FSDP"):
        refuse_where_spread(config, is_fsdp=True, is_deepspeed=False)


def test_deepspeed_keeps_weights_of_its_own(make_config):
    refuse_where_spread(make_config(evaluation={"average_best": 2}), is_fsdp=False, is_deepspeed=True)
    with pytest.raises(ConfigError, match=r"training\.ema_decay: not with DeepSpeed"):
        refuse_where_spread(make_config(training={"ema_decay": 0.9}), is_fsdp=False, is_deepspeed=True)


def test_no_adversarial_training_of_weights_that_are_spread(make_config):
    config = make_config("text_classification", training={"adversarial_epsilon": 0.5})
    refuse_where_spread(config, is_fsdp=False, is_deepspeed=False)
    for spread in ({"is_fsdp": True, "is_deepspeed": False}, {"is_fsdp": False, "is_deepspeed": True}):
        with pytest.raises(ConfigError, match=r"training\.adversarial_epsilon: not with (FSDP|DeepSpeed)"):
            refuse_where_spread(config, **spread)


def test_the_mean_of_the_last_checkpoints(make_config):
    """Is what is scored and saved, and a run that was killed before it comes to the same."""
    config = make_config(training={"save_total_limit": 2}, evaluation={"average_checkpoints": 2})
    folder = train(config).output_dir
    before = [load_file(folder / f"checkpoint-{step}" / "model.safetensors") for step in (2, 4)]
    for name, tensor in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(tensor, (before[0][name] + before[1][name]) / 2, rtol=1e-6, atol=1e-7)
    scores = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").unlink()
    assert train(config).scores == scores


@pytest.mark.parametrize("metrics, best", [(["chrf", "exact_match"], 0.6), (["exact_match", "chrf"], 1.0)])
def test_the_best_length_penalty_on_validation(make_config, metrics, best):
    """By the first metric; of equal ones the first."""
    config = make_config(
        generation={"num_beams": 2}, evaluation={"metrics": metrics, "length_penalties": [0.6, 1.0, 1.2]}
    )
    model = SimpleNamespace(generation_config=GenerationConfig(num_beams=2, max_new_tokens=7))
    chrf = {0.6: 50.0, 1.0: 40.0, 1.2: 50.0}

    def score(features, generation):
        assert features == [{"sample_id": 0}] and (generation.num_beams, generation.max_new_tokens) == (2, 7)
        penalty = generation.length_penalty
        return Evaluation({"chrf": chrf[penalty], "exact_match": float(penalty == 1.0), "chrf_signature": "x"}, [], [])

    trainer: Any = SimpleNamespace(model=model, plain_model=model, score=score)
    result, chosen = choose_length_penalty(config, trainer, [{"sample_id": 0}])
    assert result.scores["chrf"] == chrf[best]
    assert chosen["length_penalty"] == best == model.generation_config.length_penalty
    if metrics[0] == "chrf":
        assert chosen["validation_chrf"] == {"0.6": 50.0, "1.0": 40.0, "1.2": 50.0}


@pytest.mark.slow
def test_a_run_that_chooses_its_length_penalty(make_config, command):
    """The test split is decoded with it alone, and so is what the saved model generates later."""
    config = make_config(
        generation={"num_beams": 4},
        evaluation={"metrics": ["chrf"], "length_penalties": [-8.0, 0.0, 8.0]},
        training={"max_steps": 60, "learning_rate": 5e-3, "eval_strategy": "no", "save_steps": 60},
    )
    result = train(config)
    scores = json.loads((result.output_dir / "metrics.json").read_text())
    tried, best = scores["generation"]["validation_chrf"], scores["generation"]["length_penalty"]
    assert [*tried] == ["-8.0", "0.0", "8.0"] and len({*tried.values()}) > 1
    assert tried[str(best)] == max(tried.values()) == scores["validation"]["chrf"]
    assert GenerationConfig.from_pretrained(result.output_dir).length_penalty == best
    for split in ("validation", "test"):
        done = command("score", result.output_dir, "--split", split)
        assert json.loads(done.stdout) == pytest.approx(scores[split])
    assert f"| generation | length_penalty | {best:.4f} |" in (result.output_dir / "README.md").read_text()
    assert train(config).scores == scores  # a finished run is reported


@pytest.mark.slow  # compiles, for which the CPU needs a C++ compiler
def test_packed_batches_train_compiled(make_config):
    """Batches differ in their numbers of tokens, but the shapes that are compiled are few."""
    torch._dynamo.reset()
    graphs = []
    step = TeacherForcingTrainer.training_step

    def counted(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return loss

    options = {"length": 4, "symbols": 8, "rows": 640, "held_out": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TeacherForcingTrainer, "training_step", counted)
        train(
            make_config(
                data={"packing": True, "batch_tokens": 1100, "shuffle_window": 250, "options": options},
                training={"torch_compile": True, "max_steps": 40, "eval_strategy": "no", "save_steps": 40},
            )
        )
    assert graphs[-1] == graphs[9] <= 6  # two of their own shape, then two of any shape


@pytest.fixture
def mixed(make_config, data_set, tmp_path):
    """Makes the config of a run on a stream of the Hub, JSON lines and CSV with bad rows, in two stages."""
    name, commit = data_set("parquet")
    rows = [{"en": f"a {number}", "de": f"{number} a"} for number in range(40)]
    (tmp_path / "clean.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "noisy.csv").write_text("en,de\n" + "b 1,1 b\n,2 b\n" * 20)
    news = {"path": str(tmp_path / "clean.jsonl"), "split": "train", "source": "en", "target": "de"}
    data = {
        "path": name,
        "streaming": True,
        "options": {},
        "mix": {
            "hub": {"rows": 300},
            "clean": {"path": str(tmp_path / "clean.jsonl"), "source": "en", "target": "de", "streaming": False},
            "noisy": {"path": str(tmp_path / "noisy.csv"), "source": "en", "target": "de", "streaming": False},
            "unused": {"path": "owner/not-there"},
        },
        "stages": [
            {"until": "32 rows", "weights": {"hub": 1, "clean": 1, "noisy": 0, "unused": 0}},
            {"weights": {"hub": 2, "clean": 1, "noisy": 1, "unused": 0}},
        ],
        "validation": {"news": news, "hub": {"split": "train[:8]", "streaming": False}},
        "test": {"news": news},
        "on_bad_row": "skip",
        "shuffle_window": 16,
    }

    def make(output: str = "run", **changes):
        training = {
            "max_steps": 8,
            "eval_steps": 4,
            "save_steps": 4,
            "metric_for_best_model": "hub_loss",
            "output_dir": str(tmp_path / output),
            **changes.pop("training", {}),
        }
        changes["data"] = data | changes.get("data", {})
        return make_config(training=training, tokenizer={"kind": "word", "vocab_size": 500}, **changes)

    return make, commit


def test_a_mix_in_a_run(mixed, tmp_path):
    make, commit = mixed
    scores = train(make()).scores
    assert {"loss", "news_loss", "news_exact_match", "hub_loss", "hub_token_accuracy"} <= scores["validation"].keys()
    both = [scores["validation"][f"{name}_loss"] for name in ("news", "hub")]
    assert scores["validation"]["loss"] == pytest.approx(sum(both) / 2) and both[0] != both[1]
    assert scores["test"]["loss"] == scores["test"]["news_loss"]
    corpora = scores["training"]["corpora"]
    assert [*corpora] == ["hub", "clean", "noisy"]  # the one without weight was never opened
    assert sum(corpus["rows"] for corpus in corpora.values()) == 8 * 8
    assert corpora["noisy"]["bad_rows"] == scores["training"]["skipped_rows"] > 0
    assert corpora["clean"]["passes"] == corpora["clean"]["rows"] / 40
    assert corpora["hub"]["tokens"] == pytest.approx(corpora["hub"]["rows"] * (4 + 4), rel=0.1)
    assert logged(tmp_path / "run", "eval_hub_loss") and logged(tmp_path / "run", "corpora/hub/rows")
    state = TrainerState.load_from_json(tmp_path / "run" / "checkpoint-8" / "trainer_state.json")
    assert state.best_metric == min(line["eval_hub_loss"] for line in state.log_history if "eval_hub_loss" in line)
    card = (tmp_path / "run" / "README.md").read_text()
    assert (
        f"- hub: `me/test_a_mix_in_a_run`, split `train`, column `source` to column `target`, at revision `{commit}`"
        in card
    )
    assert f"| clean | {corpora['clean']['rows']} |" in card
    assert "name: me/test_a_mix_in_a_run (hub)" in card and "name: me/test_a_mix_in_a_run\n" not in card


@pytest.mark.parametrize("step", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_a_mix_goes_on_bit_for_bit(mixed, tmp_path, step):
    """The first stage ends after 32 rows, which are four steps."""
    make, _ = mixed
    short = {"save_steps": step, "eval_steps": step}
    whole = train(make("whole", training=short))
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for path in (tmp_path / "run").glob("checkpoint-*"):
        if path.name != f"checkpoint-{step}":
            shutil.rmtree(path)
    for name in ("metrics.json", "model.safetensors", "manifest.json"):
        (tmp_path / "run" / name).unlink()
    again = train(make("run", training=short))
    assert again.scores == whole.scores
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.slow
def test_a_mix_goes_on_with_other_corpora(mixed, tmp_path, caplog):
    make, _ = mixed
    train(make())
    weights = [{"weights": {"hub": 0, "clean": 1, "noisy": 0, "unused": 0}}]
    changed = make(data={"stages": weights}, training={"max_steps": 12})
    with pytest.raises(ConfigError, match=r"other settings \(data.stages, training.max_steps\)"):
        train(changed)
    before = json.loads((tmp_path / "run" / "metrics.json").read_text())["training"]["corpora"]
    after = train(changed, accept_changes=True).scores["training"]["corpora"]
    assert after == {"clean": after["clean"]} and after["clean"]["rows"] == before["clean"]["rows"] + 4 * 8
    state = json.loads((tmp_path / "run" / "run_state.json").read_text())
    assert [lane["first_batch"] == lane["next_batch"] for lane in state["data"]["lanes"]] == [True]  # in a new window
    (tmp_path / "clean.jsonl").write_text('{"en": "a 1", "de": "1 a"}\n' * 20)
    with pytest.raises(ConfigError, match=r"on other data: .*the content of data.mix.clean"):
        train(changed)
    with caplog.at_level("WARNING"):
        train(make(data={"stages": weights}, training={"max_steps": 16}), accept_changes=True)
    assert "the training data are others than before (mix.clean): going on with the first of them" in caplog.text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": {"lanes": 41}}, r"data.mix.clean: data.lanes: 41 lanes need as many training rows, and there are 40"),
        ({"training": {"max_steps": -1}}, r"training.max_steps: corpora of a mix have passes of their own"),
        ({"training": {"save_strategy": "epoch"}}, r"training.save_strategy: each corpus of a mix has passes of its"),
        ({"training": {"metric_for_best_model": "hob_loss"}}, r"'hob_loss' is not scored; did you mean hub_loss\?"),
        ({"data": {"stages": None, "temperature": 2.0}}, r"data.mix.unused: .*not-there"),
        ({"data": {"mix": {"hub": {}}, "stages": None}}, r"data.mix.hub.rows: shares by size need the number of rows"),
    ],
)
def test_a_mix_that_cannot_be(mixed, no_step, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(mixed[0](**changes))


def test_the_score_of_a_language_pair_is_watched(make_config, tmp_path, no_step):
    """Pairs are known when the rows are read, and a wrong one is then named."""
    rows = [{"source": "a b", "target": "b a", "lang": lang} for lang in ("de", "fr")] * 4
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(tmp_path), "options": {}, "test": None, "target_lang": {"column": "lang"}, "source_lang": "en"}
    with pytest.raises(ConfigError, match=r"'en-es_loss' is not scored; did you mean"):
        train(make_config(data=data, training={"metric_for_best_model": "en-es_loss"}))
    with pytest.raises(AssertionError, match="the training was started"):
        train(make_config(data=data, training={"metric_for_best_model": "en-fr_loss"}))


def test_a_mix_of_a_running_text(make_config, no_step):
    with pytest.raises(ConfigError, match=r"data.mix: the rows of language_modeling belong together; give one corpus"):
        train(make_config("language_modeling", data={"mix": {"a": {}}, "options": {}}, evaluation={"metrics": []}))


@pytest.mark.parametrize("goes_on", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_with_filters(make_config, make_pairs, caplog, goes_on):
    """Counts in scores, logs and card; with other rules it goes on, and counts on."""
    folder = make_pairs(rows=40)
    held_out = (folder / "test.jsonl").read_text().splitlines()[5]
    with (folder / "train.jsonl").open("a") as stream:
        stream.write(
            f'{held_out}\n{held_out}\n{{"source": "a", "target": "a"}}\n{{"source": "a b c", "target": "a"}}\n'
        )
    filters = {"drop_held_out": True, "drop_identical": True, "max_length_ratio": 1.5}
    data = {"path": str(folder), "options": {}, "filters": filters, "shuffle_window": 100}
    with caplog.at_level("WARNING"):
        result = train(make_config(data=data, training={"eval_strategy": "no"}))
    assert "are among the training rows" not in caplog.text  # as they are left out
    counts = result.scores["training"]["filters"]["train"]
    assert counts["rows_read"] == 44 and counts["max_length_ratio"] == 1 and counts["drop_held_out"] >= 2
    assert counts["drop_identical"] > 1 and result.scores["training"]["skipped_rows"] == 0  # also those of one letter
    assert json.loads((result.output_dir / "metrics.json").read_text())["training"]["filters"]["train"] == counts
    assert "| train | 44 | `max_length_ratio` | 1 (2.27%) |" in (result.output_dir / "README.md").read_text()
    assert logged(result.output_dir, "filtered_rows")[-1] == sum(counts.values()) - 44
    state = json.loads((result.output_dir / "checkpoint-4" / "run_state.json").read_text())["data"]["lanes"][0]
    assert state["filtered_in_window"] == {"": {name: number for name, number in counts.items() if number}}
    if not goes_on:
        return
    changed = make_config(
        data={**data, "filters": {"drop_identical": True}}, training={"eval_strategy": "no", "max_steps": 6}
    )
    after = train(changed, accept_changes=True).scores["training"]["filters"]["train"]
    assert after == {
        "rows_read": 88,
        "drop_identical": 2 * counts["drop_identical"],
        "max_length_ratio": 1,
        "drop_held_out": counts["drop_held_out"],
    }


def test_a_run_whose_filters_take_all(make_config, no_step):
    data = {
        "filters": {"max_word_length": 1},
        "options": {"length": 4, "symbols": 99, "rows": 64, "held_out": 8, "seed": 1},
    }
    config = make_config(data=data, training={"max_steps": -1, "num_train_epochs": 1})
    with pytest.raises(
        DataError, match=r"none of the 64 training rows can be used; data.filters took 64 of 64: 64 by max"
    ):
        train(config)
