"""One run, from a config to a finished model: checks first, then training, then scores, curves and a card."""

import json
import logging
import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    Seq2SeqTrainingArguments,
)
from transformers.integrations import get_available_reporting_integrations

from pipeline import plots
from pipeline.config import Config
from pipeline.data.augmentation import Augmentation
from pipeline.data.batch_loader import BatchLoader
from pipeline.data.batch_stream import BatchStream
from pipeline.data.hub_reading import is_on_hub, iterate_rows, resolve_commit, retry_seconds
from pipeline.data.rows import HOW_TO_FIX, Feature, separate
from pipeline.data.splits import Rows, open_split
from pipeline.errors import ConfigError, DataError, RunError, nearest
from pipeline.inference.evaluation import Evaluation
from pipeline.inference.metrics import Metric, load_metric
from pipeline.publishing import hub
from pipeline.publishing.card import card
from pipeline.setup.model_factory import build_model, find_pretrained, generation_config, load_or_train_tokenizer
from pipeline.tasks.base import Task
from pipeline.tasks.registry import find
from pipeline.training import checkpoints
from pipeline.training.checkpoints import METRICS_FILE
from pipeline.training.schedules import noam
from pipeline.training.trainer import STATE_FILE, TeacherForcingTrainer
from tokenizer.checks import check

CURVES_FILE = "training_curves.png"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a run leaves: the scores by split, and the predictions of the last split scored."""

    output_dir: Path
    scores: dict[str, dict[str, Any]]
    last: Evaluation | None = None
    was_finished: bool = False


def training_arguments(config: Config) -> Seq2SeqTrainingArguments:
    """`training` as transformers takes it, with what this project decides set.

    Raises:
        ConfigError: when transformers refuses a value or a combination.
    """
    values = dict(config.training)
    if values.get("lr_scheduler_type") == "noam":
        warmup_steps = values.get("warmup_steps", 0)
        if warmup_steps < 1:
            raise ConfigError("training.warmup_steps: noam needs a number of steps, such as 4000")
        d_model = config.model.get("d_model", find(config.task).config().d_model)
        values |= noam(d_model, int(warmup_steps), values.get("learning_rate", 1.0))
    if values.get("max_steps", -1) <= 0 and config.data.streaming:
        raise ConfigError("training.max_steps: a streamed data set has no length; give the number of steps")
    values.pop("label_smoothing_factor", None)  # the model's own, so that evaluation stays unsmoothed
    values.setdefault("report_to", "tensorboard")
    values.setdefault("ddp_find_unused_parameters", False)  # there are none, and the search costs a walk over the graph
    values.setdefault("use_cache", True)  # Trainer writes it into the model's config, where False slows generation
    try:
        return Seq2SeqTrainingArguments(
            **values,
            remove_unused_columns=False,
            ignore_data_skip=True,  # the loader goes on where it was, without replaying
            restore_callback_states_from_checkpoint=True,  # the patience of early stopping
            logging_nan_inf_filter=False,  # it hides what our trainer counts and skips
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"training: {error}") from error


def check_early(config: Config, args: Seq2SeqTrainingArguments) -> None:
    """What would otherwise fail at the first evaluation, or after the training.

    Raises:
        ConfigError: for an evaluation without data, a logger that is not installed, a push to nowhere, or a best metric
            that is never scored.
    """
    if args.eval_strategy != "no" and config.data.validation is None:
        raise ConfigError("training.eval_strategy: there is nothing to evaluate on; give data.validation, or say no")
    for name in args.report_to:
        if name not in get_available_reporting_integrations():
            raise ConfigError(f"training.report_to: {name} is not installed; pip install {name}, or leave it out")
    name = config.training.get("metric_for_best_model", "loss").removeprefix("eval_")
    count = config.evaluation.average_checkpoints or 0
    if count > (args.save_total_limit or count) or (count and args.load_best_model_at_end):
        raise ConfigError(
            f"evaluation.average_checkpoints: {count} must be kept by training.save_total_limit, and "
            "training.load_best_model_at_end=false"
        )
    task = find(config.task).task
    if config.data.packing and not (task.can_pack and config.data.batch_tokens):
        raise ConfigError("data.packing: needs data.batch_tokens, and the task sequence_to_sequence")
    if config.evaluation.metrics and not task.has_metrics:
        raise ConfigError(f"evaluation.metrics: {config.task} is scored by {', '.join(task.scores)} alone; give []")
    known = [*task.scores, *config.evaluation.metrics]
    if name not in known:
        raise ConfigError(f"training.metric_for_best_model: {name!r} is not scored{nearest(name, known)}")


def load_metrics(config: Config) -> list[Metric]:
    """Raises ConfigError for a name that neither this project nor `evaluate` knows."""
    try:
        return [load_metric(name) for name in config.evaluation.metrics]
    except ValueError as error:
        raise ConfigError(str(error)) from error


@dataclass(frozen=True)
class Start:
    """Where a run begins: anew, or at a checkpoint; and the commit at which data of the Hub are read."""

    checkpoint: Path | None = None
    revision: str | None = None
    is_finished: bool = False


def find_start(config: Config, args: Seq2SeqTrainingArguments, accept_changes: bool) -> Start:
    """Looks into the output folder, and at the Hub where it is needed, on the main process.

    Raises:
        ConfigError: when the folder holds a run of another config, unless changes are accepted; when the data set is
            not to be had, or the repository to push to.
        RunError: when there are checkpoints, and none is whole.
    """
    found: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            found = [_find_start(config, Path(args.output_dir), args.resume_from_checkpoint, accept_changes)]
            if config.hub.push:
                hub.prepare(config.hub)
        except (ConfigError, RunError) as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _find_start(config: Config, folder: Path, chosen: str | bool | None, accept_changes: bool) -> Start:
    keys = checkpoints.changed_keys(config, folder)
    if keys and not accept_changes:
        raise ConfigError(
            f"training.output_dir: {folder} holds a run with other settings ({', '.join(keys)}); "
            "choose another folder, remove this one, or go on with the new settings by --accept-changes"
        )
    if (folder / METRICS_FILE).is_file() and not keys:
        return Start(is_finished=True)
    checkpoint = None
    if chosen in (None, True):
        checkpoint = checkpoints.find_newest(folder)
    elif chosen is not False:
        checkpoint = Path(str(chosen))
        if problem := checkpoints.damage(checkpoint):
            raise RunError(f"training.resume_from_checkpoint: {checkpoint} is not a whole checkpoint: {problem}")
    if checkpoint and not {"data.path", "data.revision"} & {*keys}:
        return Start(checkpoint, json.loads((checkpoint / STATE_FILE).read_text()).get("revision"))
    revision = (
        resolve_commit(config.data.path, config.data.revision, config.data.hub_patience)
        if is_on_hub(config.data.path)
        else None
    )
    return Start(checkpoint, revision)


def encode_split(config: Config, task: Task, split: str | None, max_rows: int | None = None) -> list[Feature]:
    """All rows of a split as features, none left out for its length.

    Raises:
        DataError: for a bad row, unless they are to be skipped.
    """
    if split is None:
        return []
    rows = task.samples(open_split(config.data, split, task.columns(config.data)))
    chosen = list(iterate_rows(rows if max_rows is None else rows.take(max_rows), retry_seconds(config.data)))
    columns = {name: [row[name] for row in chosen] for name in chosen[0]} | {"row": list(range(len(chosen)))}
    features, bad = separate(task.encode(columns))
    if bad and config.data.on_bad_row == "error":
        raise DataError(f"data: {split}: {bad[0]}; {HOW_TO_FIX}")
    if bad:
        logger.warning("%s: %d bad rows are left out, such as %s", split, len(bad), bad[0])
    return task.held_out(features)


def build_loader(config: Config, args: Seq2SeqTrainingArguments, task: Task, rows: Rows) -> BatchLoader:
    """The training batches of this rank; sets `args.max_steps` where the run is counted in epochs."""
    state = PartialState()
    arrange = task.arrange(args.per_device_train_batch_size, state.num_processes)
    augment = None
    if any(config.augmentation.model_dump().values()):
        if task.tokenizer is None or arrange is not None:
            raise ConfigError(f"augmentation: {config.task} has no source to change; leave it out")
        augment = Augmentation(config.augmentation, task.tokenizer, config.data.max_source_length)
    stream = BatchStream(
        rows,
        task.encode,
        task.lengths,
        batch_rows=args.per_device_train_batch_size,
        batch_tokens=config.data.batch_tokens,
        packing=config.data.packing,
        window=config.data.shuffle_window,
        make_batches=arrange,
        augment=augment,
        max_bad_rows=config.data.max_bad_rows if config.data.on_bad_row == "skip" else 0,
        patience=retry_seconds(config.data),
        seed=args.seed if args.data_seed is None else args.data_seed,
        rank=state.process_index,
        world_size=state.num_processes,
    )
    if args.max_steps <= 0:
        assert isinstance(rows, Dataset)
        batches_a_step = args.gradient_accumulation_steps * state.num_processes
        args.max_steps = math.ceil(args.num_train_epochs * stream.count_batches() / batches_a_step)
    return BatchLoader(
        stream,
        task.pack if config.data.packing else task.collate,
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor or 1,
        timeout=config.data.worker_timeout,
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
    )


def use_all_cores() -> None:
    """Undoes `OMP_NUM_THREADS=1`, which `accelerate launch` sets unless told, and which halves the speed of two cores.

    https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/commands/launch.py
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if launched and PartialState().device.type == "cpu":
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // processes))


def run(config: Config, accept_changes: bool = False) -> Result:
    """Trains, scores and saves; the finished model lies in `training.output_dir`, checkpoints below it.

    Called again on its own output folder it goes on from the newest whole checkpoint; a finished run is only reported.

    Args:
        accept_changes: go on with this config in a folder that holds a run of another.

    Raises:
        ConfigError, DataError, TokenizerError: for whatever cannot work, before the first step where it can be known.
        Stopped: after SIGTERM or SIGINT, with everything saved.
        RunError: when the run cannot go on; what was saved before is whole.
    """
    use_all_cores()
    args = training_arguments(config)
    output_dir = Path(args.output_dir)
    with ExitStack() as stack:
        if PartialState().is_main_process:
            stack.enter_context(checkpoints.lock(output_dir))
        try:
            return _run(config, args, output_dir, accept_changes)
        except Exception as error:
            if checkpoints.is_storage_error(error):
                raise RunError(checkpoints.explain_storage(output_dir, error)) from error
            raise


def _run(config: Config, args: Seq2SeqTrainingArguments, output_dir: Path, accept_changes: bool) -> Result:
    check_early(config, args)
    metrics = load_metrics(config)
    start = find_start(config, args, accept_changes)
    if start.is_finished:
        _publish(config, output_dir)  # costs nothing where it is there already
        return Result(output_dir, json.loads((output_dir / METRICS_FILE).read_text()), was_finished=True)
    given, checkpoint = config, start.checkpoint
    config = config.model_copy(update={"data": config.data.model_copy(update={"revision": start.revision})})
    entry = find(config.task)
    columns = entry.task.columns(config.data)
    rows = open_split(config.data, config.data.train, columns)
    if config.data.test is not None:
        open_split(config.data, config.data.test, columns)  # to fail now rather than after the training
    pretrained = None if "from" not in config.model else checkpoint or find_pretrained(config)
    path = checkpoint or config.tokenizer.path or pretrained
    tokenizer = load_or_train_tokenizer(config, iterate_rows(rows, retry_seconds(config.data)), path)
    sizes = entry.task.sizes(config.data, iterate_rows(rows, retry_seconds(config.data)))
    model = build_model(config, tokenizer, args.seed, sizes, pretrained, is_new=checkpoint is None)
    generation = generation_config(config, model, num_beams=config.evaluation.num_beams)
    if model.can_generate():
        model.generation_config = generation_config(config, model)
    task = entry.task.of(tokenizer, model.config)
    validation = encode_split(config, task, config.data.validation, config.evaluation.max_rows)
    if (
        pretrained is None and tokenizer is not None
    ):  # what a pretrained model's tokenizer keeps is for who trained it to judge
        check(tokenizer, [feature["source"] for feature in validation[:100]], entry.task.boundary)
    limited = entry.task.of(tokenizer, model.config, config.data)
    smoothing = config.training.get("label_smoothing_factor", 0.0)
    trainer = TeacherForcingTrainer(
        model=model,
        args=args,
        task=task,
        loader=build_loader(config, args, limited, limited.samples(rows)),
        validation=validation,
        generation=generation if model.can_generate() else None,
        metrics=metrics,
        show=config.evaluation.show,
        callbacks=early_stopping(config),
        revision=start.revision,
        # Ours divides its loss by the targets of the whole step itself.
        compute_loss_func=None if isinstance(model, entry.model) else partial(task.loss, label_smoothing=smoothing),
    )
    if config.evaluation.average_checkpoints is not None and trainer.is_fsdp_enabled:
        raise ConfigError("evaluation.average_checkpoints: not with FSDP, where no process holds the whole model")
    trainer.write(lambda: checkpoints.begin(given, output_dir), main_only=True)
    if checkpoint:
        logger.info("going on from %s", checkpoint)
    publisher = None
    if config.hub.push and config.hub.every_save and trainer.is_world_process_zero():
        publisher = hub.Publisher(config.hub, output_dir, lambda folder: describe_progress(config, trainer, folder))
        trainer.add_callback(publisher)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    result = finish(config, trainer, task, output_dir)
    if publisher is not None:
        publisher.finish()
    _publish(config, output_dir)
    return result


def _publish(config: Config, output_dir: Path) -> None:
    """On the main process; the others need not wait for it, and could not wait for long."""
    if config.hub.push and PartialState().is_main_process:
        hub.publish_result(output_dir, config.hub)


def early_stopping(config: Config) -> list[EarlyStoppingCallback]:
    patience = config.evaluation.early_stopping_patience
    return [] if patience is None else [EarlyStoppingCallback(patience)]


def finish(config: Config, trainer: TeacherForcingTrainer, task: Task, output_dir: Path) -> Result:
    """Scores the model as it will be used, and saves it with its curves, card and metrics."""
    scores: dict[str, dict[str, Any]] = {}
    last = None
    if config.evaluation.average_checkpoints is not None:
        trainer.load_average(config.evaluation.average_checkpoints)
    drawn: list[Feature] = []
    for name, split in (("validation", config.data.validation), ("test", config.data.test)):
        features = encode_split(config, task, split)
        if features:
            drawn = features
            last = trainer.score(features, getattr(trainer.model, "generation_config", None))
            scores[name] = last.scores
    scores["training"] = trainer.skipped
    trainer.write(lambda: trainer.save_model(str(output_dir)))
    model = trainer.whole_model()
    trainer.write(lambda: task.draw(model, drawn, output_dir), main_only=True)
    trainer.write(lambda: _write_report(config, trainer, output_dir, scores), main_only=True)
    return Result(output_dir, scores, last)


def _write_report(
    config: Config, trainer: TeacherForcingTrainer, output_dir: Path, scores: dict[str, dict[str, Any]]
) -> None:
    _describe(config, trainer, output_dir, scores)
    # Last: this file says that the run is finished.
    checkpoints.write_text(output_dir / METRICS_FILE, json.dumps(scores, indent=2))


def describe_progress(config: Config, trainer: TeacherForcingTrainer, folder: Path) -> None:
    """Card and curves of a model whose training goes on."""
    last: dict[str, Any] = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), {})
    numbers = {name.removeprefix("eval_"): value for name, value in last.items() if name.startswith("eval_")}
    _describe(config, trainer, folder, {"validation": numbers} if numbers else {})


def _describe(config: Config, trainer: TeacherForcingTrainer, folder: Path, scores: dict[str, dict[str, Any]]) -> None:
    smoothing = config.training.get("label_smoothing_factor", 0.0)
    plots.training_curves(trainer.state.log_history, folder / CURVES_FILE, smoothing)
    example = trainer.validation[0]["source"] if trainer.validation else "..."
    text = card(config, trainer.whole, trainer.state, scores, example)
    (folder / "README.md").write_text(text, encoding="utf-8")
