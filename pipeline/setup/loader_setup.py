"""The training batches of a config, and the filters of their rows."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import gcd
from operator import length_hint
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Seq2SeqTrainingArguments

from pipeline.config import Config
from pipeline.data.augmentation import Augmentation
from pipeline.data.batch_loader import BatchLoader
from pipeline.data.batch_stream import BatchStream, LaneStream
from pipeline.data.filters import Duplicates, Filters, find_duplicates, hash_held_out
from pipeline.data.hub_reading import iterate_rows, retry_seconds
from pipeline.data.lane_rows import is_divisible
from pipeline.data.lanes import Lanes, positions_of
from pipeline.data.mixture import MixedStream, count_rows, plan_stages
from pipeline.data.rows import PLACE, Feature
from pipeline.data.splits import Rows
from pipeline.data.text_noise import TextNoise, make_noise
from pipeline.data_config import place_of
from pipeline.errors import ConfigError
from pipeline.progress import progress_bar
from pipeline.tasks.base import Task

logger = logging.getLogger(__name__)


def build_loader(
    config: Config,
    args: Seq2SeqTrainingArguments,
    task: Task,
    rows: Mapping[str, Rows],
    lanes: int = 1,
    filters: Mapping[str, Filters] = MappingProxyType({}),
) -> BatchLoader:
    """Make the loader of this rank's training batches.

    Args:
        rows: of the training split, as they were read; or of each corpus of a mixture, by name.
        lanes: shares of the rows that are prepared by themselves; see `count_lanes`.
        filters: of the corpora whose rows are filtered; see `build_filters`.

    Raises:
        ConfigError: for augmentation of a task without a source to change, or of case that is lost; fewer rows than
            lanes; shares by a size that is not known.
    """
    state = PartialState()
    make_batches = task.make_batches(args.per_device_train_batch_size, state.num_processes)
    augmentation = config.augmentation
    augment, noise = None, make_noise(augmentation, config.data, task.text_columns)
    if noise or augmentation.changes_tokens:
        if task.tokenizer is None or make_batches is not None:
            raise ConfigError(f"augmentation: {config.task} has no source to change; leave it out")
        _check_casing(noise, task.tokenizer)
    if augmentation.changes_tokens:
        _check_target_noise(config, task)
        augment = Augmentation(
            augmentation, task.tokenizer, config.data.max_source_length, config.data.max_target_length
        )
    samples = {name: task.to_samples(corpus) for name, corpus in rows.items()}
    _check_lanes(samples, lanes, state.num_processes)
    settings = {
        "encode": partial(task.encode, limits=config.data),
        "lengths": task.lengths,
        "batch_rows": args.per_device_train_batch_size,
        "batch_tokens": config.data.batch_tokens,
        "packing": config.data.packing,
        "window": config.data.shuffle_window,
        "make_batches": make_batches,
        "noise": noise,
        "augment": augment,
        "filters": filters,
        "max_bad_rows": config.data.max_bad_rows if config.data.on_bad_row == "skip" else 0,
        "patience": max(retry_seconds(corpus) for corpus in config.data.corpora.values()),
        "seed": args.seed if args.data_seed is None else args.data_seed,
        "lanes": lanes,
    }
    make_stream: Callable[..., LaneStream]
    if config.data.mix is None:
        make_stream = partial(BatchStream, samples[""], **settings)
    else:
        sizes = count_rows(config.data, samples)
        stages = plan_stages(config.data, sizes)
        make_stream = partial(MixedStream, samples, stages=stages, sizes=sizes, **settings)
    return BatchLoader(
        Lanes(lambda lane: make_stream(lane=lane), lanes, state.process_index, state.num_processes),
        task.pack if config.data.packing else task.collate,
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor or 1,
        timeout=config.data.worker_timeout,
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
    )


def _check_target_noise(config: Config, task: Task) -> None:
    """Refuse noise on a target that is not a text, or where the decoder reads more than labels behind a start token."""
    for name in ("bpe_dropout_target", "word_dropout_target"):
        if getattr(config.augmentation, name) and "target" not in task.text_columns:
            raise ConfigError(f"augmentation.{name}: {config.task} has no target text to change; leave it out")
    if config.augmentation.word_dropout_target and task.start_token_id is None:
        raise ConfigError(
            "augmentation.word_dropout_target: the decoder of model.from begins with no start token; leave it out"
        )


def build_filters(
    config: Config, task: Task, held_out: Iterable[Feature], duplicates: Mapping[str, Duplicates]
) -> dict[str, Filters]:
    """Make the filters of each corpus that has any.

    Args:
        held_out: features of all sets of validation and test.
        duplicates: see `find_all_duplicates`.
    """
    filtered = {name: corpus.filters for name, corpus in config.data.corpora.items() if corpus.filters.rules}
    needs_held_out = any(filters.drop_held_out for filters in filtered.values())
    hashes = hash_held_out(held_out, task.text_columns) if needs_held_out else set()
    return {
        name: Filters(filters, task.lengths, task.text_columns, hashes, duplicates.get(name))
        for name, filters in filtered.items()
    }


def find_all_duplicates(
    config: Config, task: type[Task], rows: Mapping[str, Rows], folder: Path
) -> dict[str, Duplicates]:
    """Find the duplicates inside each corpus that drops them, by reading it once.

    Args:
        rows: of the training split, or of each corpus of a mixture, by name; to be read from front to back.
        folder: in which there is room for hashes of the rows meanwhile.

    Raises:
        ConfigError: for a stream whose rows cannot be told apart.
        DataError: when rows cannot be read.
    """
    duplicates = {}
    for name, corpus in config.data.corpora.items():
        if not corpus.filters.drop_duplicates:
            continue
        place, by_place = place_of("train", name), not isinstance(rows[name], Dataset)
        if by_place and PLACE not in next(iterate_rows(rows[name].take(1), retry_seconds(corpus)), {}):
            raise ConfigError(
                f"data.filters.drop_duplicates: the rows of this stream ({place}) have no file and line by which they "
                "could be told apart; set streaming=false, or leave it out"
            )
        with progress_bar(f"looking for duplicates in {place}", "rows", length_hint(rows[name])) as bar:
            read = _counted(iterate_rows(rows[name], retry_seconds(corpus)), bar.update)
            duplicates[name] = find_duplicates(read, task.text_columns, by_place, folder)
        logger.info("%s: %d rows are the same as an earlier one", place, len(duplicates[name]))
    return duplicates


def _counted(rows: Iterable[dict[str, Any]], update: Callable[[int], Any]) -> Iterator[dict[str, Any]]:
    for row in rows:
        update(1)
        yield row


def _check_casing(noise: Mapping[str, TextNoise], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse casing of texts that the tokenizer then puts in lower case."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None or normalizer.normalize_str("A").strip("▁ ") != "a":
        return
    for name in ("upper_case", "title_case"):
        if any(of_corpus.rates[name] for of_corpus in noise.values()):
            raise ConfigError(
                f"augmentation.{name}: the tokenizer puts all texts in lower case, so this changes nothing; leave it "
                "out, or set tokenizer.lowercase=false"
            )


def _check_lanes(corpora: Mapping[str, Rows], lanes: int, ranks: int) -> None:
    """Refuse fewer rows than lanes; say what a lane is, and at what cost lanes are prepared by several ranks."""
    for name, rows in corpora.items():
        which = f"data.mix.{name}: " if name else ""
        if isinstance(rows, Dataset) and 0 < len(rows) < lanes:
            raise ConfigError(f"{which}data.lanes: {lanes} lanes need as many training rows, and there are {len(rows)}")
        if lanes > 1:
            is_sharded = not isinstance(rows, Dataset) and is_divisible(rows.num_shards, lanes)
            share = f"a share of {rows.num_shards} shards" if is_sharded else f"every {lanes}th row"
            logger.info("%s%d lanes, each with %s", which, lanes, share)
    if (times := ranks // gcd(ranks, lanes)) > 1:
        logger.info("each of %d lanes is prepared by %d of the %d processes", lanes, times, ranks)


def count_lanes(config: Config, state: dict[str, Any] | None, task: type[Task]) -> int:
    """Return how many lanes a run has: as many as it began with, `data.lanes`, or one for each rank.

    A mixture has one for each worker of each rank, as a worker makes all windows of a lane of it.

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
        workers = 1 if config.data.mix is None else max(1, config.training.get("dataloader_num_workers", 0))
        return given or PartialState().num_processes * workers
    begun = len(positions_of(state))
    if given not in (None, begun):
        raise ConfigError(f"data.lanes: the run began with {begun}, and goes on with as many; leave it out")
    return begun
