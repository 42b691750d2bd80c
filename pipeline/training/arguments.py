"""The section `training` of a config as transformers takes it, and what can be known of it before anything starts."""

import copy
import logging
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, SchedulerType, Seq2SeqTrainingArguments, Trainer, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.training_args import ParallelMode
from transformers.utils import is_liger_kernel_available

from pipeline.config import Config, EvaluationConfig
from pipeline.errors import ConfigError, nearest
from pipeline.inference.metrics import METRICS, Metric, score_names
from pipeline.library_settings import OwnTraining
from pipeline.tasks.base import Better
from pipeline.tasks.registry import get_model, get_task
from pipeline.training.ranks import has_accelerator, must_join_on_cpu
from pipeline.training.schedules import noam

BF16_UNITS = ("amx_bf16", "avx512_bf16")  # of CPUs, by torch's names
WATCHING_SCHEDULES = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)  # act on a score

logger = logging.getLogger(__name__)


def training_arguments(config: Config) -> Seq2SeqTrainingArguments:
    """Make transformers' arguments of `training`, with what this project decides set.

    Raises:
        ConfigError: when transformers refuses a value or a combination.
    """
    values = {name: value for name, value in config.training.items() if name not in OwnTraining.model_fields}
    if values.get("lr_scheduler_type") == "noam":
        warmup_steps = values.get("warmup_steps", 0)
        if warmup_steps < 1:
            raise ConfigError("training.warmup_steps: noam needs a number of steps, such as 4000")
        model_config = get_model(config).config()
        name = model_config.attribute_map.get("hidden_size", "hidden_size")  # of the size that the paper calls d_model
        d_model = config.model.get(name, getattr(model_config, name))
        values |= noam(d_model, int(warmup_steps), values.get("learning_rate", 1.0))
    if values.get("max_steps", -1) <= 0 and config.data.mix is not None:
        raise ConfigError("training.max_steps: corpora of a mix have passes of their own; give the number of steps")
    if values.get("max_steps", -1) <= 0 and config.data.streaming:
        raise ConfigError("training.max_steps: a streamed data set has no length; give the number of steps")
    values.pop("label_smoothing_factor", None)  # the model's own, so that evaluation stays unsmoothed
    values |= best_score(config)
    values.setdefault("report_to", "tensorboard")
    values.setdefault("ddp_find_unused_parameters", False)  # there are none, and the search costs a walk over the graph
    is_bf16 = values.get("bf16") or values.get("bf16_full_eval")
    if must_join_on_cpu() or (is_bf16 and not has_accelerator()):
        # Else each process would train by itself, and transformers would refuse bf16, which CPUs have as well.
        values["use_cpu"] = True
    values.setdefault("use_cache", True)  # Trainer writes it into the model's config, where False slows generation
    try:
        args = Seq2SeqTrainingArguments(
            **values,
            remove_unused_columns=False,
            ignore_data_skip=True,  # the loader goes on where it was, without replaying
            restore_callback_states_from_checkpoint=True,  # the patience of early stopping
            logging_nan_inf_filter=False,  # it hides what our trainer counts and skips
        )
    except (ValueError, TypeError, ImportError) as error:
        keys = re.sub(r"--(?=[a-z])", "training.", str(error))  # transformers calls them as options of a command
        raise ConfigError(f"training: {keys}") from error
    if args.fsdp and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ConfigError(
            "training.fsdp: there is one process only; start several by `accelerate launch`, or leave it out"
        )
    if args.lr_scheduler_type in WATCHING_SCHEDULES:
        args.lr_scheduler_kwargs = _with_mode(args)
    return args


def best_score(config: Config, is_watched: bool = False) -> dict[str, Any]:
    """Return the arguments that tell Trainer which score to watch, if anything does, and which value is better.

    Left to itself, Trainer takes a higher value for the better one unless the name of the score ends in "loss".

    Args:
        is_watched: whether something does that is not in the config.

    Raises:
        ConfigError: for a score that the run does not give, whose better value is not known, or is another than said.
    """
    training = config.training
    is_watched = (
        is_watched
        or training.get("load_best_model_at_end")
        or training.get("save_strategy") == "best"
        or training.get("lr_scheduler_type") in WATCHING_SCHEDULES
        or config.evaluation.early_stopping_patience is not None
        or config.evaluation.average_best is not None
        or config.average_patience is not None
    )
    name = training.get("metric_for_best_model")
    if name is None and is_watched:
        name = "loss"
    if name is None:
        return {}
    name = name.removeprefix("eval_")
    said = training.get("greater_is_better")
    known = _known_scores(config)
    if name in known:
        greater_is_better = known[name] == "higher"
        if said not in (None, greater_is_better):
            raise ConfigError(
                f"training.greater_is_better: a {known[name]} {name} is better; set it to "
                f"{str(greater_is_better).lower()}, or leave it out"
            )
        return {"metric_for_best_model": name, "greater_is_better": greater_is_better}
    others = [metric for metric in config.evaluation.metrics if metric not in METRICS]
    if not others:
        raise ConfigError(f"training.metric_for_best_model: {name!r} is not scored{nearest(name, known)}")
    if said is None:
        raise ConfigError(
            f"training.greater_is_better: whether a higher {name} is better is known of {', '.join(known)} only; if "
            f"{' or '.join(others)} gives {name}, set it to true or false, else correct training.metric_for_best_model"
        )
    return {"metric_for_best_model": name, "greater_is_better": said}


def _known_scores(config: Config) -> dict[str, Better]:
    """Return the scores of the task and of this project's metrics, with which value is better; of each set as well."""
    known = _plain_scores(config)
    sets = config.data.held_out("validation")
    known |= {f"{group}_{name}": better for group in sets if group for name, better in known.items()}
    best = str(config.training.get("metric_for_best_model", "")).removeprefix("eval_")
    has_pairs = any(isinstance(mark, str) for rows in sets.values() for mark in rows.marks.values())
    behind = next((name for name in known if best.endswith(f"_{name}")), None)
    if has_pairs and behind is not None and best not in known:  # of a language pair, which the data say
        known[best] = known[behind]
    return known


def _plain_scores(config: Config) -> dict[str, Better]:
    metrics = {name: METRICS[name].better for name in config.evaluation.metrics if name in METRICS}
    return get_task(config.task).scores | metrics


def _with_mode(args: Seq2SeqTrainingArguments) -> dict[str, Any]:
    """Return the arguments of a schedule that watches a score, with which value of it is better."""
    kwargs, mode = args.lr_scheduler_kwargs or {}, "max" if args.greater_is_better else "min"
    if kwargs.get("mode", mode) != mode:
        raise ConfigError(
            f"training.lr_scheduler_kwargs: mode={kwargs['mode']} is wrong for {args.metric_for_best_model}, which is "
            f"watched; leave mode out, as it is known to be {mode}"
        )
    return {**kwargs, "mode": mode}


def with_max_steps(args: Seq2SeqTrainingArguments, count_batches: Callable[[], int]) -> Seq2SeqTrainingArguments:
    """Return arguments that count steps: a run counted in epochs has the batches of its first pass counted.

    All rows are read and encoded once for that.
    """
    if args.max_steps > 0:
        return args
    batches_a_step = args.gradient_accumulation_steps * PartialState().num_processes
    counted = copy.copy(args)
    counted.max_steps = math.ceil(args.num_train_epochs * count_batches() / batches_a_step)
    return counted


def check_settings(config: Config, args: Seq2SeqTrainingArguments) -> None:
    """Find now what would otherwise fail at the first evaluation, or after the training.

    Raises:
        ConfigError: for an evaluation without data, a logger that is not installed, a mean of checkpoints that are not
            kept, packing that the task cannot do, a best checkpoint that no evaluation finds, or adversarial training
            in fp16.
    """
    task, evaluation = get_task(config.task), config.evaluation
    _check_optimizer(args)
    _check_machine(args)
    if args.eval_strategy != "no" and config.data.validation is None:
        raise ConfigError(
            "training.eval_strategy: there is nothing to evaluate on; give data.validation, or set it to no"
        )
    for name in args.report_to:
        if name not in get_available_reporting_integrations():
            raise ConfigError(f"training.report_to: {name} is not installed; pip install {name}, or leave it out")
    _check_average(evaluation, args)
    _check_patience(config, args)
    _check_mix(config, args)
    _check_adversarial(config, args)
    if config.data.packing and not task.can_pack:
        raise ConfigError(f"data.packing: {config.task} cannot pack its rows; leave it out")
    if config.data.packing and not config.data.batch_tokens:
        raise ConfigError("data.packing: needs data.batch_tokens")
    if evaluation.metrics and not task.has_metrics:
        raise ConfigError(f"evaluation.metrics: {config.task} is scored by {', '.join(task.scores)} only; give []")
    if args.eval_strategy == "no" and evaluation.early_stopping_patience is not None:
        raise ConfigError(
            "evaluation.early_stopping_patience: nothing is evaluated while training; set training.eval_strategy to "
            "steps or epoch"
        )
    if args.eval_strategy == "no" and (args.load_best_model_at_end or args.save_strategy == "best"):
        raise ConfigError(
            "training.load_best_model_at_end, training.save_strategy: the best checkpoint is found by evaluations; set "
            "training.eval_strategy to steps or epoch"
        )


def _check_mix(config: Config, args: Seq2SeqTrainingArguments) -> None:
    """Refuse what a mixture has not: an order of its rows, and passes as a whole."""
    task = get_task(config.task)
    if config.data.mix is None:
        return
    if not (task.has_independent_rows and task.text_columns):
        raise ConfigError(f"data.mix: the rows of {config.task} belong together; give one corpus, as data.path")
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if getattr(args, name) == "epoch":
            raise ConfigError(f"training.{name}: each corpus of a mix has passes of its own; set it to steps")


def _check_adversarial(config: Config, args: Seq2SeqTrainingArguments) -> None:
    """Refuse what spoils or forbids a gradient between two passes, which no loss scaler reaches."""
    if not config.adversarial_epsilon:
        return
    if args.mixed_precision == "fp16":
        raise ConfigError(
            "training.adversarial_epsilon: not with fp16, in which the gradient that says where to move a text becomes "
            "0 for one that the model is sure of; train with bf16 or in float32, or leave it out"
        )
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):  # the old name of the first
        if (config.training.get(name) or {}).get("use_reentrant"):
            raise ConfigError(
                f"training.{name}: use_reentrant gives no gradient between two passes, which "
                "training.adversarial_epsilon needs; set it to false"
            )


def _check_machine(args: Seq2SeqTrainingArguments) -> None:
    """Refuse what this machine, or the way that the run was started, does not offer."""
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ConfigError("training.use_liger_kernel: liger-kernel is not installed; leave it out")
    if args.device.type == "cpu" and (advice := find_bf16_advice(args.mixed_precision == "bf16", cpu_capabilities())):
        logger.info("%s", advice)


def cpu_capabilities() -> Mapping[str, Any]:
    """Return what the CPU can do, by the names of torch; nothing where an older torch does not tell."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def find_bf16_advice(is_used: bool, capabilities: Mapping[str, Any]) -> str | None:
    """Say where a CPU would train faster with bf16, or faster without it; None where neither is known.

    Args:
        is_used: whether products are computed in bf16.
        capabilities: as `cpu_capabilities` returns them.
    """
    fast = [name for name in BF16_UNITS if capabilities.get(name)]
    if fast and not is_used:
        return f"this CPU multiplies matrices faster in bfloat16 ({fast[0]}): training.bf16=true usually trains faster"
    if is_used and capabilities and not fast:
        return "this CPU has no instructions for bfloat16, so training.bf16 makes it slower; leave it out"
    return None


def check_best_score(config: Config, args: Seq2SeqTrainingArguments, metrics: Sequence[Metric]) -> None:
    """Check that a score that is none of this project's is given by the metrics, by calling them once.

    Raises:
        ConfigError: naming the scores that are given.
    """
    best, known = args.metric_for_best_model, _known_scores(config)
    if best is None or best in known:
        return
    names = [*known, *score_names(metrics)]
    if best not in names:
        raise ConfigError(f"training.metric_for_best_model: {best!r} is not scored{nearest(best, names)}")


def check_best_group(config: Config, groups: Collection[str]) -> None:
    """Check that the score to watch is of a set or language pair that there is, where it is of one.

    Args:
        groups: of validation, see `evaluation.groups_of`.

    Raises:
        ConfigError: with the name that is nearest.
    """
    best = str(config.training.get("metric_for_best_model", "loss")).removeprefix("eval_")
    plain = _plain_scores(config)
    given = [*plain, *(f"{group}_{name}" for group in groups for name in plain)]
    if best in _known_scores(config) and best not in given:
        raise ConfigError(f"training.metric_for_best_model: {best!r} is not scored{nearest(best, given)}")


def check_length_penalties(config: Config, model: PreTrainedModel) -> None:
    """Check that `evaluation.length_penalties`, where they are given, can be compared, and change something.

    Raises:
        ConfigError: for a model or a search without a length penalty, nothing to compare by, or one that is chosen.
    """
    if config.evaluation.length_penalties is None:
        return
    metrics, problem = config.evaluation.metrics, None
    if not model.can_generate():
        problem = f"a {type(model).__name__} generates no text; leave it out"
    elif (model.generation_config.num_beams or 1) == 1:
        problem = "a search without beams has no length penalty; set generation.num_beams=5, or leave it out"
    elif "length_penalty" in config.generation:
        problem = "generation.length_penalty is given as well; leave one of both out"
    elif config.data.validation is None:
        problem = "the best is chosen on validation; give data.validation, or leave it out"
    elif not metrics or metrics[0] not in METRICS:
        problem = f"the first of evaluation.metrics chooses the best; put one of {', '.join(METRICS)} there"
    if problem:
        raise ConfigError(f"evaluation.length_penalties: {problem}")


def _check_average(evaluation: EvaluationConfig, args: Seq2SeqTrainingArguments) -> None:
    """Refuse a mean of more checkpoints than are written, kept or scored."""
    last, best = evaluation.average_checkpoints or 0, evaluation.average_best or 0
    key = "evaluation.average_best" if best else "evaluation.average_checkpoints"
    if last and best:
        raise ConfigError(
            "evaluation.average_best: evaluation.average_checkpoints asks for another mean; leave one of them out"
        )
    if last > (args.save_total_limit or last) or (last and args.load_best_model_at_end):
        raise ConfigError(
            f"{key}: {last} must be kept by training.save_total_limit, and training.load_best_model_at_end=false"
        )
    if best and args.load_best_model_at_end:
        raise ConfigError(f"{key}: the finished model is the mean; set training.load_best_model_at_end=false")
    if best and args.save_strategy != "no" and not _is_scored_when_saved(args):
        raise ConfigError(
            f"{key}: each checkpoint needs a score; evaluate whenever one is saved, by training.eval_strategy as "
            "save_strategy and save_steps a multiple of eval_steps"
        )
    if last + best > count_saves(args):
        raise ConfigError(
            f"{key}: {last + best} are more than this run saves; save more often, by training.save_strategy=steps and "
            "a smaller training.save_steps"
        )


def _check_patience(config: Config, args: Seq2SeqTrainingArguments) -> None:
    """Refuse an average that begins by scores where there are none, or another average beside it."""
    if config.average_patience is None:
        return
    if config.ema_decay is not None:
        raise ConfigError("training.average_patience: training.ema_decay asks for another average; leave one out")
    if args.eval_strategy == "no":
        raise ConfigError(
            "training.average_patience: nothing is evaluated while training; set training.eval_strategy to steps or "
            "epoch"
        )


def _is_scored_when_saved(args: Seq2SeqTrainingArguments) -> bool:
    """Tell whether every checkpoint is evaluated, which for load_best_model_at_end transformers sees to."""
    if args.save_strategy == "best":
        return args.eval_strategy != "no"
    if args.save_strategy != args.eval_strategy:
        return False
    if args.save_strategy != "steps":
        return True
    ratio = args.save_steps / args.eval_steps
    return round(ratio) > 0 and math.isclose(ratio, round(ratio)) and (args.save_steps < 1) == (args.eval_steps < 1)


def count_saves(args: Seq2SeqTrainingArguments) -> float:
    """Count the checkpoints that a run writes, where its steps are known; else infinity."""
    if args.save_strategy == "no":
        return 0
    if args.save_strategy != "steps" or args.max_steps < 1:
        return math.inf
    return math.ceil(args.max_steps / (args.save_steps if args.save_steps >= 1 else args.save_steps * args.max_steps))


def _check_optimizer(args: Seq2SeqTrainingArguments) -> None:
    """Make optimizer and schedule for one weight, as their settings are looked at only then.

    Raises:
        ConfigError: with what transformers or torch says of them.
    """
    weights = [torch.nn.Parameter(torch.zeros(1))]
    try:
        if args.optim_target_modules is None:
            optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args)
            if isinstance(optimizer_class, type):  # else it is made of the whole model
                optimizer_class(weights, **settings)
    except (ValueError, TypeError, ImportError) as error:
        name = str(getattr(args.optim, "value", args.optim))
        raise ConfigError(f"training.optim={name} with optim_args={args.optim_args}: {error}") from error
    try:
        get_scheduler(
            args.lr_scheduler_type,
            torch.optim.SGD(weights, lr=args.learning_rate),
            num_warmup_steps=1,
            num_training_steps=args.max_steps if args.max_steps > 0 else 1000,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"training.lr_scheduler_kwargs: {error}") from error
