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
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, count, cycle, repeat
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, IterableDataset

from pipeline.data.filters import Filtered, Filters, add_filtered, describe
from pipeline.data.lane_rows import LaneRows, Part
from pipeline.data.length_grouping import Lengths, group, pack
from pipeline.data.rows import HOW_TO_FIX, BadRow, Columns, Feature, separate
from pipeline.data.text_noise import TextNoise, add_noise
from pipeline.errors import DataError

NAMED_BAD_ROWS = 3  # of a window, in the log
FIRST_ROWS = 1_000  # in the very first window, so that training begins soon whatever a window holds
ROWS_STEP = 16  # of a batch that is counted in tokens, from four times as many rows on
CHUNKS_OF_WINDOW = 10  # a stream is read a tenth of a window at a time, so a window ends up to a tenth late
Counts = dict[str, list[int]]  # name of a corpus -> rows, tokens, bad rows
NOTHING = [0, 0, 0]
OLD_NAMES = {"number": "pass_index", "rows": "stream_state"}  # of a Position, in checkpoints of version 0.1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """A place in the endless order of a lane's batches; plain data, so that a checkpoint can hold it as JSON.

    Attributes:
        pass_index: passes over the rows before this one.
        window: windows of this pass before this one.
        stream_state: where the window starts in a stream, see `LaneRows.read`; None at the beginning of a pass, and for
            a data set. Of a mixture, where it starts in each corpus, see `pipeline.data.mixture`.
        first_row: rows of this pass, and this lane, before the window.
        first_batch: batches of all passes before the window.
        next_batch: batches of all passes that are consumed, over all ranks.
        skipped_before: bad rows of all passes before the window.
        skipped_in_pass: of this pass, before the window.
        skipped_in_window: of the window.
        epoch: passes done, with the fraction of the current one where the number of rows is known.
        used: of a mixture, rows, tokens and bad rows of each corpus before the window.
        used_in_window: likewise, of the batches of the window that are consumed, and of all its bad rows.
        filtered: where rows are filtered, how many were read, and taken by each rule, before the window.
        filtered_in_window: of the window.
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
    used: Counts = field(default_factory=dict)
    used_in_window: Counts = field(default_factory=dict)
    filtered: Filtered = field(default_factory=dict)
    filtered_in_window: Filtered = field(default_factory=dict)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Position":
        """Read a position as a checkpoint holds it; those of version 0.1.0 have other names for two of its fields."""
        return cls(**{OLD_NAMES.get(name, name): value for name, value in state.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return the position as plain data; where no rows are filtered, as versions without filters wrote it."""
        state = asdict(self)
        return {name: value for name, value in state.items() if value or not name.startswith("filtered")}

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
            used=add_counts(self.used, window.counts[-1]) if window.counts else self.used,
            used_in_window={},
            filtered=add_filtered(self.filtered, window.filtered),
            filtered_in_window={},
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
            used=add_counts(self.used, self.used_in_window),
            used_in_window={},
            filtered=add_filtered(self.filtered, self.filtered_in_window),
            filtered_in_window={},
        )


@dataclass
class Window:
    """What the rows of one window give. It does not know its position, which needs the counts of all before it.

    Attributes:
        lane: that it belongs to.
        pass_index: of its pass.
        batches: lists of features, or what they are collated into.
        num_rows: rows that were read for it, bad and filtered ones included.
        bad_rows: those that are in no batch.
        end_state: in a stream, the state behind its last row.
        counts: of a mixture, `Position.used_in_window` behind the first n batches, at index n.
        filtered: as `Position.filtered_in_window`.
    """

    lane: int
    pass_index: int
    batches: list[Any]
    num_rows: int
    bad_rows: list[BadRow]
    end_state: Any
    counts: list[Counts] = field(default_factory=list)
    filtered: Filtered = field(default_factory=dict)


@dataclass
class Encoded:
    """What some rows of one corpus give: features, bad rows, and counts of `Filters.sort_out` where they are filtered.

    Rows that a filter took are neither features nor bad rows.
    """

    features: list[Feature]
    bad_rows: list[BadRow]
    filtered: dict[str, int]


def add_counts(first: Counts, second: Counts) -> Counts:
    """Return the sums of two counts by name."""
    names = [*first, *(name for name in second if name not in first)]
    pairs = [(first.get(name, NOTHING), second.get(name, NOTHING)) for name in names]
    return {name: [a + b for a, b in zip(*pair, strict=True)] for name, pair in zip(names, pairs, strict=True)}


class LaneStream(torch.utils.data.IterableDataset, ABC):
    """Batches of a lane without end, from `position` on, made of windows.

    Args:
        encode: columns of some rows, their numbers among them as "row" -> a feature or a `BadRow` for each.
        lengths: tokens on each side of a feature; rows of like lengths share a batch.
        batch_rows: rows in a batch, where `batch_tokens` is None.
        batch_tokens: a batch holds as many rows as fit when each side is padded to its longest, see `room`.
        packing: nothing is padded, so any rows share a batch.
        window: rows read at a time; of a stream up to a tenth more. The very first window of batches counted in tokens
            is short.
        make_batches: makes the batches of a window, in their order, from rows that are read in order, not permuted;
            None groups rows by length.
        noise: changes texts before they are encoded, by the name of a corpus; "" where there is one.
        augment: changes a feature, by random numbers that differ for every pass and row.
        filters: which rows are left out of each corpus, by its name; "" is the only one.
        patience: seconds to try again what a stream cannot read.
        max_bad_rows: bad rows that a pass may have; they are skipped. None skips any number.
        lane, lanes: which of how many lanes is made here.

    Attributes:
        shares_windows: whether several workers can prepare the windows of a lane in turn.
        num_rows: rows of all lanes in a pass; None where that is not known.
        sizes: of a mixture, the rows of each corpus, by its name.

    Yields:
        (list of features, position): the batch, and the position from which the stream goes on behind it.

    Raises:
        DataError: for one bad row too many, naming it; when a whole pass leaves no row to train on; when rows cannot be
            read.
    """

    shares_windows: ClassVar[bool] = True
    num_rows: int | None = None
    sizes: Mapping[str, int | None] = MappingProxyType({})

    def __init__(
        self,
        encode: Callable[[Columns], list[Feature | BadRow]],
        lengths: Callable[[Feature], Lengths],
        *,
        batch_rows: int,
        batch_tokens: int | None = None,
        packing: bool = False,
        window: int = 10_000,
        make_batches: Callable[[list[Feature], np.random.Generator], list[list[Feature]]] | None = None,
        noise: Mapping[str, TextNoise] = MappingProxyType({}),
        augment: Callable[[Feature, np.random.Generator], Feature] | None = None,
        filters: Mapping[str, Filters] = MappingProxyType({}),
        max_bad_rows: int | None = 0,
        patience: float = 0.0,
        seed: int = 0,
        lane: int = 0,
        lanes: int = 1,
    ):
        self.encode, self.lengths = encode, lengths
        self.batch_rows, self.batch_tokens, self.packing = batch_rows, batch_tokens, packing
        self.window, self.max_bad_rows, self.patience = window, max_bad_rows, patience
        self.make_batches, self.noise, self.augment, self.filters = make_batches, noise, augment, filters
        self.lane, self.lanes = lane, lanes
        self.seed = seed if lanes == 1 else int(np.random.SeedSequence((seed, lanes, lane)).generate_state(1)[0])
        self.position = Position()

    def __iter__(self) -> Iterator[tuple[list[Feature], Position]]:
        for start, end, window in self.with_positions(self.windows(self.position), self.position):
            for index, batch in enumerate(window.batches):
                next_batch = start.first_batch + index + 1
                if next_batch > self.position.next_batch:  # the others were consumed before this stream began
                    self.position = self.position_behind(start, end, window, next_batch)
                    yield batch, self.position

    @abstractmethod
    def windows(self, position: Position, worker: int = 0, num_workers: int = 1) -> Generator[Window]:
        """Yield windows from `position` on without end; of these, every `num_workers`-th, beginning with `worker`.

        The turns go on over the end of a pass, so that whoever asks the workers in turn gets the windows in order.
        """

    def position_behind(self, start: Position, end: Position, window: Window, next_batch: int) -> Position:
        """Return the position from which the lane goes on with batch `next_batch`.

        Args:
            start, end: of the window in use.
        """
        num_batches = end.first_batch - start.first_batch
        share_of_window = min(1.0, (next_batch - start.first_batch) / num_batches) if num_batches else 1.0
        epoch = start.pass_index + self._share_of_pass(start, share_of_window)
        if next_batch >= end.first_batch:  # a used up window is not read again
            return replace(end, next_batch=next_batch, epoch=epoch)
        used = window.counts[next_batch - start.first_batch] if window.counts else {}
        return replace(start, next_batch=next_batch, epoch=epoch, used_in_window=used)

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
            start = replace(position, skipped_in_window=len(window.bad_rows), filtered_in_window=window.filtered)
            yield start, end, window
            is_useful = is_useful or bool(window.batches)
            position = end
        if not is_useful:
            reasons = [describe(position.filtered.get("", {})), f"the last: {bad_rows[-1]}" if bad_rows else ""]
            why = "".join(f"; {reason}" for reason in reasons if reason)
            raise DataError(f"none of the {position.first_row} training rows can be used{why}")

    def encode_rows(self, columns: Columns, pass_index: int, seed: int, corpus: str = "") -> Encoded:
        """Encode some rows of a pass, leave those out that `filters` take, and put `noise` and `augment` on the others.

        Filters look at rows as they were read, and at their lengths without noise, so they take the same in all passes.
        """
        encoded = self.encode(columns)
        filtered: dict[str, int] = {}
        if corpus in self.filters:
            encoded, filtered = self.filters[corpus].sort_out(columns, encoded)
        features, bad_rows = separate(encoded)
        if corpus in self.noise:
            features = add_noise(features, columns, self.noise[corpus], self.encode, (seed, pass_index))
        if self.augment is not None:
            # By row, so that the noise is the same however the rows fall into windows. The 1 keeps these seeds apart.
            features = [
                self.augment(feature, np.random.default_rng((seed, pass_index, feature["sample_id"], 1)))
                for feature in features
            ]
        return Encoded(features, bad_rows, filtered)

    def cut(self, features: list[Feature], pass_index: int, index: int) -> list[list[Feature]]:
        """Make the batches of window `index` of a pass of its features."""
        generator = np.random.default_rng((self.seed, pass_index, index))
        if self.make_batches is not None:
            return self.make_batches(features, generator)
        if self.packing and self.batch_tokens is not None:
            return pack(features, self.lengths, self.batch_tokens, generator)
        return group(features, self.lengths, self.room, generator)

    def _report_bad_rows(self, bad_rows: list[BadRow], position: Position) -> None:
        """Name some bad rows of the window at `position` in the log.

        Raises:
            DataError: for more than are allowed.
        """
        self._check_bad_rows(bad_rows, position)
        if self._is_first_pass(position):
            for bad_row in bad_rows[:NAMED_BAD_ROWS]:
                logger.warning("skipped: %s", bad_row)
            if len(bad_rows) > NAMED_BAD_ROWS:
                logger.warning("skipped: %d more rows of the same %d", len(bad_rows) - NAMED_BAD_ROWS, self.window)

    def _is_first_pass(self, position: Position) -> bool:
        """Whether bad rows at a position are met for the first time, and worth a line in the log."""
        return position.pass_index == 0

    @abstractmethod
    def _check_bad_rows(self, bad_rows: list[BadRow], position: Position) -> None:
        """Raise DataError for more bad rows in a pass than are allowed, those of the window at `position` the last."""

    def _sizes(self, position: Position) -> Iterator[int]:
        """Yield how many rows the windows of a pass have, from the position on.

        The very first one is short, so that training begins soon. But not where batches are counted in rows, as a
        window's last batch is not full, and a short window would have one more of these.
        """
        is_first = position.pass_index == position.window == 0
        is_short = is_first and self.batch_tokens is not None and self.make_batches is None
        return chain([min(FIRST_ROWS, self.window)] if is_short else [], repeat(self.window))

    def room(self, longest: Lengths) -> int:
        """Return how many rows a batch may hold when each side is padded to its longest.

        Of tokens, a multiple of `ROWS_STEP` where few are lost by it: processors multiply matrices in blocks, and
        oneDNN makes a program for each new shape, of which there are fewer then. bf16 on a CPU gains the most.
        """
        if self.batch_tokens is None:
            return self.batch_rows
        rows = max(1, self.batch_tokens // max(1, sum(longest)))
        return rows - rows % ROWS_STEP if rows >= 4 * ROWS_STEP else rows

    def _share_of_pass(self, position: Position, share_of_window: float) -> float:
        """Return how much of a pass is done behind a share of the window at `position`; 0 where its end is unknown."""
        return 0.0

    @property
    def chunk_rows(self) -> int:
        """Rows that are read from a stream at a time."""
        return max(1, min(self.window // CHUNKS_OF_WINDOW, FIRST_ROWS))


class BatchStream(LaneStream):
    """Batches of one data set or stream, one pass over its rows after another.

    Args:
        rows: of all lanes, see `LaneRows`.
        settings: of every `LaneStream`.
    """

    def __init__(
        self,
        rows: Dataset | IterableDataset,
        encode: Callable[[Columns], list[Feature | BadRow]],
        lengths: Callable[[Feature], Lengths],
        *,
        seed: int = 0,
        **settings: Any,
    ):
        super().__init__(encode, lengths, seed=seed, **settings)
        is_text = self.make_batches is not None
        self.lane_rows = LaneRows(rows, seed, self.lane, self.lanes, is_text, self.patience)
        self.num_rows = len(rows) if isinstance(rows, Dataset) else None

    def count_batches(self) -> int:
        """Count the batches of the first pass; reads and encodes every row of the lane once."""
        begin = Position()
        windows = (
            self._make_window(read(), end_state, 0, index)
            for index, (read, end_state) in enumerate(self._read_windows(begin))
        )
        return sum(len(window.batches) for _, _, window in self.with_positions(windows, begin))

    def windows(self, position: Position, worker: int = 0, num_workers: int = 1) -> Generator[Window]:
        """Yield windows, pass after pass; see `LaneStream.windows`."""
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

    def _read_windows(self, position: Position) -> Iterator[Part]:
        """Yield the rows of each window of a pass, from the one at `position` on.

        A worker calls the functions of its own windows. Of a stream every worker reads all rows, and encodes those of
        its own windows.
        """
        sizes = self._sizes(position)
        return self.lane_rows.read(
            position.pass_index, position.first_row, position.stream_state, sizes, self.chunk_rows
        )

    def _make_window(self, columns: Columns, end_state: Any, pass_index: int, index: int) -> Window:
        encoded = self.encode_rows(columns, pass_index, self.seed)
        batches = self.cut(encoded.features, pass_index, index)
        return Window(
            self.lane,
            pass_index,
            batches,
            len(columns["row"]),
            encoded.bad_rows,
            end_state,
            filtered={"": encoded.filtered} if encoded.filtered else {},
        )

    def _check_bad_rows(self, bad_rows: list[BadRow], position: Position) -> None:
        if self.max_bad_rows == 0:
            raise DataError(f"{bad_rows[0]}; {HOW_TO_FIX}")
        num_bad = position.skipped_in_pass + len(bad_rows)
        if self.max_bad_rows is not None and num_bad > self.max_bad_rows:
            raise DataError(
                f"{num_bad} bad rows in one pass, where data.max_bad_rows={self.max_bad_rows}; one: {bad_rows[0]}"
            )

    def _share_of_pass(self, position: Position, share_of_window: float) -> float:
        all_rows = self.lane_rows.num_rows
        if all_rows is None:
            return 0.0
        num_rows = min(next(self._sizes(position)), all_rows - position.first_row)
        return (position.first_row + share_of_window * num_rows) / max(1, all_rows)
