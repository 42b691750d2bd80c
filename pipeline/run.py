"""One run, from a config to a finished model: checks first, then training, then scores, curves and a card."""

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedModel, Seq2SeqTrainingArguments

from pipeline import plots
from pipeline.config import Config, DataConfig
from pipeline.data.batch_loader import BatchLoader
from pipeline.data.hub_reading import iterate_rows, retry_seconds
from pipeline.data.lane_rows import is_divisible
from pipeline.data.splits import Rows, open_split
from pipeline.data_config import HELD_OUT_SPLITS, HeldOutSplit, errors_of, place_of
from pipeline.errors import ConfigError, RunError
from pipeline.inference.evaluation import Evaluation, groups_of
from pipeline.inference.metrics import METRICS, Metric, load_metrics
from pipeline.publishing import forms, hub
from pipeline.publishing.card import render_card
from pipeline.rehearsal import Finding, Scene, SeenRows, raise_errors, rehearse, seen_rows
from pipeline.run_folder import ResumePoint, RunFolder
from pipeline.setup.generation_setup import changed_generation, generation_config
from pipeline.setup.loader_setup import build_filters, build_loader, count_lanes, find_all_duplicates
from pipeline.setup.model_factory import build_model, find_pretrained, is_own, stored_settings
from pipeline.setup.tokenizer_setup import check_tokenizer, prepare_tokenizer, typical_rows
from pipeline.signals import is_launched_by_accelerate
from pipeline.tasks.base import Feature, Task
from pipeline.tasks.encoding import encode_opened, join_sets
from pipeline.tasks.registry import get_task
from pipeline.tasks.trained_model import use_attention_of_any_shape
from pipeline.training.arguments import (
    check_best_group,
    check_best_score,
    check_length_penalties,
    check_settings,
    training_arguments,
    with_max_steps,
)
from pipeline.training.changes import describe_phases, refuse_unused
from pipeline.training.checkpoints import read_steps
from pipeline.training.ranks import fail_together, from_main_process, lost_peers_explained, together
from pipeline.training.step_guard import explain_divergence
from pipeline.training.trainer import TeacherForcingTrainer

CURVES_FILE = "training_curves.png"
BATCH_ROWS = "training.per_device_train_batch_size"
CHECKED_TEXTS = 100  # of validation, which the tokenizer must give back

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run leaves: scores by split, predictions of the last split scored, and findings of its rehearsal."""

    output_dir: Path
    scores: dict[str, dict[str, Any]]
    last: Evaluation | None = None
    was_finished: bool = False
    findings: Sequence[Finding] = ()


def train(config: Config, *, accept_changes: bool = False, dry_run: bool = False) -> RunResult:
    """Train, score and save; the finished model lies in `training.output_dir`, checkpoints below it.

    Called again on its own output folder it goes on from the newest whole checkpoint; a finished run is only reported.

    Args:
        accept_changes: go on with this config in a folder that holds a run of another.
        dry_run: rehearse only, and return what was found, errors among it.

    Raises:
        ConfigError, DataError: for whatever cannot work, before the first step where it can be known.
        Stopped: after SIGTERM or SIGINT, with everything saved.
        NotPublished: when all is done but the push to the Hub.
        RunError: when the run cannot go on; what was saved before is whole.
    """
    use_all_cores()
    use_attention_of_any_shape()
    args = training_arguments(config)  # first of all, as it chooses the device
    folder = RunFolder(config.output_dir)
    with folder.locked(), folder.storage_errors_explained(), lost_peers_explained():
        check_settings(config, args)
        metrics = load_metrics(config.evaluation)
        check_best_score(config, args, metrics)
        resume = from_main_process(lambda: find_start(config, args, folder, accept_changes))
        if resume.is_finished:
            publish_result(config)  # costs nothing where it is there already
            return RunResult(folder.path, folder.read_scores(), was_finished=True)
        lanes = count_lanes(config, resume.state.data, get_task(config.task))
        splits = open_splits(config, resume.state.revisions, lanes)
        seen = seen_rows(get_task(config.task))
        task, model = build_task_and_model(config, splits, resume, args.seed, seen)
        if config.hub.push:
            forms.check_form(config.hub, model.config)
        held_out = encode_held_out(config, task, splits)
        duplicates = from_main_process(lambda: find_all_duplicates(config, type(task), splits.train, folder.path))
        filters = build_filters(config, task, chain.from_iterable(held_out.values()), duplicates)
        loader = build_loader(config, args, task, splits.shared, lanes, filters)
        trainer = build_trainer(config, args, task, model, loader, held_out, metrics, resume, lanes)
        if dry_run or resume.checkpoint is None or resume.changes:
            scene = Scene(config, trainer, folder.path, held_out, seen)
            findings = from_main_process(lambda: rehearse(scene))
            if dry_run:
                return RunResult(folder.path, {}, findings=findings)
            heed(findings)
        fail_together(lambda: folder.begin(config, resume.state), main_only=True)
        train_and_push(config, trainer, resume, folder)
        result = finish(config, trainer, folder, held_out)
        publish_result(config)
        return result


def use_all_cores() -> None:
    """Undo `OMP_NUM_THREADS=1`, which `accelerate launch` sets unless told, and which halves the speed of two cores.

    https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/commands/launch.py
    """
    if is_launched_by_accelerate() and os.environ.get("OMP_NUM_THREADS") == "1" and PartialState().device.type == "cpu":
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // processes))


def find_start(config: Config, args: Seq2SeqTrainingArguments, folder: RunFolder, accept_changes: bool) -> ResumePoint:
    """Look into the output folder, and at the Hub where it is needed: where the run begins, and whether it may push."""
    resume = folder.find_resume_point(config, args.resume_from_checkpoint, accept_changes)
    if config.hub.push:
        hub.prepare(config.hub)
    return resume


@dataclass(frozen=True)
class Splits:
    """The rows of a run, by the names of corpora and sets; those that are alone have none ("").

    Attributes:
        train: to be read from front to back.
        shared: the same, to be shared by lanes; of a stream with few shards, opened with more.
    """

    train: dict[str, Rows]
    shared: dict[str, Rows]
    validation: dict[str, Rows]
    test: dict[str, Rows]


def open_splits(config: Config, revisions: Mapping[str, str], lanes: int) -> Splits:
    """Open the splits of a config, so that one that is missing, or lacks a column, is named before anything is trained.

    Args:
        revisions: the commits at which data sets of the Hub are read, by `DataConfig.places`.
        lanes: shares of the training rows that are read by themselves.
    """
    data = config.data.pinned(revisions)

    def open_one(rows: DataConfig, split: str, name: str, lanes: int = 1) -> Rows:
        with errors_of(place_of(split, name)):
            columns = get_task(config.task).columns(config.with_data(rows))
            return open_split(rows, getattr(rows, split), columns, lanes)

    train = {name: open_one(rows, "train", name) for name, rows in data.corpora.items()}
    held_out = {
        split: {name: open_one(rows, split, name) for name, rows in data.held_out(split).items()}
        for split in HELD_OUT_SPLITS
    }
    shared = {
        name: rows
        if isinstance(rows, Dataset) or is_divisible(rows.num_shards, lanes)
        else open_one(data.corpora[name], "train", name, lanes)
        for name, rows in train.items()
    }
    return Splits(train, shared, **held_out)


def build_task_and_model(
    config: Config, splits: Splits, resume: ResumePoint, seed: int, seen: SeenRows
) -> tuple[Task, PreTrainedModel]:
    """Make what is learned and what learns it, new or from a checkpoint: tokenizer, model and task."""

    def read(name: str, corpus: DataConfig) -> Iterator[dict[str, Any]]:
        rows = iterate_rows(splits.train[name], retry_seconds(corpus))
        return rows if corpus.filters.drop_held_out else seen.watch(rows)

    readers = {name: partial(read, name, corpus) for name, corpus in config.data.corpora.items()}

    def all_rows() -> Iterator[dict[str, Any]]:
        return chain.from_iterable(reader() for reader in readers.values())

    task_class = get_task(config.task)
    pretrained = None if "from" not in config.model else resume.checkpoint or find_pretrained(config)
    path = resume.checkpoint or config.tokenizer.path or pretrained
    tokenizer = prepare_tokenizer(config, typical_rows(config, splits.train, readers), path)
    data_settings = task_class.model_settings(config, all_rows())
    if resume.checkpoint is not None:
        data_settings = stored_settings(resume.checkpoint, data_settings)
    model = build_model(config, tokenizer, seed, data_settings, pretrained, is_new=resume.checkpoint is None)
    task = task_class.from_model(tokenizer, model.config, config)
    if model.can_generate():
        model.generation_config = generation_config(config, model, task)
    check_length_penalties(config, model)
    return task, model


def encode_held_out(config: Config, task: Task, splits: Splits) -> dict[str, list[Feature]]:
    """Encode all rows of validation and test, so that a bad one is named before anything is trained.

    Returns:
        The features of each set, by its place: validation, or validation.SET; test likewise.
    """
    opened: dict[HeldOutSplit, dict[str, Rows]] = {"validation": splits.validation, "test": splits.test}
    features = {}
    for split in HELD_OUT_SPLITS:
        for name, rows in config.data.held_out(split).items():
            place = place_of(split, name)
            with errors_of(place):
                here = config.with_data(rows)
                features[place] = encode_opened(here, task, opened[split][name], getattr(rows, split))
    return features


def heed(findings: Sequence[Finding]) -> None:
    """Log warnings, and raise the worst error."""
    for finding in findings:
        if finding.status == "warning":
            logger.warning("warning: %s: %s", finding.check, finding.text)
    raise_errors(findings)


def build_trainer(
    config: Config,
    args: Seq2SeqTrainingArguments,
    task: Task,
    model: PreTrainedModel,
    loader: BatchLoader,
    held_out: dict[str, list[Feature]],
    metrics: list[Metric],
    resume: ResumePoint,
    lanes: int,
) -> TeacherForcingTrainer:
    """Make the trainer.

    Args:
        loader: the training batches.
        held_out: features of all rows of validation, by place; `evaluation.max_rows` says how many of each set are used
            while training.
        lanes: of the training rows.

    Raises:
        ConfigError: for a tokenizer that loses what training needs, an average under FSDP, or changes that the rest of
            the run would not use.
    """
    max_rows = config.evaluation.max_rows or math.inf
    first = {
        place: [feature for feature in features if feature["sample_id"] < max_rows]
        for place, features in held_out.items()
    }
    shown = join_sets(task, first, "validation")
    check_best_group(config, groups_of(shown))
    groups_of(join_sets(task, held_out, "test"))  # refuses two of one name
    if "from" not in config.model and task.tokenizer is not None:
        # What a pretrained model's tokenizer keeps is for those who trained it to judge.
        check_tokenizer(config, task.tokenizer, [feature["source"] for feature in shown[:CHECKED_TEXTS]])
    if BATCH_ROWS in resume.changes and task.make_batches(1, 1) is not None:
        raise ConfigError(f"{BATCH_ROWS}: {config.task} carries a state for each row of a batch; begin a new run")
    # A pass ends with its longest lane.
    args = with_max_steps(args, lambda: lanes * max(gather_object([together(loader.lanes.count_batches)])))
    if resume.checkpoint is not None:
        refuse_unused(resume.changes, read_steps(resume.checkpoint), args.max_steps)
    patience = config.evaluation.early_stopping_patience
    generation = None
    if model.can_generate():
        beams = config.evaluation.num_beams
        place = f"evaluation.num_beams={beams} with generation"
        generation = changed_generation(model.generation_config, {"num_beams": beams}, place)
    trainer = TeacherForcingTrainer(
        model=model,
        args=args,
        task=task,
        loader=loader,
        validation=shown,
        generation=generation,
        metrics=metrics,
        show=config.evaluation.show,
        callbacks=[] if patience is None else [EarlyStoppingCallback(patience)],
        start=resume.state,
        ema_decay=config.ema_decay,
        average_patience=config.average_patience,
        average_best=config.evaluation.average_best or 0,
        changes=resume.changes,
        compute_loss_func=None if is_own(model) else partial(task.loss, label_smoothing=config.label_smoothing),
    )
    refuse_where_spread(config, is_fsdp=trainer.is_fsdp_enabled, is_deepspeed=trainer.is_deepspeed_enabled)
    return trainer


def refuse_where_spread(config: Config, *, is_fsdp: bool, is_deepspeed: bool) -> None:
    """Refuse what weights that are spread over the processes do not allow.

    Raises:
        ConfigError: naming the key.
    """
    averages = {
        "evaluation.average_checkpoints": config.evaluation.average_checkpoints,
        "evaluation.average_best": config.evaluation.average_best,
        "training.ema_decay": config.ema_decay,
        "training.average_patience": config.average_patience,
    }
    for key, value in averages.items():
        if value is not None and is_fsdp:
            raise ConfigError(f"{key}: not with FSDP, where no process holds the whole model; leave one of them out")
        if value is not None and key.startswith("training.") and is_deepspeed:
            raise ConfigError(f"{key}: not with DeepSpeed, which keeps weights of its own; leave one of them out")
    if config.adversarial_epsilon and (is_fsdp or is_deepspeed):
        raise ConfigError(
            f"training.adversarial_epsilon: not with {'FSDP' if is_fsdp else 'DeepSpeed'}: it takes a gradient between "
            "two passes, and the second may not find the weights any more; leave one of them out"
        )


def train_and_push(config: Config, trainer: TeacherForcingTrainer, resume: ResumePoint, folder: RunFolder) -> None:
    """Train to the end, and publish checkpoints meanwhile where `hub.every_save` asks for it."""
    if resume.checkpoint:
        logger.info("going on from %s", resume.checkpoint)
    publisher = None
    if config.hub.push and config.hub.every_save and trainer.is_world_process_zero():
        publisher = hub.Publisher(config.hub, folder.path, partial(write_progress_card, config, trainer))
        trainer.add_callback(publisher)
    trainer.train(resume_from_checkpoint=str(resume.checkpoint) if resume.checkpoint else None)
    if publisher is not None:
        publisher.finish()


def publish_result(config: Config) -> None:
    """Push from the main process; the others need not wait for it, and could not wait for long."""
    if config.hub.push and PartialState().is_main_process:
        hub.publish_result(config.output_dir, config.hub)


def finish(
    config: Config, trainer: TeacherForcingTrainer, folder: RunFolder, held_out: dict[str, list[Feature]]
) -> RunResult:
    """Score the model as it will be used, and save it with its curves, card and metrics."""
    scores: dict[str, dict[str, Any]] = {}
    last, drawn, task = None, [], trainer.task
    for key in ("average_checkpoints", "average_best"):
        if count := getattr(config.evaluation, key):
            trainer.load_average(key, count)
    for split in HELD_OUT_SPLITS:
        if features := join_sets(task, held_out, split):
            drawn = features
            generation = trainer.model.generation_config if trainer.model.can_generate() else None
            if split == "validation" and config.evaluation.length_penalties:
                last, scores["generation"] = choose_length_penalty(config, trainer, features)
            else:
                last = trainer.score(drawn, generation)
            if split == "validation" and task.settle(trainer.model, last.sums):
                last = trainer.score(drawn, generation)
            scores[split] = last.scores
    refuse_divergence(scores, folder.path)
    scores["training"] = trainer.skipped | trainer.used
    fail_together(lambda: trainer.save_model(str(folder.path)))
    model = trainer.unsharded_model()
    fail_together(lambda: task.draw(model, drawn, folder.path), main_only=True)
    fail_together(lambda: write_card_and_curves(config, trainer, folder.path, scores), main_only=True)
    # Last, as this says that the run is finished.
    fail_together(lambda: folder.finish(scores, forms.result_files(folder.path)), main_only=True)
    return RunResult(folder.path, scores, last)


def choose_length_penalty(
    config: Config, trainer: TeacherForcingTrainer, validation: list[Feature]
) -> tuple[Evaluation, dict[str, Any]]:
    """Give the model the best of `evaluation.length_penalties` on validation, or the first of equally good ones.

    Each has a search of its own, as it decides which hypotheses a search keeps, and when it ends.

    Returns:
        The evaluation with the best one, and what was chosen among which scores.
    """
    name = config.evaluation.metrics[0]
    results: dict[float, Evaluation] = {}
    for penalty in config.evaluation.length_penalties or ():
        place = f"evaluation.length_penalties: {penalty}"
        generation = changed_generation(trainer.model.generation_config, {"length_penalty": penalty}, place)
        results[penalty] = trainer.score(validation, generation)
        logger.info("length penalty %s: %s %.4f on validation", penalty, name, results[penalty].numbers[name])
    sign = 1 if METRICS[name].better == "higher" else -1
    best = max(results, key=lambda penalty: sign * results[penalty].numbers[name])
    for model in (trainer.model, trainer.plain_model):  # one and the same, but for FSDP
        model.generation_config.length_penalty = best
    tried = {str(penalty): result.numbers[name] for penalty, result in results.items()}
    return results[best], {"length_penalty": best, f"validation_{name}": tried}


def refuse_divergence(scores: dict[str, dict[str, Any]], output_dir: Path) -> None:
    """Refuse scores of a model that has diverged.

    Raises:
        RunError: naming those that are not finite, and the last good checkpoint.
    """
    names = [
        f"{name} on {split} is {value}"
        for split, numbers in scores.items()
        for name, value in numbers.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if names:
        raise RunError(explain_divergence(", ".join(names), output_dir))


def write_progress_card(config: Config, trainer: TeacherForcingTrainer, folder: Path) -> None:
    """Write card and curves of a model whose training goes on."""
    logs = (line for line in reversed(trainer.state.log_history) if "eval_loss" in line)
    last: dict[str, Any] = next(logs, {})
    numbers = {name.removeprefix("eval_"): value for name, value in last.items() if name.startswith("eval_")}
    scores: dict[str, dict[str, Any]] = {"validation": numbers} if numbers else {}
    if trainer.used:
        scores["training"] = trainer.used
    write_card_and_curves(config, trainer, folder, scores)


def write_card_and_curves(
    config: Config, trainer: TeacherForcingTrainer, folder: Path, scores: dict[str, dict[str, Any]]
) -> None:
    """Write card and curves."""
    task = trainer.task
    plots.draw_training_curves(
        trainer.state.log_history, folder / CURVES_FILE, task.drawn_score, config.label_smoothing
    )
    example = trainer.validation[0]["source"] if trainer.validation else "..."
    pinned = config.with_data(config.data.pinned(trainer.start.revisions))  # the commits that were read
    text = render_card(
        pinned, task, trainer.plain_model, trainer.state, scores, example, describe_phases(trainer.start.phases)
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
