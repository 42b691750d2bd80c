"""The rows of one lane, a pass at a time, in an order that follows from seed and pass.

A data set is permuted whole for each pass; of a stream the shards are. Then every L-th row of a data set belongs to
one of L lanes, or every L-th shard of a stream that has enough of them; of a stream with fewer, every L-th row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import numpy as np
from datasets import Dataset, IterableDataset
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from pipeline.data.hub_reading import iterate_stream
from pipeline.data.rows import Columns
from pipeline.errors import DataError

# pyarrow's and pandas' errors are ValueErrors; the others are the Hub's and the web's, when patience is at its end.
UNREADABLE = (
    *(ValueError, DatasetGenerationError, HfHubHTTPError, httpx.TransportError, aiohttp.ClientError),
    *(ConnectionError, TimeoutError, EOFError),
)
FAIR_SHARDS = 8  # of a lane, from which on one more in some lanes is a small difference

Part = tuple[Callable[[], Columns], Any]  # reads some rows of a lane; and the stream's state behind them


@dataclass(frozen=True)
class LaneRows:
    """The rows of one lane.

    Attributes:
        rows: of all lanes, a data set or a stream.
        seed: of the order of all rows, in which the lanes take turns.
        lane, lanes: which of how many lanes.
        is_text: whether the rows are one running text, and so not permuted.
        patience: seconds to try again what a stream cannot read.
        place: what the rows are called in a message.
    """

    rows: Dataset | IterableDataset
    seed: int
    lane: int = 0
    lanes: int = 1
    is_text: bool = False
    patience: float = 0.0
    place: str = "data"

    @property
    def num_rows(self) -> int | None:
        """How many rows a pass of the lane has; None for a stream, whose end is not known."""
        return len(range(self.lane, len(self.rows), self.lanes)) if isinstance(self.rows, Dataset) else None

    @property
    def has_shards(self) -> bool:
        """Whether the lanes of a stream have shards of their own: with about as many rows in each."""
        return is_divisible(self.rows.num_shards, self.lanes)

    def read(
        self, pass_index: int, first_row: int, stream_state: Any, sizes: Iterator[int], chunk_rows: int
    ) -> Iterator[Part]:
        """Yield the rest of a pass in parts.

        Who calls the functions of some parts reads no rows of a data set for the others. A stream can only be read from
        front to back.

        Args:
            first_row: rows of the pass, and this lane, before the first part.
            stream_state: where that begins in a stream: the turn of its shard, the state inside that, and the rows of
                all lanes that were read for it; None at the beginning of a pass, and for a data set.
            sizes: rows of each part; one of a stream ends with the chunk that fills it, so it may hold some more.
            chunk_rows: rows that are read from a stream at a time.

        Raises:
            DataError: when rows cannot be read.
        """
        if isinstance(self.rows, Dataset):
            yield from self._parts_of_dataset(pass_index, first_row, sizes)
        else:
            yield from self._parts_of_stream(pass_index, first_row, stream_state, sizes, chunk_rows)

    def _parts_of_dataset(self, pass_index: int, first_row: int, sizes: Iterator[int]) -> Iterator[Part]:
        order = self._order(pass_index, len(self.rows))[self.lane :: self.lanes]
        for size in sizes:
            if first_row >= len(order):
                return
            yield partial(self._read_rows, order[first_row : first_row + size]), None
            first_row += size

    def _parts_of_stream(
        self, pass_index: int, first_row: int, stream_state: Any, sizes: Iterator[int], chunk_rows: int
    ) -> Iterator[Part]:
        size, next_row, end_state = next(sizes), first_row, stream_state
        columns: Columns = {"row": []}
        for chunk, end_state in self._read_shards(pass_index, first_row, stream_state, chunk_rows):
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

    def _read_rows(self, numbers: np.ndarray) -> Columns:
        return {**self.rows[numbers], "row": numbers.tolist()}

    def _read_shards(
        self, pass_index: int, first_row: int, stream_state: Any, chunk_rows: int
    ) -> Iterator[tuple[Columns, Any]]:
        """Yield columns of some rows of this lane at a time, and the state behind them: see `read`.

        The shards are permuted here, as `IterableDataset.shuffle` reads ten of them at once, and a resume would
        open all of them: https://github.com/huggingface/datasets/blob/5.2.0/src/datasets/iterable_dataset.py
        """
        num_shards = self.rows.num_shards
        order = self._order(pass_index, num_shards)
        # The lane's own shards with all their rows, or its own rows of all shards.
        order, stride = (order[self.lane :: self.lanes], 1) if self.has_shards else (order, self.lanes)
        first_turn, state, *rest = stream_state or (0, None)
        rows_read = rest[0] if rest else first_row
        for turn in range(first_turn, len(order)):
            shard = self.rows.shard(num_shards, int(order[turn]))
            try:
                for columns, next_state in iterate_stream(shard, chunk_rows, self.patience, state):
                    first = (self.lane - rows_read) % stride
                    rows_read += len(next(iter(columns.values())))
                    own = {name: values[first::stride] for name, values in columns.items()} if stride > 1 else columns
                    yield own, (turn, next_state, rows_read)
            except UNREADABLE as error:
                raise DataError(f"{self.place}: the rows behind row {rows_read} cannot be read: {error}") from error
            state = None  # the next shard begins at its beginning

    def _order(self, pass_index: int, count: int) -> np.ndarray:
        """Return the order of all rows or shards in a pass, (count)."""
        if self.is_text:
            return np.arange(count)
        return np.random.default_rng((self.seed, pass_index)).permutation(count)


def is_divisible(num_shards: int, lanes: int) -> bool:
    """Tell whether shards can be dealt out to lanes as they are: all get as many, or nearly so."""
    return num_shards % lanes == 0 or num_shards >= FAIR_SHARDS * lanes
