"""Endless, shuffled, length-grouped batches of one lane, in an order whose position is a small state.

A lane is a share of the rows that is prepared by itself; `data/lanes.py` deals batches of all lanes out to the ranks.
A run with one lane has all rows in it.

Rows are read a window at a time. Inside a window they are shuffled, grouped by length and cut into batches, and the
batches are shuffled again. The order depends only on (seed, lane, pass, window), so it is the same whoever prepares it.

Ten rows in windows of six, batches of two rows:

    pass      |               0                |            1           |
    window    |         0          |     1     |       0      |    1    |
    rows      |   7 2 9 0 4 8      |  1 5 6 3  |  3 9 0 5 8 2 | 6 1 4 7 |     permuted for each pass
    batch     |  [0]   [1]   [2]   | [3]   [4] | [5]  [6] [7] | [8] [9] |     numbered over all passes
                                         ^
A position is the beginning of a window and a count of batches. Behind batch 3 (^) it is

    Position(pass_index=0, window=1, first_row=6, first_batch=3, next_batch=4)

Resuming there reads window 1 again, drops its batch 3, and goes on with batch 4; what came before is not read. Of a
stream, `stream_state` says where window 1 begins.
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

from pipeline.data.hub_reading import iterate_stream
from pipeline.data.length_grouping import Lengths, group, pack
from pipeline.data.rows import HOW_TO_FIX, BadRow, Columns, Feature, separate
from pipeline.errors import DataError

NAMED_BAD_ROWS = 3  # of a window, in the log
# pyarrow's and pandas' errors are ValueErrors; the others are the Hub's, when patience is at its end.
UNREADABLE = (ValueError, DatasetGenerationError, HfHubHTTPError, httpx.TransportError, ConnectionError, EOFError)
FIRST_ROWS = 1_000  # in the very first window, so that training begins soon whatever a window holds
FAIR_SHARDS = 8  # of a lane, from which on one more in some lanes is a small difference
CHUNKS_OF_WINDOW = 10  # a stream is read a tenth of a window at a time, so a window ends up to a tenth late
OLD_NAMES = {"number": "pass_index", "rows": "stream_state"}  # of a Position, in checkpoints of version 0.1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """A place in the endless order of a lane's batches; plain data, so that a checkpoint can hold it as JSON.

    Attributes:
        pass_index: passes over the rows before this one.
        window: windows of this pass before this one.
        stream_state: where the window starts in a stream: the turn of its shard, the state inside that, and the rows
            of all lanes that were read for it; None at the beginning of a pass, and for a data set.
        first_row: rows of this pass, and this lane, before the window.
        first_batch: batches of all passes before the window.
        next_batch: batches of all passes that are consumed, over all ranks.
        skipped_before: bad rows of all passes before the window.
        skipped_in_pass: of this pass, before the window.
        skipped_in_window: of the window.
        epoch: passes done, with the fraction of the current one where the number of rows is known.
    """

    pass_index: int = 0
    window: int = 0
    stream_state: Any = None
    first_row: int = 0
    first_batch: int = 0
    next_batch: int = 0
    skipped_before: int = 0
    skipped_in_pass: int = 0
    skipped_in_window: int = 0
    epoch: float = 0.0

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Position":
        """Read a position as a checkpoint holds it; those of version 0.1.0 have other names for two of its fields."""
        return cls(**{OLD_NAMES.get(name, name): value for name, value in state.items()})

    def after(self, window: "Window") -> "Position":
        """Return the beginning of the next window, where `window` begins here."""
        return replace(
            self,
            window=self.window + 1,
            stream_state=window.end_state,
            first_row=self.first_row + window.num_rows,
            first_batch=self.first_batch + len(window.batches),
            skipped_before=self.skipped_before + len(window.bad_rows),
            skipped_in_pass=self.skipped_in_pass + len(window.bad_rows),
            skipped_in_window=0,
        )

    def begin_pass(self, pass_index: int) -> "Position":
        """Return the beginning of a pass, where the pass before it ends here."""
        return replace(self, pass_index=pass_index, window=0, stream_state=None, first_row=0, skipped_in_pass=0)

    def begin_other_data(self, pass_index: int) -> "Position":
        """Return where to go on when the rows are others than before: at the beginning of a later pass."""
        return replace(
            self.begin_pass(pass_index),
            first_batch=self.next_batch,
            skipped_before=self.skipped_before + self.skipped_in_window,
            skipped_in_window=0,
        )


@dataclass
class Window:
    """What the rows of one window give. It does not know its position, which needs the counts of all before it.

    Attributes:
        lane: that it belongs to.
        pass_index: of its pass.
        batches: lists of features, or what they are collated into.
        num_rows: rows that were read for it, bad ones included.
        bad_rows: those that are in no batch.
        end_state: in a stream, the state behind its last row.
    """

    lane: int
    pass_index: int
    batches: list[Any]
    num_rows: int
    bad_rows: list[BadRow]
    end_state: Any


class BatchStream(torch.utils.data.IterableDataset):
    """Batches of a lane without end, one pass over the rows after another, from `position` on.

    Args:
        rows: a data set or a stream, with the rows of all lanes; a data set is permuted whole for each pass, a stream
            has its shards permuted. Then every `lanes`-th row of a data set, or shard of a stream that has enough of
            them, belongs to this lane; of a stream with fewer, every `lanes`-th row.
        encode: columns of some rows, their numbers among them as "row" -> a feature or a `BadRow` for each.
        lengths: tokens on each side of a feature; rows of like lengths share a batch.
        batch_rows: rows in a batch, where `batch_tokens` is None.
        batch_tokens: a batch holds as many rows as fit when each side is padded to its longest, and at least one.
        packing: nothing is padded, so any rows share a batch.
        window: rows read at a time; of a stream up to a tenth more. The very first window of batches counted in tokens
            is short.
        make_batches: makes the batches of a window, in their order, from rows that are read in order, not permuted;
            None groups rows by length.
        augment: changes a feature, by random numbers that differ for every pass and row.
        patience: seconds to try again what a stream cannot read.
        max_bad_rows: bad rows that a pass may have; they are skipped. None skips any number.
        lane, lanes: which of how many lanes is made here.

    Yields:
        (list of features, position): the batch, and the position from which the stream goes on behind it.

    Raises:
        DataError: for one bad row too many, naming it; when a whole pass leaves no row to train on; when rows cannot be
            read.
    """

    def __init__(
        self,
        rows: Dataset | IterableDataset,
        encode: Callable[[Columns], list[Feature | BadRow]],
        lengths: Callable[[Feature], Lengths],
        *,
        batch_rows: int,
        batch_tokens: int | None = None,
        packing: bool = False,
        window: int = 10_000,
        make_batches: Callable[[list[Feature], np.random.Generator], list[list[Feature]]] | None = None,
        augment: Callable[[Feature, np.random.Generator], Feature] | None = None,
        max_bad_rows: int | None = 0,
        patience: float = 0.0,
        seed: int = 0,
        lane: int = 0,
        lanes: int = 1,
    ):
        self.rows, self.encode, self.lengths = rows, encode, lengths
        self.batch_rows, self.batch_tokens, self.packing = batch_rows, batch_tokens, packing
        self.window, self.max_bad_rows, self.patience = window, max_bad_rows, patience
        self.make_batches, self.augment = make_batches, augment
        self.lane, self.lanes = lane, lanes
        self.order_seed = seed  # of the order of all rows, in which the lanes take turns
        self.seed = seed if lanes == 1 else int(np.random.SeedSequence((seed, lanes, lane)).generate_state(1)[0])
        self.position = Position()

    def count_batches(self) -> int:
        """Count the batches of the first pass; reads and encodes every row of the lane once."""
        begin = Position()
        windows = (
            self._make_window(read(), end_state, 0, index)
            for index, (read, end_state) in enumerate(self._read_windows(begin))
        )
        return sum(len(window.batches) for _, _, window in self.with_positions(windows, begin))

    def __iter__(self) -> Iterator[tuple[list[Feature], Position]]:
        for start, end, window in self.with_positions(self.windows(self.position), self.position):
            for index, batch in enumerate(window.batches):
                next_batch = start.first_batch + index + 1
                if next_batch > self.position.next_batch:  # the others were consumed before this stream began
                    self.position = self.position_behind(start, end, next_batch)
                    yield batch, self.position

    def windows(self, position: Position, worker: int = 0, num_workers: int = 1) -> Generator[Window]:
        """Yield windows from `position` on, pass after pass; of these, every `num_workers`-th, beginning with `worker`.

        The turns go on over the end of a pass, so that whoever asks the workers in turn gets the windows in order.
        """
        turns = cycle(range(num_workers))
        for pass_index in count(position.pass_index):
            start = position if pass_index == position.pass_index else Position(pass_index)
            is_empty = start.first_row == 0
            for index, (read, end_state) in enumerate(self._read_windows(start), start.window):
                is_empty = False
                if next(turns) == worker:
                    yield self._make_window(read(), end_state, pass_index, index)
            if is_empty:  # or this would go on for ever
                hint = "" if self.lanes == 1 else f" for one of data.lanes={self.lanes}; set fewer"
                raise DataError(f"there are no training rows{hint}")

    def position_behind(self, start: Position, end: Position, next_batch: int) -> Position:
        """Return the position from which the lane goes on with batch `next_batch`.

        Args:
            start, end: of the window in use.
        """
        num_batches = end.first_batch - start.first_batch
        share_of_window = min(1.0, (next_batch - start.first_batch) / num_batches) if num_batches else 1.0
        epoch = start.pass_index + self._share_of_pass(start, share_of_window)
        # A used up window is not read again.
        return replace(start if next_batch < end.first_batch else end, next_batch=next_batch, epoch=epoch)

    def with_positions(
        self, windows: Iterator[Window], position: Position
    ) -> Iterator[tuple[Position, Position, Window]]:
        """Yield each window with the positions of its beginning and its end; the first one begins at `position`.

        Raises:
            DataError: for too many bad rows; where a whole pass gives no batch.
        """
        is_useful = position.first_batch > 0  # whether any row could be used
        bad_rows: list[BadRow] = []
        for window in windows:
            if window.pass_index > position.pass_index:
                if not is_useful:
                    break
                position = position.begin_pass(window.pass_index)
            if window.bad_rows:
                bad_rows = window.bad_rows
                self._report_bad_rows(bad_rows, position)
            end = position.after(window)
            yield replace(position, skipped_in_window=len(window.bad_rows)), end, window
            is_useful = is_useful or bool(window.batches)
            position = end
        if not is_useful:
            last = f"; the last: {bad_rows[-1]}" if bad_rows else ""
            raise DataError(f"none of the {position.first_row} training rows can be used{last}")

    def _make_window(self, columns: Columns, end_state: Any, pass_index: int, index: int) -> Window:
        """Encode some rows, and make the batches of window `index` of a pass of them."""
        generator = np.random.default_rng((self.seed, pass_index, index))
        encoded = self.encode(columns)
        features, bad_rows = separate(encoded)
        if self.augment is not None:
            # By row, so that the noise is the same however the rows fall into windows. The 1 keeps these seeds apart.
            features = [
                self.augment(feature, np.random.default_rng((self.seed, pass_index, feature["sample_id"], 1)))
                for feature in features
            ]
        if self.make_batches is not None:
            batches = self.make_batches(features, generator)
        elif self.packing and self.batch_tokens is not None:
            batches = pack(features, self.lengths, self.batch_tokens, generator)
        else:
            batches = group(features, self.lengths, self.room, generator)
        return Window(self.lane, pass_index, batches, len(encoded), bad_rows, end_state)

    def _report_bad_rows(self, bad_rows: list[BadRow], position: Position) -> None:
        """Name some bad rows of the window at `position` in the log.

        Raises:
            DataError: for more than are allowed.
        """
        if self.max_bad_rows == 0:
            raise DataError(f"{bad_rows[0]}; {HOW_TO_FIX}")
        num_bad = position.skipped_in_pass + len(bad_rows)
        if self.max_bad_rows is not None and num_bad > self.max_bad_rows:
            raise DataError(
                f"{num_bad} bad rows in one pass, where data.max_bad_rows={self.max_bad_rows}; one: {bad_rows[0]}"
            )
        if position.pass_index == 0:
            for bad_row in bad_rows[:NAMED_BAD_ROWS]:
                logger.warning("skipped: %s", bad_row)
            if len(bad_rows) > NAMED_BAD_ROWS:
                logger.warning("skipped: %d more rows of the same %d", len(bad_rows) - NAMED_BAD_ROWS, self.window)

    def _read_windows(self, position: Position) -> Iterator[tuple[Callable[[], Columns], Any]]:
        """Yield a function that reads its columns, and the stream's state behind it, for each window of a pass.

        A worker calls the functions of its own windows, so it reads no rows of a data set for the others. A stream can
        only be read from front to back: there every worker reads all rows, and encodes those of its own windows.

        Args:
            position: the beginning of the first window.
        """
        return (
            self._windows_of_dataset(position) if isinstance(self.rows, Dataset) else self._windows_of_stream(position)
        )

    def _windows_of_dataset(self, position: Position) -> Iterator[tuple[Callable[[], Columns], None]]:
        order = self._order(position, len(self.rows))[self.lane :: self.lanes]
        start = position.first_row
        for size in self._sizes(position):
            if start >= len(order):
                return
            yield partial(self._read_rows, order[start : start + size]), None
            start += size

    def _windows_of_stream(self, position: Position) -> Iterator[tuple[Callable[[], Columns], Any]]:
        """Yield the windows of a stream; each ends with the chunk of rows that fills it, so it may hold some more."""
        sizes = self._sizes(position)
        size, next_row, end_state = next(sizes), position.first_row, position.stream_state
        columns: Columns = {"row": []}
        for chunk, end_state in self._read_shards(position):
            num_rows = len(next(iter(chunk.values())))
            numbers = range(next_row, next_row + num_rows)  # among the rows of this lane
            columns["row"] += [number * self.lanes + self.lane for number in numbers]
            next_row += num_rows
            for name, values in chunk.items():
                columns.setdefault(name, []).extend(values)
            if len(columns["row"]) >= size:
                yield partial(dict, columns), end_state
                columns, size = {"row": []}, next(sizes)
        if columns["row"]:
            yield partial(dict, columns), end_state

    def _sizes(self, position: Position) -> Iterator[int]:
        """Yield how many rows the windows of a pass have, from the position on.

        The very first one is short, so that training begins soon. But not where batches are counted in rows, as a
        window's last batch is not full, and a short window would have one more of these.
        """
        is_first = position.pass_index == position.window == 0
        is_short = is_first and self.batch_tokens is not None and self.make_batches is None
        return chain([min(FIRST_ROWS, self.window)] if is_short else [], repeat(self.window))

    def _read_rows(self, numbers: np.ndarray) -> Columns:
        return {**self.rows[numbers], "row": numbers.tolist()}

    def _read_shards(self, position: Position) -> Iterator[tuple[Columns, Any]]:
        """Yield columns of some rows of this lane at a time, and the state behind them: see `Position.stream_state`.

        The shards are permuted here, as `IterableDataset.shuffle` reads ten of them at once, and a resume would
        open all of them: https://github.com/huggingface/datasets/blob/5.2.0/src/datasets/iterable_dataset.py
        """
        num_shards = self.rows.num_shards
        order = self._order(position, num_shards)
        # The lane's own shards with all their rows, or its own rows of all shards.
        order, stride = (order[self.lane :: self.lanes], 1) if self.has_shards else (order, self.lanes)
        first_turn, state, *rest = position.stream_state or (0, None)
        rows_read = rest[0] if rest else position.first_row
        chunk_size = max(1, min(self.window // CHUNKS_OF_WINDOW, FIRST_ROWS))
        for turn in range(first_turn, len(order)):
            shard = self.rows.shard(num_shards, int(order[turn]))
            try:
                for columns, next_state in iterate_stream(shard, chunk_size, self.patience, state):
                    first = (self.lane - rows_read) % stride
                    rows_read += len(next(iter(columns.values())))
                    own = {name: values[first::stride] for name, values in columns.items()} if stride > 1 else columns
                    yield own, (turn, next_state, rows_read)
            except UNREADABLE as error:
                raise DataError(f"data: the rows behind row {rows_read} cannot be read: {error}") from error
            state = None  # the next shard begins at its beginning

    @property
    def has_shards(self) -> bool:
        """Whether the lanes of a stream have shards of their own: with about as many rows in each."""
        return is_divisible(self.rows.num_shards, self.lanes)

    def _order(self, position: Position, count: int) -> np.ndarray:
        """Return the order of all rows or shards in a pass, (count)."""
        if self.make_batches is not None:
            return np.arange(count)
        return np.random.default_rng((self.order_seed, position.pass_index)).permutation(count)

    def room(self, longest: Lengths) -> int:
        """Return how many rows a batch may hold when each side is padded to its longest."""
        return self.batch_rows if self.batch_tokens is None else max(1, self.batch_tokens // max(1, sum(longest)))

    def _share_of_pass(self, position: Position, share_of_window: float) -> float:
        """Return how much of a pass is done behind a share of the window at `position`; 0 where its end is unknown."""
        if not isinstance(self.rows, Dataset):
            return 0.0
        all_rows = len(range(self.lane, len(self.rows), self.lanes))
        num_rows = min(next(self._sizes(position)), all_rows - position.first_row)
        return (position.first_row + share_of_window * num_rows) / max(1, all_rows)


def is_divisible(num_shards: int, lanes: int) -> bool:
    """Tell whether shards can be dealt out to lanes as they are: all get as many, or nearly so."""
    return num_shards % lanes == 0 or num_shards >= FAIR_SHARDS * lanes
