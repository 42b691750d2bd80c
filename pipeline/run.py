"""One run, from a config to a finished model: checks first, then training, then scores, curves and a card."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from ruamel.yaml import YAML
from transformers import (
    AutoTokenizer,
    EarlyStoppingCallback,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
)
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import get_last_checkpoint

from pipeline import hub, plots
from pipeline.batching import BatchLoader, BatchStream
from pipeline.config import Config, ConfigError, nearest
from pipeline.evaluation import Evaluation
from pipeline.metrics import Metric, load_metric
from pipeline.optimization import noam
from pipeline.sources import Rows, read
from pipeline.tasks.tables import find
from pipeline.tasks.task import Feature, Task
from pipeline.training import TeacherForcingTrainer
from tokenizer.checks import check
from tokenizer.training import train as train_tokenizer

CONFIG_FILE = "run.yaml"
METRICS_FILE = "metrics.json"
CURVES_FILE = "training_curves.png"
ALWAYS_SCORED = ("loss", "perplexity", "token_accuracy")


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
    values.setdefault("use_cache", True)  # Trainer writes it into the model's config, where False slows generation
    try:
        return Seq2SeqTrainingArguments(
            **values,
            remove_unused_columns=False,
            ignore_data_skip=True,  # the loader goes on where it was, without replaying
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"training: {error}") from error


def load_or_train_tokenizer(config: Config, rows: Rows, output_dir: Path, is_fresh: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of `tokenizer.path`; else, on a fresh start, a new one; else the one in the run's folder.

    Raises:
        ConfigError: for a path that holds no tokenizer.
        tokenizer.training.TokenizerError: when it cannot be trained, or does not keep what a tokenizer promises.
    """
    path = config.tokenizer.path
    with PartialState().main_process_first():
        if path is None and is_fresh and PartialState().is_main_process:
            texts = (text for row in rows for text in row.values() if isinstance(text, str))
            train_tokenizer(
                texts,
                config.tokenizer.kind,
                config.tokenizer.vocab_size,
                max_length=config.data.max_source_length,
                max_texts=config.tokenizer.max_texts,
            ).save_pretrained(output_dir)
    try:
        return AutoTokenizer.from_pretrained(path or output_dir)
    except (OSError, ValueError) as error:
        raise ConfigError(f"tokenizer.path: no tokenizer could be loaded from {path!r}: {error}") from error


def build_model(config: Config, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A new model of `model`'s sizes that fits the tokenizer.

    Raises:
        ConfigError: for an unknown or impossible size, or a vocabulary that the tokenizer overflows.
    """
    entry = find(config.task)
    known = entry.config().to_dict()
    for name in config.model:
        if name not in known:
            raise ConfigError(f"model.{name}: {entry.config.__name__} has no such field{nearest(name, known)}")
    vocab_size = config.model.get("vocab_size", len(tokenizer))
    if vocab_size < len(tokenizer):
        raise ConfigError(
            f"model.vocab_size: {vocab_size} is too small for the tokenizer's {len(tokenizer)} tokens; "
            "leave it out to take theirs"
        )
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if special["pad_token_id"] is None or special["eos_token_id"] is None:
        raise ConfigError("tokenizer: it has no padding or no end-of-sequence token, and the model needs both")
    start = special["pad_token_id"] if special["bos_token_id"] is None else special["bos_token_id"]
    settings = {
        "vocab_size": vocab_size,
        **special,
        "decoder_start_token_id": start,
        "label_smoothing": config.training.get("label_smoothing_factor", 0.0),
        **config.model,
    }
    transformers.set_seed(seed)
    try:
        return entry.model(entry.config(**settings))
    except (ValueError, KeyError, StrictDataclassError) as error:
        raise ConfigError(f"model: {error}") from error


def generation_config(config: Config, model: PreTrainedModel, **changes: Any) -> GenerationConfig:
    """An explicit GenerationConfig, as transformers' own defaults (20 tokens, top_k of 50) surprise.

    Raises:
        ConfigError: for an unknown key, or a combination that transformers would refuse to save.
    """
    known = vars(GenerationConfig())
    for name in config.generation:
        if name not in known:
            raise ConfigError(f"generation.{name} is not one of GenerationConfig{nearest(name, known)}")
    special = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    settings = {
        "max_new_tokens": config.data.max_target_length,
        **{name: getattr(model.config, name) for name in special},
        **config.generation,
        **changes,
    }
    try:
        generation = GenerationConfig(**settings)
        generation.validate(strict=True)
    except ValueError as error:
        raise ConfigError(f"generation: {error}") from error
    return generation


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
    if config.hub.push and config.hub.model_id is None:
        raise ConfigError("hub.model_id: name the repository to push to, as owner/name")
    name = config.training.get("metric_for_best_model", "loss").removeprefix("eval_")
    known = [*ALWAYS_SCORED, *config.evaluation.metrics]
    if name not in known:
        raise ConfigError(f"training.metric_for_best_model: {name!r} is not scored{nearest(name, known)}")


def load_metrics(config: Config) -> list[Metric]:
    """Raises ConfigError for a name that neither this project nor `evaluate` knows."""
    try:
        return [load_metric(name) for name in config.evaluation.metrics]
    except ValueError as error:
        raise ConfigError(str(error)) from error


def find_config(checkpoint: Path) -> Path:
    """The config that a checkpoint, or the run that it lies in, was trained with.

    Raises:
        ConfigError: where neither folder holds one.
    """
    for folder in (checkpoint, checkpoint.parent):
        if (folder / CONFIG_FILE).is_file():
            return folder / CONFIG_FILE
    raise ConfigError(f"{checkpoint}: there is no {CONFIG_FILE} in it, nor beside it; name a config with --config")


def find_start(config: Config, args: Seq2SeqTrainingArguments) -> str | None:
    """The checkpoint to go on from in the output folder, or None for a fresh start.

    Raises:
        ConfigError: when the folder holds a run of another config.
    """
    chosen = args.resume_from_checkpoint
    folder = Path(args.output_dir)
    checkpoint = get_last_checkpoint(folder) if folder.is_dir() and chosen is not False else None
    known = folder / CONFIG_FILE
    if known.is_file() and (checkpoint or (folder / METRICS_FILE).is_file()):
        before, now = YAML(typ="safe", pure=True).load(known.read_text()), config.model_dump()
        keys = [
            f"{section}.{key}" if isinstance(now[section], dict) else section
            for section in now
            for key in _differences(before.get(section), now[section])
            if key != "output_dir"  # a folder may be moved
        ]
        if keys:
            raise ConfigError(
                f"training.output_dir: {folder} holds a run with other settings ({', '.join(keys)}); "
                "choose another folder, or remove this one"
            )
    return str(chosen) if chosen and not isinstance(chosen, bool) else checkpoint


def _differences(before: Any, now: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return [] if before == now else [""]


def encode_split(config: Config, task: Task, split: str | None, max_rows: int | None = None) -> list[Feature]:
    """All rows of a split as features, none left out for its length."""
    if split is None:
        return []
    rows = read(config.data, split, config.data.columns)
    columns: dict[str, list] = {name: [] for name in config.data.columns}
    for row in rows if max_rows is None else rows.take(max_rows):
        for name, values in columns.items():
            values.append(row[name])
    columns["row"] = list(range(len(next(iter(columns.values())))))
    return [feature for feature in task.encode(columns) if feature is not None]


def build_loader(config: Config, args: Seq2SeqTrainingArguments, task: Task, rows: Rows) -> BatchLoader:
    """The training batches of this rank; sets `args.max_steps` where the run is counted in epochs."""
    state = PartialState()
    stream = BatchStream(
        rows,
        task.encode,
        task.lengths,
        batch_rows=args.per_device_train_batch_size,
        batch_tokens=config.data.batch_tokens,
        window=config.data.shuffle_window,
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
        task.collate,
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
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


def run(config: Config) -> Result:
    """Trains, scores and saves; the finished model lies in `training.output_dir`, checkpoints below it.

    Called again on its own output folder it goes on from the newest checkpoint; a finished run is only reported.

    Raises:
        ConfigError, DataError, TokenizerError: before the first step, for whatever cannot work.
    """
    use_all_cores()
    entry = find(config.task)
    args = training_arguments(config)
    output_dir = Path(args.output_dir)
    checkpoint = find_start(config, args)
    if (output_dir / METRICS_FILE).is_file():
        return Result(output_dir, json.loads((output_dir / METRICS_FILE).read_text()), was_finished=True)
    check_early(config, args)
    metrics = load_metrics(config)
    rows = read(config.data, config.data.train, config.data.columns)
    if config.data.test is not None:
        read(config.data, config.data.test, config.data.columns)  # to fail now rather than after the training
    tokenizer = load_or_train_tokenizer(config, rows, output_dir, is_fresh=checkpoint is None)
    task = entry.task(tokenizer)
    model = build_model(config, tokenizer, args.seed)
    model.generation_config = generation_config(config, model)
    validation = encode_split(config, task, config.data.validation, config.evaluation.max_rows)
    check(tokenizer, [feature["source"] for feature in validation[:100]])
    limited = entry.task(tokenizer, config.data.max_source_length, config.data.max_target_length)
    trainer = TeacherForcingTrainer(
        model=model,
        args=args,
        task=task,
        loader=build_loader(config, args, limited, rows),
        validation=validation,
        generation=generation_config(config, model, num_beams=config.evaluation.num_beams) if metrics else None,
        metrics=metrics,
        show=config.evaluation.show,
        callbacks=early_stopping(config),
    )
    if trainer.is_world_process_zero():
        output_dir.mkdir(parents=True, exist_ok=True)
        YAML().dump(config.model_dump(), output_dir / CONFIG_FILE)
    trainer.train(resume_from_checkpoint=checkpoint)
    return finish(config, trainer, task, output_dir)


def early_stopping(config: Config) -> list[EarlyStoppingCallback]:
    patience = config.evaluation.early_stopping_patience
    return [] if patience is None else [EarlyStoppingCallback(patience)]


def finish(config: Config, trainer: TeacherForcingTrainer, task: Task, output_dir: Path) -> Result:
    """Scores the model as it will be used, and saves it with its curves, card and metrics; publishes it if asked."""
    scores: dict[str, dict[str, Any]] = {}
    last = None
    for name, split in (("validation", config.data.validation), ("test", config.data.test)):
        features = encode_split(config, task, split)
        if features:
            last = trainer.score(features, trainer.model.generation_config if config.evaluation.metrics else None)
            scores[name] = last.scores
    trainer.save_model(str(output_dir))
    if trainer.is_world_process_zero():
        smoothing = config.training.get("label_smoothing_factor", 0.0)
        plots.training_curves(trainer.state.log_history, output_dir / CURVES_FILE, smoothing)
        (output_dir / "README.md").write_text(hub.card(config, trainer.model, trainer.state, scores), encoding="utf-8")
        # Last: this file says that the run is finished.
        (output_dir / METRICS_FILE).write_text(json.dumps(scores, indent=2), encoding="utf-8")
        if config.hub.push:
            hub.publish(output_dir, config.hub)
    trainer.accelerator.wait_for_everyone()
    return Result(output_dir, scores, last)
