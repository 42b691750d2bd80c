"""Endless, shuffled, length-grouped batches in one global order, whose position is a small state.

Rows are read a window at a time. Inside a window they are shuffled, grouped by length and cut into batches, and the
batches are shuffled again. The order depends on (seed, pass, window) alone, so it is the same on every rank: of `n`
ranks, rank `r` takes every n-th batch. A position is where a window starts and a count of batches; resuming reads that
one window again, not what came before it.
"""

import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, cycle, repeat
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from pipeline.data.hub_reading import iterate
from pipeline.data.length_grouping import Lengths, group, pack
from pipeline.errors import DataError

Columns = dict[str, list]
Feature = dict[str, Any]

NAMED_BAD_ROWS = 3  # of a window, in the log
# pyarrow's and pandas' errors are ValueErrors; the others are the Hub's, when patience is at its end.
UNREADABLE = (ValueError, DatasetGenerationError, HfHubHTTPError, httpx.TransportError, ConnectionError, EOFError)
FIRST_ROWS = 1_000  # in the very first window, so that training begins soon whatever a window holds
PARTS_OF_WINDOW = 10  # a stream's windows end at a multiple of these parts, as a shard may end anywhere

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """A place in the endless order of batches; plain data, so that a checkpoint can hold it as JSON.

    Attributes:
        number: of the pass over the rows, from 0.
        window: of the window in its pass, from 0.
        rows: where the window starts in a stream: the turn of its shard and the state inside that; None at the
            beginning of a pass.
        first_row: rows of this pass before the window.
        first_batch: batches of all passes before the window.
        next_batch: batches of all passes that are consumed, over all ranks.
        skipped_before: bad rows of all passes before the window.
        skipped_in_pass: of this pass, before the window.
        skipped_in_window: of the window.
        epoch: passes done, with the fraction of the current one where the number of rows is known.
    """

    number: int = 0
    window: int = 0
    rows: Any = None
    first_row: int = 0
    first_batch: int = 0
    next_batch: int = 0
    skipped_before: int = 0
    skipped_in_pass: int = 0
    skipped_in_window: int = 0
    epoch: float = 0.0


@dataclass
class Window:
    """What some rows that are read together give, wherever in the order they stand.

    Attributes:
        number: of its pass.
        batches: lists of features, or what they are collated into.
        size: its rows. bad: a name for each bad one.
        end: in a stream, the place behind it.
    """

    number: int
    batches: list[Any]
    size: int
    bad: list[str]
    end: Any


class BatchStream(torch.utils.data.IterableDataset):
    """Batches without end, one pass over the rows after another, from `position` on.

    Args:
        rows: a data set or a stream; a data set is permuted whole for each pass, a stream has its shards permuted.
        encode: columns of some rows, their numbers among them as "row" -> one feature a row, or what is wrong with it.
        lengths: tokens on each side of a feature; rows of like lengths share a batch.
        batch_rows: rows in a batch, where `batch_tokens` is None.
        batch_tokens: a batch holds as many rows as fit when each side is padded to its longest, and at least one.
        packing: nothing is padded, so any rows share a batch.
        window: rows read at a time; of a stream up to a tenth more. The very first window of batches counted in tokens
            is short.
        augment: changes a feature, by random numbers of its own for every pass and row.
        arrange: makes the batches of a window, in their order, from rows that are read in order, not permuted.
        patience: seconds to try again what a stream cannot read.
        max_bad_rows: bad rows that a pass may have; they are skipped. None skips any number.
        rank, world_size: which batches of the global order are yielded here.

    Yields:
        (list of features, position): the batch, and the position from which the stream goes on behind it.

    Raises:
        DataError: for one bad row too many, naming it; when a whole pass leaves no row to train on; when rows cannot be
            read.
    """

    def __init__(
        self,
        rows: Dataset | IterableDataset,
        encode: Callable[[Columns], list[Feature | str]],
        lengths: Callable[[Feature], Lengths],
        *,
        batch_rows: int,
        batch_tokens: int | None = None,
        packing: bool = False,
        window: int = 10_000,
        arrange: Callable[[list[Feature], np.random.Generator], list[list[Feature]]] | None = None,
        augment: Callable[[Feature, np.random.Generator], Feature] | None = None,
        max_bad_rows: int | None = 0,
        patience: float = 0.0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.rows, self.encode, self.lengths = rows, encode, lengths
        self.batch_rows, self.batch_tokens, self.packing = batch_rows, batch_tokens, packing
        self.window, self.max_bad_rows, self.patience = window, max_bad_rows, patience
        self.arrange, self.augment = arrange, augment
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.position = Position()

    def count_batches(self) -> int:
        """Batches in the first pass, over all ranks; reads and encodes every row once."""
        begin = Position()
        windows = (self._cut(read(), end, 0, index) for index, (read, end) in enumerate(self._read(begin)))
        return sum(len(window.batches) for _, _, window in self._place(windows, begin))

    def __iter__(self) -> Iterator[tuple[list[Feature], Position]]:
        return self.batches(self.windows(self.position))

    def windows(self, position: Position, worker: int = 0, num_workers: int = 1) -> Generator[Window]:
        """Windows from `position` on, pass after pass; of these, every `num_workers`-th."""
        turns = cycle(range(num_workers))
        for number in count(position.number):
            start = position if number == position.number else Position(number)
            is_empty = not start.first_row
            for index, (read, end) in enumerate(self._read(start), start.window):
                is_empty = False
                if next(turns) == worker:
                    yield self._cut(read(), end, number, index)
            if is_empty:  # or this would go on for ever
                raise DataError("there are no training rows")

    def batches(self, windows: Iterator[Window]) -> Iterator[tuple[Any, Position]]:
        """This rank's batches of the windows from `self.position` on."""
        begin = self.position.next_batch
        for here, behind, window in self._place(windows, self.position):
            for index, batch in enumerate(window.batches):
                turn, rank = divmod(here.first_batch + index - begin, self.world_size)
                if turn < 0 or rank != self.rank:
                    continue
                next_batch = begin + (turn + 1) * self.world_size
                yield (
                    batch,
                    replace(
                        here if next_batch < behind.first_batch else behind,  # a used up window is not read again
                        next_batch=next_batch,
                        epoch=here.number + self._share_of_pass(here, (index + 1) / len(window.batches)),
                    ),
                )

    def _place(self, windows: Iterator[Window], position: Position) -> Iterator[tuple[Position, Position, Window]]:
        """Every window from `position` on, with the positions of its beginning and its end."""
        useful = position.first_batch > 0
        bad: list[str] = []
        for window in windows:
            if window.number > position.number:
                if not useful:
                    break
                position = replace(position, number=window.number, window=0, rows=None, first_row=0, skipped_in_pass=0)
            skipped = len(window.bad)
            if skipped:
                bad = window.bad
                self._complain(bad, position)
            behind = replace(
                position,
                window=position.window + 1,
                rows=window.end,
                first_row=position.first_row + window.size,
                first_batch=position.first_batch + len(window.batches),
                skipped_before=position.skipped_before + skipped,
                skipped_in_pass=position.skipped_in_pass + skipped,
                skipped_in_window=0,
            )
            yield replace(position, skipped_in_window=skipped), behind, window
            useful = useful or bool(window.batches)
            position = behind
        if not useful:
            last = f"; the last: {bad[-1]}" if bad else ""
            raise DataError(f"none of the {position.first_row} training rows can be used{last}")

    def _cut(self, columns: Columns, end: Any, number: int, index: int) -> Window:
        """The batches of some rows, which are a window of pass `number`."""
        generator = np.random.default_rng((self.seed, number, index))
        encoded = self.encode(columns)
        features = [feature for feature in encoded if not isinstance(feature, str)]
        if self.augment is not None:
            features = [
                self.augment(each, np.random.default_rng((self.seed, number, each["sample_id"], 1)))
                for each in features
            ]
        if self.arrange is not None:
            batches = self.arrange(features, generator)
        elif self.packing and self.batch_tokens is not None:
            batches = pack(features, self.lengths, self.batch_tokens, generator)
        else:
            batches = group(features, self.lengths, self._room, generator)
        return Window(number, batches, len(encoded), name_bad_rows(columns, encoded), end)

    def _complain(self, bad: list[str], position: Position) -> None:
        """Raises DataError for more bad rows than are allowed; else names some of them in the log, on one process."""
        if self.max_bad_rows == 0:
            raise DataError(f"{bad[0]}; mend or remove the row, or set data.on_bad_row=skip")
        count = position.skipped_in_pass + len(bad)
        if self.max_bad_rows is not None and count > self.max_bad_rows:
            raise DataError(f"{count} bad rows in one pass, where data.max_bad_rows={self.max_bad_rows}; one: {bad[0]}")
        if position.number == 0 and self.rank == 0:
            for name in bad[:NAMED_BAD_ROWS]:
                logger.warning("skipped: %s", name)
            if len(bad) > NAMED_BAD_ROWS:
                logger.warning("skipped: %d more rows of the same %d", len(bad) - NAMED_BAD_ROWS, self.window)

    def _read(self, position: Position) -> Iterator[tuple[Callable[[], Columns], Any]]:
        """The windows of the position's pass from there on: what gives the columns of each, and the place behind it."""
        if isinstance(self.rows, Dataset):
            order = self._order(position, len(self.rows))
            start = position.first_row
            for size in self._sizes(position):
                if start >= len(order):
                    return
                yield partial(self._rows, order[start : start + size]), None
                start += size
        first_row, end, sizes = position.first_row, position.rows, self._sizes(position)
        size = next(sizes)
        columns: Columns = {"row": []}
        for part, end in self._read_shards(position):
            row = first_row + len(columns["row"])
            columns["row"] += range(row, row + len(next(iter(part.values()))))
            for name, values in part.items():
                columns.setdefault(name, []).extend(values)
            if len(columns["row"]) >= size:
                yield partial(dict, columns), end
                columns, first_row, size = {"row": []}, first_row + len(columns["row"]), next(sizes)
        if columns["row"]:
            yield partial(dict, columns), end

    def _sizes(self, position: Position) -> Iterator[int]:
        """Rows of the windows of a pass, from the position on.

        Batches of so many rows have no short window, which would end in one more batch that is not full.
        """
        is_short = position.number == position.window == 0 and self.batch_tokens is not None and self.arrange is None
        return chain([min(FIRST_ROWS, self.window)] if is_short else [], repeat(self.window))

    def _rows(self, numbers: np.ndarray) -> Columns:
        return {**self.rows[numbers], "row": numbers.tolist()}

    def _read_shards(self, position: Position) -> Iterator[tuple[Columns, Any]]:
        """Columns of some rows at a time, and the place behind them: a shard's turn and the state inside it.

        The shards are permuted here, as `IterableDataset.shuffle` reads ten of them at once, and a resume would
        open all of them: https://github.com/huggingface/datasets/blob/5.2.0/src/datasets/iterable_dataset.py
        """
        count = self.rows.num_shards
        order = self._order(position, count).tolist()
        first, state = position.rows or (0, None)
        rows_read = position.first_row
        for turn in range(first, count):
            shard = self.rows.shard(count, order[turn])
            part = max(1, min(self.window // PARTS_OF_WINDOW, FIRST_ROWS))
            try:
                for columns, behind in iterate(shard, part, self.patience, state):
                    yield columns, (turn, behind)
                    rows_read += len(next(iter(columns.values())))
            except UNREADABLE as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(f"data: the rows behind row {rows_read} cannot be read: {error}") from error
            state = None

    def _order(self, position: Position, count: int) -> np.ndarray:
        generator = np.random.default_rng((self.seed, position.number))
        return generator.permutation(count) if self.arrange is None else np.arange(count)

    def _room(self, longest: Lengths) -> int:
        """Rows that a batch may hold when each side is padded to its longest."""
        return self.batch_rows if self.batch_tokens is None else max(1, self.batch_tokens // max(1, sum(longest)))

    def _share_of_pass(self, position: Position, share_of_window: float) -> float:
        if not isinstance(self.rows, Dataset):
            return 0.0
        rows = min(next(self._sizes(position)), len(self.rows) - position.first_row)
        return (position.first_row + share_of_window * rows) / len(self.rows)


def name_bad_rows(columns: Columns, encoded: list[Feature | str]) -> list[str]:
    """Where each bad row stands, by file and line or by number, and what is wrong with it.

    Args:
        columns: as given to `encode`; "place" and "problem" hold what the reader of a text file knows of each row.
    """
    places = columns.get("place") or [f"row {row}" for row in columns["row"]]
    problems = columns.get("problem") or [None] * len(encoded)
    return [
        f"{place}: {problem or feature}"
        for place, problem, feature in zip(places, problems, encoded, strict=True)
        if isinstance(feature, str)
    ]
