"""Rows that are there twice, in a corpus or in a corpus and a held-out set; known by hashes of 8 bytes.

Rows are compared as `data.filters` compares them: trimmed, and with every run of spaces as one.
"""

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.data.rows import PLACE, PROBLEM, first_text
from pipeline.inspection.rows import EXAMPLES, Example, Found, Row, Sample, Source, cut, name_place, texts_of


@dataclass(frozen=True)
class Repeated:
    """Rows that are equal to an earlier one, and sources that have several targets."""

    rows: Found
    sources: Found


@dataclass(frozen=True)
class Overlap:
    """What training rows and a held-out set have in common.

    Attributes:
        rows: training rows whose texts are all those of a row of the set.
        sources: those of which the source is.
        held_out_rows, held_out_sources: likewise the rows of the set.
    """

    rows: Found
    sources: Found
    held_out_rows: int
    held_out_sources: int


class Hashes:
    """What tells rows of a corpus from one another, in 8 bytes each.

    Attributes:
        rows: of all columns.
        keys: of all columns but the target.
        texts: of all texts. sources: of the source.
        numbers: of the rows; those without texts are left out.
    """

    def __init__(self) -> None:
        self.rows, self.keys, self.texts, self.sources, self.numbers = (array("q") for _ in range(5))

    def add(self, number: int, row: Row, texts: Mapping[str, str]) -> None:
        source, target = texts["source"], texts.get("target")
        marks = [value for name, value in row.items() if name not in (PLACE, PROBLEM, "source", "target")]
        other = row.get("target") if target is None else target
        self.keys.append(hash((source, *map(str, marks))))
        self.rows.append(hash((source, str(other), *map(str, marks))))
        self.texts.append(hash((source, target)))
        self.sources.append(hash(source))
        self.numbers.append(number)

    def find_repeated(self) -> tuple[int, list[tuple[int, int]]]:
        """Count the rows that equal an earlier one; return the first few of them, each with the earlier."""
        return _find_repeated(np.frombuffer(self.rows, np.int64), np.frombuffer(self.numbers, np.int64))

    def find_ambiguous(self) -> tuple[int, list[tuple[int, int]]]:
        """Count the sources with several targets; return the first few pairs of rows that show it."""
        rows, numbers = np.frombuffer(self.rows, np.int64), np.frombuffer(self.numbers, np.int64)
        _, first = np.unique(rows, return_index=True)
        first.sort()  # each different row once
        keys = np.frombuffer(self.keys, np.int64)[first]
        _, counts = np.unique(keys, return_counts=True)
        return int((counts > 1).sum()), _find_repeated(keys, numbers[first])[1]


def describe_repeated(hashes: Hashes, source: Source) -> Repeated:
    """Return how often rows and sources of a corpus are there again; the rows of the examples are read once more."""
    (num_rows, rows), (num_sources, sources) = hashes.find_repeated(), hashes.find_ambiguous()
    read = source.read_some(chain.from_iterable(rows + sources))

    def explain(pairs: Iterable[tuple[int, int]], reason: str) -> list[Example]:
        return [
            Example(name_place(read[later], later), texts_of(read[later]), reason.format(
                place=Path(name_place(read[earlier], earlier)).name,
                other=cut(str(first_text(read[earlier].get("target")))),
            ))
            for earlier, later in pairs
        ]  # fmt: skip

    return Repeated(
        Found(num_rows, explain(rows, "equals {place}")),
        Found(num_sources, explain(sources, "{place} has another target: {other}")),
    )


def _find_repeated(hashes: np.ndarray, numbers: np.ndarray) -> tuple[int, list[tuple[int, int]]]:
    order = np.argsort(hashes, kind="stable")
    is_same = hashes[order][1:] == hashes[order][:-1]
    later, earlier = numbers[order[1:][is_same]], numbers[order[:-1][is_same]]
    some = np.argsort(later)[:EXAMPLES]
    return int(is_same.sum()), [(int(earlier[index]), int(later[index])) for index in some]


class HeldOut:
    """Hashes of a held-out set, in which those of training rows are looked up."""

    def __init__(self, hashes: array):
        self.hashes, self.counts = np.unique(np.array(hashes, np.int64), return_counts=True)
        self.is_met = np.zeros(len(self.hashes), bool)
        self.sample = Sample()

    def find(self, hashes: array) -> np.ndarray:
        """Tell of each training row whether it is there."""
        if not len(self.hashes):
            return np.zeros(len(hashes), bool)
        wanted = np.array(hashes, np.int64)
        places = np.searchsorted(self.hashes, wanted).clip(max=len(self.hashes) - 1)
        is_there = self.hashes[places] == wanted
        self.is_met[places[is_there]] = True
        return is_there

    @property
    def rows(self) -> int:
        """The rows of the set that were met."""
        return int(self.counts[self.is_met].sum())
