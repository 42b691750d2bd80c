"""What the data of a config hold, looked at before anything is trained.

Every row is read once, in order, as training reads and encodes it. Of texts nothing stays but counts, hashes of 8 bytes
and a few examples, so that millions of rows fit into the memory. Nothing is judged: whether a number is too high is for
people to say.

Rows are compared as `data.filters` compares them: trimmed, and with every run of spaces as one.
"""

import math
import os
import random
import tempfile
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from pipeline.config import Config, DataConfig
from pipeline.data.filters import RULES, Candidate, find_texts
from pipeline.data.hub_reading import iterate_rows, retry_seconds
from pipeline.data.rows import (
    PLACE,
    PROBLEM,
    BadRow,
    Feature,
    find_excess_length,
    first_text,
    name_places,
    shorten,
)
from pipeline.data.splits import Rows, open_split
from pipeline.data.text_faults import FAULTS, find_faults, is_composed
from pipeline.data_config import errors_of
from pipeline.errors import DataError
from pipeline.languages import known_code
from pipeline.progress import progress_bar
from pipeline.setup.model_factory import find_pretrained, given_settings, make_model_config
from pipeline.setup.tokenizer_setup import prepare_tokenizer, typical_rows
from pipeline.tasks.base import Task, tokenize
from pipeline.tasks.forecasting import TIME, check_order, to_number
from pipeline.tasks.registry import get_task
from pipeline.tasks.trained_model import load_model_config

STREAM_ROWS = 100_000  # that are looked at of a stream, unless a number is given
PART = 1000  # rows that are encoded at a time
EXAMPLES, BAD_EXAMPLES = 5, 3
SHOWN_TEXT = 200  # characters of a text in an example
AROUND = 30  # characters on each side of what is shown of a text
SHOWN_VALUES = 20  # of what is most frequent
SAMPLED_ROWS = 10_000  # whose language is identified
WRITTEN_TEXTS = 1000  # of each side, which are encoded and decoded
WRITTEN_LENGTH = 1000  # characters of those
MAX_PIECES = 100_000  # unknown words that are told apart
USUAL = {  # values at which rules that are off are tried
    "drop_identical": True,
    "max_word_length": 40,  # as OpusFilter's LongWordFilter
    "min_script_share": 0.5,  # of the scripts that the first rows are written in
    "match_digits": True,
    "max_length_ratio": 3,  # as OpusFilter's LengthRatioFilter
    "drop_held_out": True,
    "drop_duplicates": True,
}
SCRIPTS = (  # that a side may be written in
    "Arabic Armenian Bengali Cyrillic Devanagari Ethiopic Georgian Greek Gujarati Gurmukhi Han Hangul Hebrew Hiragana "
    "Kannada Katakana Khmer Lao Latin Malayalam Myanmar Oriya Sinhala Tamil Telugu Thai Tibetan"
)
MIN_SCRIPT = 0.1  # of the letters, from which on a script belongs to a side

Row = dict[str, Any]


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
class Lengths:
    """Lengths of texts in tokens, as training counts them.

    Attributes:
        limit: `data.max_source_length` or `max_target_length`; None where the task has none.
        over: texts that are longer.
        counts: tokens -> texts.
    """

    tokens: int
    median: int
    p95: int
    longest: int
    limit: int | None
    over: int
    counts: dict[int, int]


@dataclass(frozen=True)
class Ratio:
    """Tokens of the target for each of the source."""

    p5: float
    median: float
    p95: float
    smallest: float
    largest: float


@dataclass(frozen=True)
class Trial:
    """What a rule of `data.filters` would take by itself.

    Attributes:
        is_on: whether the config asks for it; else a usual value was tried.
    """

    value: Any
    is_on: bool
    found: Found


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


@dataclass(frozen=True)
class Unwritten:
    """What the tokenizer cannot read or write of the texts of a side.

    Attributes:
        tokens: that are the unknown one.
        pieces: what they stand for, the most frequent first.
        lost_characters: those that do not come back from encoding and decoding, or as others, with their number.
        changed: texts of a sample of `tried` that do not come back as they are.
    """

    tokens: int
    share: float
    pieces: dict[str, int]
    lost_characters: dict[str, int]
    tried: int
    changed: Found


@dataclass(frozen=True)
class SideLanguages:
    """The languages of a side, as py3langid takes them.

    Attributes:
        expected: the code that the config gives, or else that of most rows.
        is_given: whether the config gives it.
        counts: code -> rows, the most frequent first.
        other: rows in another language than is expected of them.
    """

    expected: str
    is_given: bool
    counts: dict[str, int]
    other: Found


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
    language_rows: int
    languages: dict[str, SideLanguages] | None


@dataclass(frozen=True)
class Series:
    """The values of one series.

    Attributes:
        missing: empty, null, NaN or infinite.
    """

    missing: int
    longest_gap: int
    not_numbers: Found
    minimum: float
    maximum: float
    mean: float
    is_constant: bool


@dataclass(frozen=True)
class SeriesReport:
    """What a split of time series holds.

    Attributes:
        windows: samples of training, one beginning at each step; 0 where there are too few steps.
        disorder: what is wrong with the order of `forecasting.time`.
    """

    place: str
    path: str
    split: str
    rows: int
    is_whole: bool
    windows: int
    disorder: str | None
    series: dict[str, Series]


@dataclass(frozen=True)
class Inspection:
    """What was found in each corpus and held-out set, and the tokenizer by which tokens are counted."""

    task: str
    tokenizer: str
    sets: list[TextReport] | list[SeriesReport]


def inspect(config: Config, limit: int | None = None) -> Inspection:
    """Look at all data of a config.

    Args:
        limit: rows of each corpus and set that are looked at, the first ones; None for all, or `STREAM_ROWS` of a
            stream. A tokenizer that is not there yet is trained on these rows.

    Raises:
        ConfigError, DataError: for what cannot be read at all, as in training.
    """
    sources = [_open(config, place, limit) for place in config.data.places]
    if not get_task(config.task).text_columns:
        return Inspection(config.task, "none", [_inspect_series(config, source) for source in sources])
    task, tokenizer = _make_task(config, sources)
    held_out = [_Survey(config, task, source) for source in sources if not source.is_training]
    for survey in held_out:
        survey.read()
    training = [_Survey(config, task, source, held_out) for source in sources if source.is_training]
    for survey in training:
        survey.read()
    known = {name for survey in training for name in survey.classes}
    return Inspection(config.task, tokenizer, [survey.report(known) for survey in training + held_out])


# ---- rows


@dataclass(frozen=True)
class _Source:
    """A corpus or a set that is open.

    Attributes:
        limit: of its rows; None for all.
    """

    place: str
    data: DataConfig
    split: str
    rows: Rows
    limit: int | None

    @property
    def is_training(self) -> bool:
        return self.place.split(".")[0] in ("train", "mix")

    @property
    def name(self) -> str:
        return self.place.partition(".")[2]

    def read(self) -> Iterator[Row]:
        """Yield the rows that are looked at, from the first on."""
        return islice(iterate_rows(self.rows, retry_seconds(self.data)), self.limit)

    def has_more_than(self, count: int) -> bool:
        if isinstance(self.rows, Dataset):
            return len(self.rows) > count
        return count == self.limit and next(iter(self.rows.skip(count).take(1)), None) is not None

    def read_some(self, numbers: Iterable[int]) -> dict[int, Row]:
        """Return rows by their numbers."""
        wanted = sorted({*numbers})
        if isinstance(self.rows, Dataset):
            return {number: self.rows[number] for number in wanted}
        rows = enumerate(islice(self.read(), wanted[-1] + 1 if wanted else 0))
        return {number: row for number, row in rows if number in wanted}


def _open(config: Config, place: str, limit: int | None) -> _Source:
    data, split = config.data.places[place]
    with errors_of(place):
        rows = open_split(data, split, get_task(config.task).columns(config.with_data(data)))
    if limit is None and not isinstance(rows, Dataset):
        limit = STREAM_ROWS
    return _Source(place, data, split, rows, limit)


def _make_task(config: Config, sources: Sequence[_Source]) -> tuple[Task, str]:
    """Make the task as training does, without its model; say which tokenizer it has."""
    task_class = get_task(config.task)
    training = {source.name: source for source in sources if source.is_training}
    readers = {name: source.read for name, source in training.items()}
    rows = typical_rows(config, {name: source.rows for name, source in training.items()}, readers)
    pretrained = find_pretrained(config)
    path = config.tokenizer.path or pretrained
    with tempfile.TemporaryDirectory() as folder:  # where training leaves a tokenizer that it makes
        elsewhere = config.model_copy(update={"training": config.training | {"output_dir": folder}})
        tokenizer = prepare_tokenizer(elsewhere, rows, path)
    named = str(path) if path else f"{config.tokenizer.kind}, trained on the rows that were looked at"
    all_rows = chain.from_iterable(read() for read in readers.values())
    settings = task_class.model_settings(_as_known(config), all_rows)
    if pretrained is None:
        model_config = make_model_config(config, tokenizer, settings | given_settings(config))
    else:
        model_config = load_model_config(pretrained)
        for name, value in settings.items():
            setattr(model_config, name, value)
    return task_class.from_model(tokenizer, model_config, config), f"{named}: {len(tokenizer):,} tokens"


def _as_known(config: Config) -> Config:
    """Return the config with streams as data that can be read to their end, as they are up to the limit."""
    known = {"streaming": False}
    mix = config.data.mix and {name: corpus.model_copy(update=known) for name, corpus in config.data.mix.items()}
    return config.with_data(config.data.model_copy(update={**known, "mix": mix}))


class _Sample:
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


# ---- texts


class _Side:
    """The texts of one column."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.lengths: Counter[int] = Counter()
        self.characters: Counter[str] = Counter()
        self.pieces: Counter[str] = Counter()
        self.unknown = 0
        self.texts = _Sample(WRITTEN_TEXTS)

    def add(self, number: int, place: str, text: str, ids: Sequence[int], length: int) -> None:
        self.lengths[length] += 1
        self.characters.update(text)
        self.texts.add((number, place, text[:WRITTEN_LENGTH]))
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            self.unknown += ids.count(unknown)
            self._add_pieces(text, unknown)

    def _add_pieces(self, text: str, unknown: int) -> None:
        if not self.tokenizer.is_fast:  # only those know what a token stands for
            return
        encoded = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        for token, (begin, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            piece = text[begin:end].strip()
            if token == unknown and (piece in self.pieces or len(self.pieces) < MAX_PIECES):
                self.pieces[piece[:SHOWN_TEXT]] += 1

    def describe_lengths(self, limit: int | None) -> Lengths:
        median, p95, longest = map(int, quantiles(self.lengths, (0.5, 0.95, 1.0)))
        over = 0 if limit is None else sum(texts for length, texts in self.lengths.items() if length > limit)
        tokens = sum(length * texts for length, texts in self.lengths.items())
        return Lengths(tokens, median, p95, longest, limit, over, dict(sorted(self.lengths.items())))

    def describe_unwritten(self, name: str) -> Unwritten:
        tokens = sum(length * texts for length, texts in self.lengths.items())
        changed = _Sample()
        kept = self.texts.kept
        written = self._write([text for _, _, text in kept])
        for (number, place, text), other in zip(kept, written, strict=True):
            if text != other:
                begin = len(os.path.commonprefix([text, other]))
                parts = shorten(_around(text, begin)), shorten(_around(other, begin))
                changed.add((number, Example(place, {name: _cut(text)}, "{} comes back as {}".format(*parts))))
        return Unwritten(
            self.unknown,
            self.unknown / max(1, tokens),
            dict(self.pieces.most_common(SHOWN_VALUES)),
            self._find_lost_characters(),
            len(kept),
            changed.found(),
        )

    def _find_lost_characters(self) -> dict[str, int]:
        """Return the characters that the tokenizer knows, or seems to know, and that come back as others.

        Case and spaces do not count, which some tokenizers change on purpose. One that it does not know is a piece.
        """
        characters = [character for character in self.characters if not character.isspace()]
        unknown = self.tokenizer.unk_token_id
        lost = Counter(
            {
                character: self.characters[character]
                for character, ids, written in zip(
                    characters, tokenize(self.tokenizer, characters), self._write(characters), strict=True
                )
                if unknown not in ids and written.strip().lower() != character.lower()
            }
        )
        return dict(lost.most_common(SHOWN_VALUES))

    def _write(self, texts: list[str]) -> list[str]:
        """Encode and decode texts."""
        return self.tokenizer.batch_decode(tokenize(self.tokenizer, texts), skip_special_tokens=True) if texts else []


class _Hashes:
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


def _find_repeated(hashes: np.ndarray, numbers: np.ndarray) -> tuple[int, list[tuple[int, int]]]:
    order = np.argsort(hashes, kind="stable")
    is_same = hashes[order][1:] == hashes[order][:-1]
    later, earlier = numbers[order[1:][is_same]], numbers[order[:-1][is_same]]
    some = np.argsort(later)[:EXAMPLES]
    return int(is_same.sum()), [(int(earlier[index]), int(later[index])) for index in some]


class _HeldOut:
    """Hashes of a held-out set, in which those of training rows are looked up."""

    def __init__(self, hashes: array):
        self.hashes, self.counts = np.unique(np.array(hashes, np.int64), return_counts=True)
        self.is_met = np.zeros(len(self.hashes), bool)
        self.sample = _Sample()

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


class _Survey:
    """What is seen of a corpus or a set of texts while it is read.

    Args:
        held_out: surveys of the held-out sets, which have been read; for a corpus.
    """

    def __init__(self, config: Config, task: Task, source: _Source, held_out: "Sequence[_Survey]" = ()):
        self.config, self.task, self.source = config, task, source
        self.names = task.text_columns
        self.has_classes = "target" in task.required_columns and "target" not in self.names
        self.sides = {name: _Side(task.tokenizer) for name in self.names}
        self.rows = 0
        self.bad, self.composed = _Sample(BAD_EXAMPLES), 0
        self.ratios: Counter[float] = Counter()
        self.classes: Counter[str] = Counter()
        self.faults: dict[str, _Sample] = {}
        self.hashes = _Hashes()
        self.sampled = _Sample(SAMPLED_ROWS)
        self.rules: dict[str, tuple[Any, bool]] = {}
        self.asked = self.rules
        self.taken: dict[str, _Sample] = {}
        self.met = {
            survey.source.place: (_HeldOut(survey.hashes.texts), _HeldOut(survey.hashes.sources))
            for survey in held_out
            if task.has_independent_rows
        }

    def read(self) -> None:
        """Look at all rows, up to the limit."""
        total = min(length_hint(self.source.rows) or math.inf, self.source.limit or math.inf)
        rows = self.source.read()
        with errors_of(self.source.place), progress_bar(f"reading {self.source.place}", "rows", total) as bar:
            while part := [*islice(rows, PART)]:
                self._add(part)
                bar.update(len(part))

    def _add(self, part: list[Row]) -> None:
        numbers = range(self.rows, self.rows + len(part))
        columns = {name: [row[name] for row in part] for name in part[0]} | {"row": [*numbers]}
        if not self.rows:
            self._choose_rules(part)
        self.rows += len(part)
        first = len(self.hashes.numbers)
        examples: dict[int, Example] = {}
        for number, place, row, feature in zip(
            numbers, name_places(columns), part, self.task.encode(columns), strict=True
        ):
            example = examples[number] = Example(place, self._shorten(row))
            self._add_faults(number, place, row)
            self._add_row(number, example, row, feature)
        self._compare(first, examples)

    def _add_row(self, number: int, example: Example, row: Row, feature: Feature | BadRow) -> None:
        lengths = None if isinstance(feature, BadRow) else self.task.lengths(feature)
        problem = feature.reason if isinstance(feature, BadRow) else self._find_excess(lengths)
        if problem is not None:
            self.bad.add((number, replace(example, reason=problem)))
        texts = find_texts(row, self.names)
        if texts is None:
            return
        if self.task.has_independent_rows:
            self.hashes.add(number, row, texts)
        candidate = Candidate(texts, lengths, row)
        for name, (value, _) in self.rules.items():
            if (reason := RULES[name].find(candidate, value)) is not None:
                self.taken[name].add((number, replace(example, reason=reason)))
        if self.has_classes:
            self._add_class(row["target"] if isinstance(feature, BadRow) else feature["target"])
        if isinstance(feature, BadRow):
            return
        self.sampled.add((number, example, row))
        for (name, side), key, length in zip(self.sides.items(), ("input_ids", "labels"), lengths, strict=False):
            side.add(number, example.place, first_text(row[name]), feature[key], length)
        if len(lengths) > 1:
            self.ratios[round(lengths[1] / lengths[0], 2)] += 1

    def _add_class(self, target: Any) -> None:
        name = target if isinstance(target, str) else shorten(target)
        if target is not None and (name in self.classes or len(self.classes) < MAX_PIECES):
            self.classes[name] += 1

    def _find_excess(self, lengths: Sequence[int]) -> str | None:
        """Say that a row is too long for the training, as its encoding does."""
        faults = (
            find_excess_length(name, length, self._limit(name))
            for name, length in zip(self.names, lengths, strict=True)
        )
        return next(filter(None, faults), None) if self.source.is_training else None

    def _limit(self, name: str) -> int | None:
        return getattr(self.config.data, f"max_{name}_length") if self.task.has_independent_rows else None

    def _shorten(self, row: Row) -> dict[str, str]:
        values = {name: first_text(row.get(name)) for name in ("source", "target") if name in row}
        return {name: _cut(value) if isinstance(value, str) else shorten(value) for name, value in values.items()}

    def _add_faults(self, number: int, place: str, row: Row) -> None:
        values = {name: first_text(row.get(name)) for name in self.names}
        texts = {name: text for name, text in values.items() if isinstance(text, str)}
        self.composed += any(map(is_composed, texts.values()))
        found: dict[str, dict[str, str]] = {}
        for name, text in texts.items():
            for fault, begin in find_faults(text):
                found.setdefault(fault, {})[name] = _around(text, begin)
        for fault, parts in found.items():
            self.faults.setdefault(fault, _Sample()).add((number, Example(place, parts)))

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
            self.taken["drop_held_out"].add(
                (numbers[index], replace(examples[numbers[index]], reason="it is in validation or test"))
            )

    def _choose_rules(self, first_rows: Sequence[Row]) -> None:
        """Take the rules of the config, and those that are off at a usual value."""
        if not (self.source.is_training and self.task.has_independent_rows):
            return
        given = self.source.data.filters.rules
        usual = USUAL | {"min_script_share": {name: _usual_scripts(name, first_rows) for name in self.names}}
        values = {name: (given.get(name, usual[name]), name in given) for name in RULES}
        both = len(self.names) > 1
        values = {name: value for name, value in values.items() if both or not RULES[name].compares_sides}
        self.asked = values
        self.rules = {name: value for name, value in values.items() if name not in ("drop_held_out", "drop_duplicates")}
        self.taken = {name: _Sample() for name in values}

    # ---- the report

    def report(self, known_classes: Iterable[str]) -> TextReport:
        """Return what was seen.

        Args:
            known_classes: those of the training rows.
        """
        source, known = self.source, {*known_classes}
        repeated = self._describe_repeated() if self.task.has_independent_rows else None
        return TextReport(
            source.place,
            source.data.path,
            source.split,
            self.rows,
            not source.has_more_than(self.rows),
            self.bad.found(),
            {name: side.describe_lengths(self._limit(name)) for name, side in self.sides.items()},
            self._describe_ratio(),
            dict(self.classes.most_common()) if self.has_classes else None,
            {} if source.is_training else {name: n for name, n in self.classes.most_common() if name not in known},
            {name: self._describe_rule(name, repeated) for name in self.taken},
            repeated,
            {
                place: Overlap(pairs.sample.found(), sources.sample.found(), pairs.rows, sources.rows)
                for place, (pairs, sources) in self.met.items()
            },
            {name: side.describe_unwritten(name) for name, side in self.sides.items()},
            {name: self.faults[name].found() for name in FAULTS if name in self.faults},
            self.composed,
            len(self.sampled.kept),
            self._describe_languages(),
        )

    def _describe_rule(self, name: str, repeated: Repeated | None) -> Trial:
        found = self.taken[name].found()
        return Trial(*self.asked[name], repeated.rows if name == "drop_duplicates" and repeated else found)

    def _describe_ratio(self) -> Ratio | None:
        if not self.ratios:
            return None
        p5, median, p95 = quantiles(self.ratios, (0.05, 0.5, 0.95))
        return Ratio(p5, median, p95, min(self.ratios), max(self.ratios))

    def _describe_repeated(self) -> Repeated:
        (num_rows, rows), (num_sources, sources) = self.hashes.find_repeated(), self.hashes.find_ambiguous()
        read = self.source.read_some(chain.from_iterable(rows + sources))

        def explain(pairs: list[tuple[int, int]], text: str) -> list[Example]:
            return [
                Example(_place(read[later], later), self._shorten(read[later]), text.format(
                    place=Path(_place(read[earlier], earlier)).name, other=_cut(str(first_text(read[earlier].get("target"))))
                ))
                for earlier, later in pairs
            ]  # fmt: skip

        return Repeated(
            Found(num_rows, explain(rows, "equals {place}")),
            Found(num_sources, explain(sources, "{place} has another target: {other}")),
        )

    def _describe_languages(self) -> dict[str, SideLanguages] | None:
        try:
            import py3langid  # an extra
        except ImportError:
            return None
        return {name: side for name in self.names if (side := self._describe_side(name, py3langid.classify))}

    def _describe_side(self, name: str, classify: Callable[[str], tuple[str, Any]]) -> SideLanguages | None:
        rows = [
            (number, example, _language_given(row, name), classify(first_text(row[name])[:WRITTEN_LENGTH])[0])
            for number, example, row in self.sampled.kept
        ]
        if not rows:
            return None
        counts = Counter(language for *_, language in rows)
        column = known_code(getattr(self.source.data, name))
        given = {code for _, _, code, _ in rows if code}
        expected = column or counts.most_common(1)[0][0]
        other = _Sample()
        for number, example, code, language in rows:
            if language != (code or expected):
                other.add((number, replace(example, reason=f"{name} is taken for {language}")))
        return SideLanguages(
            ", ".join(sorted(given)) or expected, bool(given or column), dict(counts.most_common()), other.found()
        )


def _place(row: Row, number: int) -> str:
    return row.get(PLACE) or f"row {number}"


def _language_given(row: Row, name: str) -> str | None:
    code = row.get(f"{name}_lang")
    return known_code(code) if isinstance(code, str) else None


def _around(text: str, place: int) -> str:
    """Return the part of a text in which something is to be seen."""
    return text[max(0, place - AROUND) : place + AROUND]


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]}..."


def quantiles(counts: Mapping[Any, int], shares: Sequence[float]) -> list[Any]:
    """Return the smallest values that so many are not above; zeros where there are none."""
    if not counts:
        return [0] * len(shares)
    values = sorted(counts)
    sums = np.cumsum([counts[value] for value in values])
    return [values[int(np.searchsorted(sums, math.ceil(share * sums[-1])))] for share in shares]


def _usual_scripts(name: str, rows: Iterable[Row]) -> dict[str, float]:
    """Return the scripts in which most letters of some rows are, with the usual share."""
    letters = Counter(
        _script(character)
        for row in rows
        if isinstance(text := first_text(row.get(name)), str)
        for character in text
        if character.isalpha()
    )
    least = MIN_SCRIPT * letters.total()
    scripts = [script for script in SCRIPTS.split() if letters[script] and letters[script] >= least]
    return {"+".join(scripts): USUAL["min_script_share"]} if scripts else {}


def _script(letter: str) -> str:
    """Return the script of a letter by the first word of its name."""
    word = unicodedata.name(letter, "").split(" ")[0].title()
    return "Han" if word == "Cjk" else word


# ---- series


def _inspect_series(config: Config, source: _Source) -> SeriesReport:
    """Look at a split of time series."""
    names = config.task_settings.series
    columns = {name: _Column() for name in names}
    moments: list[Row] = []
    with errors_of(source.place), progress_bar(f"reading {source.place}", "rows") as bar:
        rows = 0
        for rows, row in enumerate(source.read(), 1):
            for name, column in columns.items():
                column.add(rows - 1, row, name)
            if TIME in row:
                moments.append({name: row[name] for name in (TIME, PLACE, PROBLEM) if name in row})
            bar.update()
    model = make_model_config(config, None, {"series": names} | given_settings(config))
    return SeriesReport(
        source.place,
        source.data.path,
        source.split,
        rows,
        not source.has_more_than(rows),
        max(0, rows + 1 - model.context_length - model.prediction_length),
        _find_disorder(moments),
        {name: column.describe() for name, column in columns.items()},
    )


def _find_disorder(moments: list[Row]) -> str | None:
    try:
        check_order(moments)
    except DataError as error:
        return str(error)
    return None


class _Column:
    """The values of a series, one after another."""

    def __init__(self) -> None:
        self.missing = self.gap = self.longest_gap = self.count = 0
        self.minimum, self.maximum, self.mean = math.inf, -math.inf, 0.0
        self.not_numbers = _Sample()

    def add(self, number: int, row: Row, name: str) -> None:
        try:
            value = math.nan if row.get(PROBLEM) else to_number(row[name])
        except (TypeError, ValueError, OverflowError):
            self.not_numbers.add((number, Example(_place(row, number), {name: shorten(row[name])}, "is not a number")))
            value = math.nan
        if not math.isfinite(value):
            self.missing += 1
            self.gap += 1
            self.longest_gap = max(self.gap, self.longest_gap)
            return
        self.gap = 0
        self.count += 1
        self.minimum, self.maximum = min(value, self.minimum), max(value, self.maximum)
        self.mean += (value - self.mean) / self.count

    def describe(self) -> Series:
        is_constant = self.count > 0 and self.minimum == self.maximum
        bounds = (self.minimum, self.maximum, self.mean) if self.count else (math.nan,) * 3
        return Series(self.missing, self.longest_gap, self.not_numbers.found(), *bounds, is_constant)
