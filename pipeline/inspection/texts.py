"""The texts of a corpus or a held-out set.

Every row is encoded as training encodes it. Of all texts nothing stays but counts, hashes of 8 bytes and a few
examples, so that millions of rows fit into the memory.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import length_hint
from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.data.filters import Candidate, find_texts
from pipeline.data.rows import BadRow, Feature, find_excess_length, first_text, name_places, shorten
from pipeline.data.text_faults import FAULTS, find_faults, is_composed
from pipeline.data_config import errors_of, write_split
from pipeline.inspection.languages import READ_LENGTH, SAMPLED_ROWS, SideLanguages, describe_languages
from pipeline.inspection.repeats import Hashes, HeldOut, Overlap, Repeated, describe_repeated
from pipeline.inspection.rows import Example, Found, Row, Sample, Source, around, texts_of
from pipeline.inspection.rules import Rules, Trial
from pipeline.inspection.sides import Lengths, Side, Unwritten, quantiles
from pipeline.progress import progress_bar
from pipeline.tasks.base import Task

PART = 1000  # rows that are encoded at a time
BAD_EXAMPLES = 3
MAX_CLASSES = 100_000  # that are told apart


@dataclass(frozen=True)
class Ratio:
    """Tokens of the target for each of the source."""

    p5: float
    median: float
    p95: float
    smallest: float
    largest: float


@dataclass(frozen=True)
class TextReport:
    """What a corpus or a held-out set of texts holds.

    Attributes:
        place: below `data`: train, or mix.CORPUS; validation, or validation.SET; test likewise.
        rows: that were looked at.
        is_whole: whether these are all.
        bad: rows that stop a training, or are left out of it.
        lengths, unwritten: by side, source and target.
        faults: kind of suspicious encoding -> rows; see `data.text_faults`.
        composed: rows with letters that are one character with their accent, beside which decomposed ones are another.
        classes: name -> rows, the most frequent first, of a task with classes.
        unseen_classes: those of a held-out set that no training row has.
    """

    place: str
    path: str
    split: str
    rows: int
    is_whole: bool
    bad: Found
    lengths: dict[str, Lengths]
    ratio: Ratio | None
    classes: dict[str, int] | None
    unseen_classes: dict[str, int]
    filters: dict[str, Trial]
    repeated: Repeated | None
    overlap: dict[str, Overlap]
    unwritten: dict[str, Unwritten]
    faults: dict[str, Found]
    composed: int
    languages: dict[str, SideLanguages] | None


class Survey:
    """What is seen of a corpus or a set of texts while it is read.

    Args:
        held_out: surveys of the held-out sets, which have been read; for a corpus.
    """

    def __init__(self, config: Config, task: Task, source: Source, held_out: "Sequence[Survey]" = ()):
        self.config, self.task, self.source = config, task, source
        self.names = task.text_columns
        self.has_classes = "target" in task.required_columns and "target" not in self.names
        self.sides = {name: Side(task.tokenizer) for name in self.names}
        self.rows, self.is_whole = 0, True
        self.bad, self.composed = Sample(BAD_EXAMPLES), 0
        self.ratios: Counter[float] = Counter()
        self.classes: Counter[str] = Counter()
        self.faults: dict[str, Sample] = {}
        self.hashes = Hashes()
        self.sampled = Sample(SAMPLED_ROWS)
        self.rules: Rules | None = None  # of a corpus, made when its first rows are there
        self.held_out = Sample()
        self.met = {
            survey.source.place: (HeldOut(survey.hashes.texts), HeldOut(survey.hashes.sources))
            for survey in held_out
            if task.has_independent_rows
        }

    def read(self) -> None:
        """Look at all rows, up to the limit."""
        total = min(length_hint(self.source.rows) or math.inf, self.source.limit or math.inf)
        all_rows = self.source.read_all()
        rows = islice(all_rows, self.source.limit)
        with errors_of(self.source.place), progress_bar(f"reading {self.source.place}", "rows", total) as bar:
            while part := [*islice(rows, PART)]:
                self._add(part)
                bar.update(len(part))
            self.is_whole = next(all_rows, None) is None

    def _add(self, part: list[Row]) -> None:
        numbers = range(self.rows, self.rows + len(part))
        columns = {name: [row[name] for row in part] for name in part[0]} | {"row": [*numbers]}
        if not self.rows and self.source.is_training and self.task.has_independent_rows:
            self.rules = Rules(self.source.data.filters, self.names, part)
        self.rows += len(part)
        first = len(self.hashes.numbers)
        examples: dict[int, Example] = {}
        for number, place, row, feature in zip(
            numbers, name_places(columns), part, self.task.encode(columns), strict=True
        ):
            example = examples[number] = Example(place, texts_of(row))
            self._add_faults(number, place, row)
            self._add_row(number, example, row, feature)
        self._compare(first, examples)

    def _add_row(self, number: int, example: Example, row: Row, feature: Feature | BadRow) -> None:
        lengths = None if isinstance(feature, BadRow) else self.task.lengths(feature)
        problem = feature.reason if isinstance(feature, BadRow) else self._find_excess(feature)
        if problem is not None:
            self.bad.add((number, replace(example, reason=problem)))
        texts = find_texts(row, self.names)
        if texts is None:
            return
        if self.rules is not None:
            self.rules.add(number, example, Candidate(texts, lengths, row))
        if self.has_classes:
            self._add_class(row["target"] if isinstance(feature, BadRow) else feature["target"])
        if isinstance(feature, BadRow) or lengths is None:
            return
        if self.task.has_independent_rows:
            self.hashes.add(number, row, texts)
        read = {name: first_text(row[name])[:READ_LENGTH] for name in self.names}
        self.sampled.add((number, example, row | read))
        for (name, side), key, length in zip(self.sides.items(), ("input_ids", "labels"), lengths, strict=False):
            side.add(number, example.place, first_text(row[name]), feature[key], length)
        if len(lengths) > 1:
            self.ratios[round(lengths[1] / max(1, lengths[0]), 2)] += 1

    def _add_class(self, target: Any) -> None:
        name = target if isinstance(target, str) else shorten(target)
        if target is not None and (name in self.classes or len(self.classes) < MAX_CLASSES):
            self.classes[name] += 1

    def _find_excess(self, feature: Feature) -> str | None:
        """Say that a row is too long for the training, as its encoding does."""
        faults = (
            find_excess_length(name, length, self._limit(name))
            for name, length in zip(self.names, self.task.lengths(feature), strict=True)
        )
        return next(filter(None, faults), None) if self.source.is_training else None

    def _limit(self, name: str) -> int | None:
        return getattr(self.config.data, f"max_{name}_length") if self.task.has_independent_rows else None

    def _add_faults(self, number: int, place: str, row: Row) -> None:
        values = {name: first_text(row.get(name)) for name in self.names}
        texts = {name: text for name, text in values.items() if isinstance(text, str)}
        self.composed += any(map(is_composed, texts.values()))
        found: dict[str, dict[str, str]] = {}
        for name, text in texts.items():
            for fault, begin in find_faults(text):
                found.setdefault(fault, {})[name] = around(text, begin)
        for fault, parts in found.items():
            self.faults.setdefault(fault, Sample()).add((number, Example(place, parts)))

    def _compare(self, first: int, examples: Mapping[int, Example]) -> None:
        """Look up the rows of a part in the held-out sets."""
        numbers = self.hashes.numbers[first:]
        is_held_out = np.zeros(len(numbers), bool)
        for pairs, sources in self.met.values():
            for found, hashes in ((pairs, self.hashes.texts[first:]), (sources, self.hashes.sources[first:])):
                is_there = found.find(hashes)
                for index in np.flatnonzero(is_there):
                    found.sample.add((numbers[index], examples[numbers[index]]))
                if found is pairs:
                    is_held_out |= is_there
        for index in np.flatnonzero(is_held_out):
            self.held_out.add((numbers[index], examples[numbers[index]]))

    # ---- the report

    def report(self, known_classes: Iterable[str]) -> TextReport:
        """Return what was seen.

        Args:
            known_classes: those of the training rows.
        """
        source, known = self.source, {*known_classes}
        repeated = describe_repeated(self.hashes, source) if self.task.has_independent_rows else None
        return TextReport(
            source.place,
            source.data.path,
            write_split(source.split),
            self.rows,
            self.is_whole,
            self.bad.found(),
            {name: side.describe_lengths(self._limit(name)) for name, side in self.sides.items()},
            self._describe_ratio(),
            dict(self.classes.most_common()) if self.has_classes else None,
            {} if source.is_training else {name: n for name, n in self.classes.most_common() if name not in known},
            self._describe_rules(repeated),
            repeated,
            {
                place: Overlap(pairs.sample.found(), sources.sample.found(), pairs.rows, sources.rows)
                for place, (pairs, sources) in self.met.items()
            },
            {name: side.describe_unwritten(name) for name, side in self.sides.items()},
            {name: self.faults[name].found() for name in FAULTS if name in self.faults},
            self.composed,
            describe_languages(self.sampled.kept, self.names, source.data),
        )

    def _describe_rules(self, repeated: Repeated | None) -> dict[str, Trial]:
        if self.rules is None or repeated is None:
            return {}
        return self.rules.describe(drop_held_out=self.held_out.found(), drop_duplicates=repeated.rows)

    def _describe_ratio(self) -> Ratio | None:
        if not self.ratios:
            return None
        p5, median, p95 = quantiles(self.ratios, (0.05, 0.5, 0.95))
        return Ratio(p5, median, p95, min(self.ratios), max(self.ratios))
