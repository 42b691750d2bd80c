"""Endless, shuffled, length-grouped batches in one global order, whose position is a small state.

Rows are read a window at a time. Inside a window they are shuffled, grouped by length and cut into batches, and the
batches are shuffled again. The order depends on (seed, pass, window) alone, so it is the same on every rank: of `n`
ranks, rank `r` takes every n-th batch. A position is where a window starts and a count of batches; resuming reads that
one window again, not what came before it.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader, get_worker_info

from pipeline.config import DataError

Columns = dict[str, list]
Feature = dict[str, Any]


@dataclass(frozen=True)
class Position:
    """A place in the endless order of batches; plain data, so that a checkpoint can hold it as JSON.

    Attributes:
        number: of the pass over the rows, from 0.
        window: of the window in its pass, from 0.
        rows: where the window starts: a row count, or a stream's own state; None at the beginning of a pass.
        first_row: rows of this pass before the window.
        first_batch: batches of all passes before the window.
        next_batch: batches of all passes that are consumed, over all ranks.
        left_out: rows of all passes, up to this window's end, that gave no feature.
        epoch: passes done, with the fraction of the current one where the number of rows is known.
    """

    number: int = 0
    window: int = 0
    rows: Any = None
    first_row: int = 0
    first_batch: int = 0
    next_batch: int = 0
    left_out: int = 0
    epoch: float = 0.0


class BatchStream(torch.utils.data.IterableDataset):
    """Batches without end, one pass over the rows after another, from `position` on.

    Args:
        rows: a data set or a stream; a data set is permuted whole for each pass, a stream has its shards permuted.
        encode: columns of some rows, their numbers among them as "row" -> one feature a row, None to leave it out.
        lengths: tokens on each side of a feature; features are grouped by it.
        batch_rows: rows in a batch, where `batch_tokens` is None.
        batch_tokens: a batch holds as many rows as fit when each side is padded to its longest, and at least one.
        window: rows read at a time.
        rank, world_size: which batches of the global order are yielded here.

    Yields:
        (list of features, position): the batch, and the position from which the stream goes on behind it.

    Raises:
        DataError: when a whole pass leaves no row to train on.
    """

    def __init__(
        self,
        rows: Dataset | IterableDataset,
        encode: Callable[[Columns], list[Feature | None]],
        lengths: Callable[[Feature], tuple[int, ...]],
        *,
        batch_rows: int,
        batch_tokens: int | None = None,
        window: int = 10_000,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if isinstance(rows, IterableDataset) and rows.num_shards > 1:
            rows = rows.shuffle(seed=seed, buffer_size=1)  # the order of the shards alone: rows are shuffled here
        self.rows, self.encode, self.lengths = rows, encode, lengths
        self.batch_rows, self.batch_tokens = batch_rows, batch_tokens
        self.window, self.seed, self.rank, self.world_size = window, seed, rank, world_size
        self.position = Position()

    def count_batches(self) -> int:
        """Batches in the first pass, over all ranks; reads and encodes every row once."""
        first_pass = takewhile(lambda window: window[0].number == 0, self._windows(Position()))
        return sum(len(batches) for _, batches in first_pass)

    def __iter__(self) -> Iterator[tuple[list[Feature], Position]]:
        worker = get_worker_info()
        num_workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        if worker and isinstance(self.rows, IterableDataset):
            # A stream keeps its epoch in memory that all workers share, and one that is ahead would change it for all:
            # https://github.com/huggingface/datasets/blob/5.2.0/src/datasets/iterable_dataset.py (set_epoch)
            self.rows = copy.deepcopy(self.rows)
        begin = self.position.next_batch
        for position, batches in self._windows(self.position):
            for index, batch in enumerate(batches):
                turn, rank = divmod(position.first_batch + index - begin, self.world_size)
                if turn < 0 or rank != self.rank or turn % num_workers != worker_id:
                    continue
                yield (
                    batch,
                    replace(
                        position,
                        next_batch=begin + (turn + 1) * self.world_size,
                        epoch=position.number + self._share_of_pass(position, (index + 1) / len(batches)),
                    ),
                )

    def _windows(self, position: Position) -> Iterator[tuple[Position, list[list[Feature]]]]:
        """Every window from `position` on: the position of its beginning, and all its batches in order."""
        useful = position.first_batch > 0
        while True:
            for rows, columns in self._read(position):
                features = [feature for feature in self.encode(columns) if feature is not None]
                count = len(columns["row"])
                left_out = position.left_out + count - len(features)
                batches = self._cut(features, np.random.default_rng((self.seed, position.number, position.window)))
                yield replace(position, rows=rows, left_out=left_out), batches
                useful = useful or bool(batches)
                position = replace(
                    position,
                    window=position.window + 1,
                    first_row=position.first_row + count,
                    first_batch=position.first_batch + len(batches),
                    left_out=left_out,
                )
            if not useful:
                raise DataError(
                    f"none of the {position.left_out} training rows is left: all are longer than "
                    "data.max_source_length or data.max_target_length; raise these"
                )
            position = replace(position, number=position.number + 1, window=0, rows=None, first_row=0)

    def _read(self, position: Position) -> Iterator[tuple[Any, Columns]]:
        """The windows of the position's pass from there on: where each starts, and its columns."""
        if isinstance(self.rows, Dataset):
            order = np.random.default_rng((self.seed, position.number)).permutation(len(self.rows))
            for start in range(position.first_row, len(order), self.window):
                rows = order[start : start + self.window]
                yield None, {**self.rows[rows], "row": rows.tolist()}
            return
        self.rows.set_epoch(position.number)
        if position.rows is not None:
            self.rows.load_state_dict(position.rows)
        state, first_row = position.rows, position.first_row
        # Not iter(rows): inside a loader worker that would read this worker's share of the shards alone.
        for columns in self.rows.iter(batch_size=self.window):
            count = len(next(iter(columns.values())))
            yield state, {**columns, "row": list(range(first_row, first_row + count))}
            state, first_row = self.rows.state_dict(), first_row + count

    def _cut(self, features: list[Feature], generator: np.random.Generator) -> list[list[Feature]]:
        shuffled = [features[index] for index in generator.permutation(len(features))]
        shuffled.sort(key=self.lengths)  # stable: rows of one length stay shuffled
        batches: list[list[Feature]] = []
        longest: tuple[int, ...] = ()
        for feature in shuffled:
            lengths = self.lengths(feature)
            grown = tuple(map(max, longest, lengths)) if longest else lengths
            if batches and not self._is_over(len(batches[-1]) + 1, grown):
                batches[-1].append(feature)
                longest = grown
            else:
                batches.append([feature])
                longest = lengths
        return [batches[index] for index in generator.permutation(len(batches))]

    def _is_over(self, rows: int, longest: tuple[int, ...]) -> bool:
        if self.batch_tokens is None:
            return rows > self.batch_rows
        return rows * sum(longest) > self.batch_tokens

    def _share_of_pass(self, position: Position, share_of_window: float) -> float:
        if not isinstance(self.rows, Dataset):
            return 0.0
        rows = min(self.window, len(self.rows) - position.first_row)
        return (position.first_row + share_of_window * rows) / len(self.rows)


class BatchLoader:
    """What Trainer iterates over: collated batches of a `BatchStream`, and the position behind the one in use.

    It has no length: Trainer then counts steps alone, so no step is cut short where a pass over the data ends.
    """

    def __init__(self, stream: BatchStream, collate: Callable[[list[Feature]], dict[str, torch.Tensor]], **options):
        self.stream, self.collate, self.options = stream, collate, options

    @property
    def position(self) -> Position:
        return self.stream.position

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.position = Position(**state)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        # Collating in the worker, beside the position, which stays untouched.
        def collate(item: Any) -> tuple[dict[str, torch.Tensor], Position]:
            features, position = item
            return self.collate(features), position

        # A generator of its own: DataLoader draws a seed at its start, which would shift a resumed run's dropout.
        options = {"collate_fn": collate, "generator": torch.Generator(), **self.options}
        for batch, position in DataLoader(self.stream, batch_size=None, **options):
            self.stream.position = position
            yield batch
