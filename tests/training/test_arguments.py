"""The section `training` as transformers takes it, and what is refused before anything starts."""

import re

import pytest
from transformers import GenerationConfig

from pipeline.errors import ConfigError
from pipeline.run import train
from pipeline.training.arguments import (
    check_best_group,
    check_best_score,
    check_length_penalties,
    check_settings,
    training_arguments,
    with_max_steps,
)


def test_what_this_project_decides(make_config):
    args = training_arguments(make_config(training={"label_smoothing_factor": 0.1}))
    assert args.label_smoothing_factor == 0, "the model smooths, so that evaluation is not smoothed"
    assert not hasattr(training_arguments(make_config(training={"r_drop": 5.0})), "r_drop"), "nor has this evaluation"
    assert (args.remove_unused_columns, args.ignore_data_skip, args.logging_nan_inf_filter) == (False, True, False)
    assert args.restore_callback_states_from_checkpoint and args.use_cache
    assert args.report_to == ["tensorboard"] and args.ddp_find_unused_parameters is False
    explicit = training_arguments(make_config(training={"report_to": "none", "ddp_find_unused_parameters": True}))
    assert explicit.report_to == [] and explicit.ddp_find_unused_parameters is True


def test_the_config_stays_as_it_is(make_config):
    config = make_config(training={"lr_scheduler_type": "noam", "warmup_steps": 4, "label_smoothing_factor": 0.1})
    before = dict(config.training)
    training_arguments(config)
    assert config.training == before


def test_noam_takes_the_width_of_the_model(make_config):
    training = {"lr_scheduler_type": "noam", "warmup_steps": 4, "learning_rate": 0.5}
    for model, width in (({}, 16), ({"d_model": 64}, 64)):
        args = training_arguments(make_config(training=training, model=model))
        assert (args.lr_scheduler_type, args.warmup_steps) == ("inverse_sqrt", 4)
        assert args.learning_rate == pytest.approx(0.5 * (width * 4) ** -0.5)
    args = training_arguments(make_config("language_modeling", training=training, model={"hidden_size": 100}))
    assert args.learning_rate == pytest.approx(0.5 * (100 * 4) ** -0.5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"training": {"lr_scheduler_type": "noam"}}, r"training\.warmup_steps: noam needs a number of steps"),
        ({"training": {"max_steps": -1}, "data": {"streaming": True}}, r"training\.max_steps: a streamed data set"),
        ({"training": {"optim": "adamm"}}, "training: .*adamm"),
        ({"training": {"fsdp": "full_shard"}}, "training.fsdp: there is one process only; start several by"),
    ],
)
def test_arguments_that_are_refused(make_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        training_arguments(make_config(**changes))


def test_steps_that_are_given_are_not_counted(make_config):
    args = training_arguments(make_config())
    assert with_max_steps(args, lambda: pytest.fail("the rows were read")) is args and args.max_steps == 4


@pytest.mark.parametrize("epochs, accumulation, steps", [(2, 1, 18), (1.5, 1, 14), (2, 4, 5)])
def test_epochs_are_counted_in_steps(make_config, epochs, accumulation, steps):
    """Rounded up, in a copy: the argument itself stays as it was."""
    training = {"max_steps": -1, "num_train_epochs": epochs, "gradient_accumulation_steps": accumulation}
    args = training_arguments(make_config(training=training))
    counted = with_max_steps(args, lambda: 9)
    assert counted.max_steps == steps and args.max_steps == -1 and counted is not args
    assert counted.num_train_epochs == args.num_train_epochs == epochs


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": {"validation": None}}, r"training\.eval_strategy: there is nothing to evaluate on"),
        ({"training": {"report_to": ["swanlab"]}}, "training.report_to: swanlab is not installed; pip install swanlab"),
        (
            {"evaluation": {"early_stopping_patience": 2}, "training": {"eval_strategy": "no"}},
            "evaluation.early_stopping_patience: nothing is evaluated while training; set training.eval_strategy",
        ),
        (
            {"training": {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": True}},
            "training.load_best_model_at_end, .*: the best checkpoint is found by evaluations; set training.eval_str",
        ),
        ({"training": {"eval_strategy": "no", "save_strategy": "best"}}, "the best checkpoint is found by evaluat"),
        ({"data": {"packing": True}}, r"data\.packing: needs data\.batch_tokens$"),
        (
            {"task": "text_classification", "data": {"packing": True, "batch_tokens": 64}},
            r"data\.packing: text_classification cannot pack its rows; leave it out$",
        ),
        (
            {"task": "forecasting", "forecasting": {"series": ["x"]}, "evaluation": {"metrics": ["exact_match"]}},
            r"evaluation\.metrics: forecasting is scored by loss, .* only; give \[\]",
        ),
        ({"evaluation": {"average_checkpoints": 3}, "training": {"save_total_limit": 2}}, "3 must be kept by"),
        ({"evaluation": {"average_checkpoints": 3}}, "3 are more than this run saves"),
        ({"evaluation": {"average_checkpoints": 2}, "training": {"save_strategy": "no"}}, "more than this run saves"),
        ({"training": {"average_patience": 2, "eval_strategy": "no"}}, r"average_patience: nothing is evaluated"),
        ({"training": {"average_patience": 2, "ema_decay": 0.9}}, r"average_patience: training\.ema_decay asks for an"),
        ({"evaluation": {"average_checkpoints": 2, "average_best": 2}}, "another mean; leave one of them out"),
        ({"evaluation": {"average_best": 3}}, "average_best: 3 are more than this run saves"),
        (
            {"evaluation": {"average_best": 2}, "training": {"load_best_model_at_end": True}},
            "best: the finished",
        ),
        ({"evaluation": {"average_best": 2}, "training": {"save_steps": 1}}, "best: each checkpoint needs"),
        (
            {"evaluation": {"average_best": 2}, "training": {"eval_strategy": "no"}},
            "best: each checkpoint needs",
        ),
        (
            {"training": {"load_best_model_at_end": True, "eval_steps": 2, "save_steps": 3}},
            r"training\.load_best_model_at_end requires the saving steps to be .* found 3, .* of 2",
        ),
        ({"training": {"lr_scheduler_kwargs": {"a": 1}}}, "training.lr_scheduler_kwargs: .*unexpected keyword"),
        ({"training": {"optim_args": "a"}}, "training.optim=.* with optim_args=a: "),
        (
            {"task": "text_classification", "training": {"adversarial_epsilon": 0.5, "fp16": True}},
            "training.adversarial_epsilon: not with fp16, .*; train with bf16 or in float32, or leave it out",
        ),
        *(
            (
                {
                    "task": "text_classification",
                    "training": {"adversarial_epsilon": 0.5, f"{kind}_checkpointing_kwargs": {"use_reentrant": True}},
                },
                f"training.{kind}_checkpointing_kwargs: use_reentrant gives no gradient .*; set it to false",
            )
            for kind in ("activation", "gradient")
        ),
        ({"training": {"use_liger_kernel": True}}, "training.use_liger_kernel: liger-kernel is not installed"),
    ],
)
def test_settings_that_would_fail_later(make_config, changes, message):
    config = make_config(**changes)
    with pytest.raises(ConfigError, match=message):
        check_settings(config, training_arguments(config))


CHOICE = {"length_penalties": [0.6, 1.0]}
BEAMS = {"num_beams": 2}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"evaluation": CHOICE}, "a search without beams has no length penalty; set generation.num_beams=5"),
        ({"generation": {"num_beams": 2, "length_penalty": 1.0}}, "generation.length_penalty is given as well"),
        (
            {"data": {"validation": None}, "training": {"eval_strategy": "no"}, "generation": BEAMS},
            "the best is chosen on validation",
        ),
        (
            {"evaluation": CHOICE | {"metrics": []}, "generation": BEAMS},
            "the first of evaluation.metrics chooses the best",
        ),
        ({"evaluation": CHOICE | {"metrics": ["meteor"]}, "generation": BEAMS}, "put one of exact_match, sacrebleu"),
    ],
)
def test_length_penalties_that_cannot_be_compared(make_config, make_model, changes, message):
    config = make_config(**({"evaluation": CHOICE} | changes))
    model = make_model()
    model.generation_config = GenerationConfig(num_beams=config.generation.get("num_beams"))
    with pytest.raises(ConfigError, match=rf"^evaluation\.length_penalties: .*{message}"):
        check_length_penalties(config, model)


SERIES = {"forecasting": {"series": ["x"]}}


@pytest.mark.parametrize(
    "task, best, greater_is_better",
    [
        ("sequence_to_sequence", "loss", False),
        ("sequence_to_sequence", "eval_perplexity", False),
        ("sequence_to_sequence", "token_accuracy", True),
        ("sequence_to_sequence", "sacrebleu", True),
        ("sequence_to_sequence", "eval_chrf", True),
        ("sequence_to_sequence", "exact_match", True),
        ("language_modeling", "perplexity", False),
        ("text_classification", "accuracy", True),
        ("text_classification", "macro_f1", True),
        *(("forecasting", name, False) for name in ("mse", "eval_mae", "mse_original", "mae_original")),
    ],
)
def test_a_score_knows_which_value_is_better(make_config, task, best, greater_is_better):
    """Whatever watches it: a schedule is told the same."""
    names = {"sequence_to_sequence": ["sacrebleu", "chrf", "exact_match"], "text_classification": ["macro_f1"]}
    sections = {"evaluation": {"metrics": names.get(task, [])}, **(SERIES if task == "forecasting" else {})}
    for schedule in ("reduce_lr_on_plateau", "greedy", "linear"):
        training = {"metric_for_best_model": best, "lr_scheduler_type": schedule, "load_best_model_at_end": True}
        args = training_arguments(make_config(task, training=training, **sections))
        assert (args.metric_for_best_model, args.greater_is_better) == (best.removeprefix("eval_"), greater_is_better)
        mode = {"mode": "max" if greater_is_better else "min"}
        assert (args.lr_scheduler_kwargs or {}) == (mode if schedule != "linear" else {})
    said = training | {"greater_is_better": greater_is_better}
    assert training_arguments(make_config(task, training=said, **sections)).greater_is_better == greater_is_better
    said = training | {"greater_is_better": not greater_is_better}
    with pytest.raises(ConfigError, match=r"training\.greater_is_better: a \w+ \w+ is better; set it to (true|false)"):
        training_arguments(make_config(task, training=said, **sections))


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": {"early_stopping_patience": 2}},
        {"training": {"load_best_model_at_end": True}},
        {"training": {"save_strategy": "best"}},
        {"training": {"lr_scheduler_type": "reduce_lr_on_plateau"}},
        {"training": {"lr_scheduler_type": "greedy", "greater_is_better": False}},
    ],
)
def test_what_watches_a_score_watches_the_loss_by_default(make_config, changes):
    config = make_config(**changes)
    args = training_arguments(config)
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)
    check_settings(config, args)
    assert training_arguments(make_config()).metric_for_best_model is None


@pytest.mark.parametrize(
    "training, metrics, message",
    [
        (
            {"metric_for_best_model": "eval_bleu"},
            ["sacrebleu"],
            "best_model: 'bleu' is not scored; did you mean sacreb",
        ),
        ({"metric_for_best_model": ""}, [], "'' is not scored; choose from loss, perplexity, token_accuracy"),
        ({"metric_for_best_model": "perplexty"}, [], "'perplexty' is not scored; did you mean perplexity"),
        ({"metric_for_best_model": "sacrebleu"}, ["chrf"], "'sacrebleu' is not scored; choose from chrf, loss"),
        ({"metric_for_best_model": "rougeL"}, ["rouge"], r"training\.greater_is_better: .* if rouge gives rougeL, set"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"mode": "max"}},
            [],
            r"training\.lr_scheduler_kwargs: mode=max is wrong for loss",
        ),
        (
            {"lr_scheduler_type": "greedy", "lr_scheduler_kwargs": "patience"},
            [],
            r"training\.lr_scheduler_kwargs: Input should be a valid dictionary",
        ),
    ],
)
def test_a_score_that_is_not_given_or_not_known(make_config, training, metrics, message):
    with pytest.raises(ConfigError, match=message):
        training_arguments(make_config(training=training, evaluation={"metrics": metrics}))


def test_arguments_of_a_schedule_stay(make_config):
    kwargs = {"mode": "max", "patience": 0}
    training = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "token_accuracy"}
    for given in (kwargs, {"patience": 0}):
        args = training_arguments(make_config(training=training | {"lr_scheduler_kwargs": given}))
        assert args.lr_scheduler_kwargs == kwargs


@pytest.mark.parametrize("greater_is_better", [False, True])
def test_a_score_of_another_metric_is_told_its_better_value(make_config, greater_is_better):
    training = {"metric_for_best_model": "eval_wer", "greater_is_better": greater_is_better}
    config = make_config(training=training, evaluation={"metrics": ["their/metrics"]})
    args = training_arguments(config)
    assert args.greater_is_better == greater_is_better
    check_best_score(config, args, [lambda *_: {"wer": 0.5, "wer_signature": "x"}])
    with pytest.raises(ConfigError, match="for_best_model: 'wer' is not scored; did you mean cer"):
        check_best_score(config, args, [lambda *_: {"cer": 0.5, "wer": "a text"}])
    check_best_score(make_config(), training_arguments(make_config()), [lambda *_: pytest.fail("nothing is watched")])


@pytest.mark.parametrize("training", [{"save_total_limit": 1}, {"load_best_model_at_end": True}])
def test_a_mean_of_checkpoints_that_are_not_kept(make_config, no_step, training):
    with pytest.raises(ConfigError, match=r"evaluation\.average_checkpoints: 2 must be kept"):
        train(make_config(training=training, evaluation={"average_checkpoints": 2}))


def test_the_pair_to_watch_must_be_there(make_config):
    data = {"target_lang": {"column": "language"}}
    for best in ("loss", "fr_loss", "eval_fr_loss"):
        check_best_group(make_config(data=data, training={"metric_for_best_model": best}), ["de", "fr"])
    with pytest.raises(ConfigError, match="'xx_loss' is not scored; did you mean"):
        check_best_group(make_config(data=data, training={"metric_for_best_model": "xx_loss"}), ["de", "fr"])


def test_bf16_alone_is_enough_on_a_cpu(make_config, monkeypatch):
    monkeypatch.setattr("pipeline.training.arguments.has_accelerator", lambda: False)
    args = training_arguments(make_config(training={"bf16": True, "use_cpu": False}))
    assert args.use_cpu and args.device.type == "cpu" and args.mixed_precision == "bf16"


@pytest.mark.parametrize(
    "is_used, capabilities, advice",
    [
        (False, {"amx_bf16": True, "avx512_bf16": True}, r"faster in bfloat16 \(amx_bf16\): training\.bf16=true"),
        (False, {"amx_bf16": False, "avx512_bf16": True}, r"faster in bfloat16 \(avx512_bf16\)"),
        (True, {"amx_bf16": False, "avx512_bf16": False}, "has no instructions for bfloat16, so training.bf16 makes"),
        (True, {"avx512_bf16": True}, None),
        (False, {"avx512_bf16": False}, None),
        (True, {}, None),
    ],
)
def test_the_log_says_whether_bf16_pays_on_this_cpu(make_config, monkeypatch, caplog, is_used, capabilities, advice):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities, raising=False)
    config = make_config(training={"bf16": is_used, "use_cpu": True})
    with caplog.at_level("INFO", logger="pipeline.training.arguments"):
        check_settings(config, training_arguments(config))
    assert re.search(advice, caplog.text) if advice else "bfloat16" not in caplog.text
