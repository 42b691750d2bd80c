"""The rows that are looked at, and examples of them."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from datasets import Dataset

from pipeline.config import Config, DataConfig
from pipeline.data.hub_reading import iterate_rows, retry_seconds
from pipeline.data.rows import PLACE, first_text, shorten
from pipeline.data.splits import Rows, open_split
from pipeline.data_config import SplitNames, errors_of
from pipeline.tasks.registry import get_task

STREAM_ROWS = 100_000  # that are looked at of a stream, unless a number is given
EXAMPLES = 5
SHOWN_TEXT = 200  # characters of a text in an example
AROUND = 30  # characters on each side of what is to be seen in a text

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A row: where it is, its texts (shortened), and what is to be seen in it."""

    place: str
    texts: dict[str, str]
    reason: str = ""


@dataclass(frozen=True)
class Found:
    """How many rows there are of a kind, and some of them."""

    count: int
    examples: list[Example]


@dataclass(frozen=True)
class Source:
    """A corpus or a set that is open.

    Attributes:
        limit: of its rows; None for all.
    """

    place: str
    data: DataConfig
    split: SplitNames
    rows: Rows
    limit: int | None

    @property
    def is_training(self) -> bool:
        return self.place.split(".")[0] in ("train", "mix")

    @property
    def name(self) -> str:
        return self.place.partition(".")[2]

    def read_all(self) -> Iterator[Row]:
        """Yield all rows there are."""
        return iterate_rows(self.rows, retry_seconds(self.data))

    def read(self) -> Iterator[Row]:
        """Yield the rows that are looked at, from the first on."""
        return islice(self.read_all(), self.limit)

    def read_some(self, numbers: Iterable[int]) -> dict[int, Row]:
        """Return rows by their numbers."""
        wanted = sorted({*numbers})
        if isinstance(self.rows, Dataset):
            return {number: self.rows[number] for number in wanted}
        rows = enumerate(islice(self.read(), wanted[-1] + 1 if wanted else 0))
        return {number: row for number, row in rows if number in wanted}


def open_source(config: Config, place: str, limit: int | None) -> Source:
    data, split = config.data.places[place]
    with errors_of(place):
        rows = open_split(data, split, get_task(config.task).columns(config.with_data(data)))
    if limit is None and not isinstance(rows, Dataset):
        limit = STREAM_ROWS
    return Source(place, data, split, rows, limit)


class Sample:
    """Counts rows, and keeps some of them at random, the same ones in each run."""

    def __init__(self, size: int = EXAMPLES):
        self.count, self.size = 0, size
        self.kept: list[Any] = []
        self._random = random.Random(0)

    def add(self, item: Any) -> None:
        """Count an item, and perhaps keep it (Vitter 1985, algorithm R)."""
        self.count += 1
        if len(self.kept) < self.size:
            self.kept.append(item)
        elif (place := self._random.randrange(self.count)) < self.size:
            self.kept[place] = item

    def found(self) -> Found:
        """Return what was found, where items are (number of the row, example)."""
        return Found(self.count, [example for _, example in sorted(self.kept, key=lambda item: item[0])])


def name_place(row: Row, number: int) -> str:
    return row.get(PLACE) or f"row {number}"


def texts_of(row: Row) -> dict[str, str]:
    """Return the source and the target of a row, shortened; of a list of targets the first."""
    values = {name: first_text(row.get(name)) for name in ("source", "target") if name in row}
    return {name: cut(value) if isinstance(value, str) else shorten(value) for name, value in values.items()}


def around(text: str, place: int) -> str:
    """Return the part of a text in which something is to be seen."""
    return text[max(0, place - AROUND) : place + AROUND]


def cut(text: str) -> str:
    return text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]}..."
