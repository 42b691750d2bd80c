"""The training batches of a config."""

import logging
from functools import partial
from math import gcd
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import Seq2SeqTrainingArguments

from pipeline.config import Config
from pipeline.data.augmentation import Augmentation
from pipeline.data.batch_loader import BatchLoader
from pipeline.data.batch_stream import BatchStream
from pipeline.data.hub_reading import retry_seconds
from pipeline.data.lane_rows import is_divisible
from pipeline.data.lanes import Lanes, positions_of
from pipeline.data.splits import Rows
from pipeline.errors import ConfigError
from pipeline.tasks.base import Task

logger = logging.getLogger(__name__)


def build_loader(config: Config, args: Seq2SeqTrainingArguments, task: Task, rows: Rows, lanes: int = 1) -> BatchLoader:
    """Make the loader of this rank's training batches.

    Args:
        rows: of the training split, as they were read.
        lanes: shares of the rows that are prepared by themselves; see `count_lanes`.

    Raises:
        ConfigError: for augmentation of a task without a source to change, or fewer rows than lanes.
    """
    state = PartialState()
    make_batches = task.make_batches(args.per_device_train_batch_size, state.num_processes)
    augment = None
    if any(config.augmentation.model_dump().values()):
        if task.tokenizer is None or make_batches is not None:
            raise ConfigError(f"augmentation: {config.task} has no source to change; leave it out")
        augment = Augmentation(config.augmentation, task.tokenizer, config.data.max_source_length)
    samples = task.to_samples(rows)
    _log_lanes(samples, lanes, state.num_processes)
    if isinstance(samples, Dataset) and 0 < len(samples) < lanes:
        raise ConfigError(f"data.lanes: {lanes} lanes need as many training rows, and there are {len(samples)}")
    make_stream = partial(
        BatchStream,
        samples,
        partial(task.encode, limits=config.data),
        task.lengths,
        batch_rows=args.per_device_train_batch_size,
        batch_tokens=config.data.batch_tokens,
        packing=config.data.packing,
        window=config.data.shuffle_window,
        make_batches=make_batches,
        augment=augment,
        max_bad_rows=config.data.max_bad_rows if config.data.on_bad_row == "skip" else 0,
        patience=retry_seconds(config.data),
        seed=args.seed if args.data_seed is None else args.data_seed,
        lanes=lanes,
    )
    return BatchLoader(
        Lanes(lambda lane: make_stream(lane=lane), lanes, state.process_index, state.num_processes),
        task.pack if config.data.packing else task.collate,
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor or 1,
        timeout=config.data.worker_timeout,
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
    )


def _log_lanes(rows: Rows, lanes: int, ranks: int) -> None:
    """Say what a lane is, and at what cost lanes are prepared by several ranks."""
    if lanes > 1:
        is_sharded = not isinstance(rows, Dataset) and is_divisible(rows.num_shards, lanes)
        share = f"a share of {rows.num_shards} shards" if is_sharded else f"every {lanes}th row"
        logger.info("%d lanes, each with %s", lanes, share)
    if (times := ranks // gcd(ranks, lanes)) > 1:
        logger.info("each of %d lanes is prepared by %d of the %d processes", lanes, times, ranks)


def count_lanes(config: Config, state: dict[str, Any] | None, task: type[Task]) -> int:
    """Return how many lanes a run has: as many as it began with, `data.lanes`, or one for each rank.

    Args:
        state: of the loader, in the checkpoint to go on from; None where the run begins.

    Raises:
        ConfigError: for another number than the run began with, or several where the rows are one running text.
    """
    given = config.data.lanes
    if not task.has_independent_rows:
        if given not in (None, 1):
            raise ConfigError(f"data.lanes: {given} is given, but the rows of {config.task} are one text; leave it out")
        return 1
    if state is None:
        return given or PartialState().num_processes
    begun = len(positions_of(state))
    if given not in (None, begun):
        raise ConfigError(f"data.lanes: the run began with {begun}, and goes on with as many; leave it out")
    return begun
