"""Leave rows out of the training that are likely wrong, or that validation and test have.

`RULES` is the table of rules. A rule looks at a row that can be read, and says why it takes it, or None. A row that is
taken is not a bad row. It is counted by the first rule that takes it.

Texts are compared after trimming, and with every run of spaces as one.
"""

import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unicodedata import digit

import numpy as np
import regex

from pipeline.data.rows import PLACE, PROBLEM, BadRow, Columns, Feature, first_text, shorten
from pipeline.data_config import FiltersConfig, ScriptShares

Row = Mapping[str, Any]
Counts = dict[str, int]  # `READ` -> rows that were read; rule -> rows that it took
Filtered = dict[str, Counts]  # by the name of the corpus, "" where there is one

READ = "rows_read"

# A number, with groups of three digits (of two before the last in India), or digits alone.
SEPARATORS = ",.'\u2019\u066c\u060c\uff0c\uff0e \u00a0\u202f\u2009"  # those of other scripts, and spaces, among them
NUMBER = re.compile(rf"(?<!\d)(?:\d\d?(?:,\d\d)+,\d{{3}}|\d{{1,3}}([{SEPARATORS}])\d{{3}}(?:\1\d{{3}})*)(?!\d)|\d+")
# Letters that belong to no script, such as those of mathematics and the sign of a long vowel in Japanese, do not count.
LETTERS = regex.compile(r"[\p{L}--\p{Script=Common}--\p{Script=Inherited}]+", regex.V1)

HASH = 16  # bytes, of which no two texts of a corpus have the same by chance
RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("key", "<u8")])  # of a row: its hash, and which row it is
BLOCK = 1 << 20  # records in memory at a time
BUCKET_BITS = 8  # of a hash, by which records are divided into files


@dataclass(frozen=True)
class Candidate:
    """A training row as rules see it.

    Attributes:
        texts: those that are learned, by the name of their column, trimmed, and with every run of spaces as one.
        lengths: tokens on each side; None where the row has too many.
        row: all its columns.
    """

    texts: Mapping[str, str]
    lengths: Sequence[int] | None
    row: Row


@dataclass(frozen=True)
class Rule:
    """A line of the table of rules.

    Attributes:
        find: says why a row is taken, by what it is compared with: the value in the config, or what was found of it.
        compares_sides: whether a row must have a source and a target.
    """

    find: Callable[[Candidate, Any], str | None]
    compares_sides: bool = False


def _find_identical(candidate: Candidate, value: bool) -> str | None:
    source, target = candidate.texts.values()
    return "source and target are the same" if source == target else None


def _find_long_word(candidate: Candidate, longest: int) -> str | None:
    for name, text in candidate.texts.items():
        if len(text) > longest and len(word := max(text.split(" "), key=len)) > longest:
            return f"{name} has a word of {len(word)} characters: {shorten(word)}"
    return None


def _find_other_script(candidate: Candidate, sides: Mapping[str, ScriptShares]) -> str | None:
    for name, shares in sides.items():
        text = candidate.texts[name]
        num_letters = sum(map(len, LETTERS.findall(text)))
        for scripts, least in shares.items():
            num_right = sum(map(len, _letters_of(scripts).findall(text)))
            if num_right < least * num_letters:  # a text without letters is in every script
                return f"{num_right} of {num_letters} letters of {name} are {scripts}"
    return None


@cache
def _letters_of(scripts: str) -> Any:
    names = "".join(rf"\p{{Script={name}}}" for name in scripts.split("+"))
    return regex.compile(rf"[\p{{L}}&&[{names}]]+", regex.V1)


def _find_other_digits(candidate: Candidate, value: bool) -> str | None:
    source, target = map(_numbers, candidate.texts.values())
    if source == target:
        return None
    only = " ".join((source - target).elements()), " ".join((target - source).elements())
    return f"numbers only in source: {only[0] or 'none'}; only in target: {only[1] or 'none'}"


def _numbers(text: str) -> Counter[str]:
    """Count the numbers of a text, by their digits without separators; a decimal point separates two numbers."""
    return Counter(_digits(match[0]) for match in NUMBER.finditer(text))


def _digits(number: str) -> str:
    """Write digits of any script without separators and leading zeros, so that 01 and 1 are the same."""
    digits = number if number.isascii() and number.isdecimal() else _plain_digits(number)
    return digits.lstrip("0") or "0"


def _plain_digits(number: str) -> str:
    return "".join(str(digit(character)) for character in number if character.isdecimal())


def _find_length_ratio(candidate: Candidate, largest: float) -> str | None:
    if candidate.lengths is None:
        return None
    source, target = candidate.lengths
    if max(source, target) > largest * min(source, target):
        return f"source has {source} tokens, and target {target}"
    return None


def _find_held_out(candidate: Candidate, held_out: Collection[bytes]) -> str | None:
    if hash_texts(candidate.texts.values()) in held_out:
        return "it is in validation or test"
    return None


def _find_duplicate(candidate: Candidate, duplicates: "Duplicates") -> str | None:
    return "an earlier row is the same" if candidate.row in duplicates else None


# In the order in which they are asked.
RULES: dict[str, Rule] = {
    "drop_identical": Rule(_find_identical, compares_sides=True),
    "max_word_length": Rule(_find_long_word),
    "min_script_share": Rule(_find_other_script),
    "match_digits": Rule(_find_other_digits, compares_sides=True),
    "max_length_ratio": Rule(_find_length_ratio, compares_sides=True),
    "drop_held_out": Rule(_find_held_out),
    "drop_duplicates": Rule(_find_duplicate),
}


class Filters:
    """The rules of one corpus.

    Args:
        config: which rules, with their values.
        lengths: tokens on each side of a feature.
        columns: of the texts of a row: source and target, or only the source.
        held_out: what `hash_held_out` gives; needed for `drop_held_out`.
        duplicates: what `find_duplicates` gives; needed for `drop_duplicates`.
    """

    def __init__(
        self,
        config: FiltersConfig,
        lengths: Callable[[Feature], Sequence[int]],
        columns: Sequence[str] = ("source", "target"),
        held_out: Collection[bytes] = (),
        duplicates: "Duplicates | None" = None,
    ):
        self.lengths, self.columns = lengths, columns
        found = {"drop_held_out": held_out, "drop_duplicates": duplicates or Duplicates()}
        self.values = {name: found.get(name, value) for name, value in config.rules.items()}

    def find_reason(self, row: Row, feature: Feature | BadRow | None) -> tuple[str, str] | None:
        """Return the first rule that takes a row, and why; None where none does.

        Args:
            row: its columns, as they were read.
            feature: what it was encoded as. Of a row that could not be, rules look at the texts only, if it has any.
        """
        texts = find_texts(row, self.columns)
        if texts is None:
            return None
        lengths = None if feature is None or isinstance(feature, BadRow) else self.lengths(feature)
        candidate = Candidate(texts, lengths, row)
        for name, value in self.values.items():
            if (reason := RULES[name].find(candidate, value)) is not None:
                return name, reason
        return None

    def sort_out(self, columns: Columns, encoded: Sequence[Feature | BadRow]) -> tuple[list[Feature | BadRow], Counts]:
        """Return what is left of some rows, in order, and how many there were and each rule took.

        Args:
            columns: the rows as they were read.
            encoded: a feature or a bad row for each.
        """
        kept: list[Feature | BadRow] = []
        counts = Counter({READ: len(encoded)})
        rows = zip(*columns.values(), strict=True)
        for values, feature in zip(rows, encoded, strict=True):
            reason = self.find_reason(dict(zip(columns, values, strict=True)), feature)
            if reason is None:
                kept.append(feature)
            else:
                counts[reason[0]] += 1
        return kept, dict(counts)


def add_filtered(*parts: Filtered) -> Filtered:
    """Return the sums of counts by corpus and rule."""
    sums: dict[str, Counter[str]] = {}
    for part in parts:
        for name, counts in part.items():
            sums.setdefault(name, Counter()).update(counts)
    return {name: dict(counts) for name, counts in sums.items()}


def count_taken(counts: Mapping[str, int]) -> int:
    """Return how many rows all rules took together."""
    return sum(number for name, number in counts.items() if name != READ)


def describe(counts: Mapping[str, int]) -> str:
    """Say how many rows rules took: `data.filters took 3 of 40: 1 by drop_identical, 2 by match_digits`; or nothing."""
    rules = ", ".join(f"{counts[name]:,} by {name}" for name in RULES if counts.get(name))
    return f"data.filters took {count_taken(counts):,} of {counts[READ]:,}: {rules}" if rules else ""


def find_texts(row: Row, columns: Iterable[str]) -> dict[str, str] | None:
    """Return the texts of a row that are learned, as they are compared; None where one is missing or empty."""
    if row.get(PROBLEM):
        return None
    texts = {}
    for name in columns:
        text = first_text(row.get(name))
        if not isinstance(text, str) or not (trimmed := _trim(text)):
            return None
        texts[name] = trimmed
    return texts


def _trim(text: str) -> str:
    return " ".join(text.split())


def hash_texts(texts: Iterable[str]) -> bytes:
    """Return the hash of texts as `find_texts` gives them."""
    # surrogatepass: half a character is an error of the tokenizer, not of this
    return blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=HASH).digest()


def hash_held_out(features: Iterable[Feature], columns: Sequence[str]) -> set[bytes]:
    """Return hashes of the texts of validation and test; a source with several targets is as many pairs."""
    hashes = set()
    for feature in features:
        targets = feature["target"] if isinstance(feature["target"], list) else [feature["target"]]
        for target in targets:
            texts = find_texts({**feature, "target": target}, columns)
            if texts is not None:
                hashes.add(hash_texts(texts.values()))
    return hashes


class Duplicates:
    """Rows of which an equal one comes before, by their keys: their numbers, or in a stream hashes of their places.

    Args:
        keys: sorted, 8 bytes each.
        by_place: whether rows are known by their places.
    """

    def __init__(self, keys: Sequence[int] = (), by_place: bool = False):
        self.keys, self.by_place = array("Q", keys), by_place

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, row: object) -> bool:
        assert isinstance(row, Mapping)
        key = key_of(row, self.by_place)
        place = bisect_left(self.keys, key)
        return place < len(self.keys) and self.keys[place] == key


def key_of(row: Row, by_place: bool) -> int:
    """Return what tells a row from all others of its corpus, below 2^64."""
    if not by_place:
        return row["row"]
    return int.from_bytes(blake2b(row[PLACE].encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def find_duplicates(rows: Iterable[Row], columns: Sequence[str], by_place: bool, folder: Path) -> Duplicates:
    """Find the rows of a corpus of which an equal one comes before: all columns are the same.

    Hashes of all rows, 24 bytes each, are written into files by their first bits. Each file is then sorted by itself,
    so that no more than one of them is in memory.

    Args:
        rows: in the order of the corpus.
        columns: of the texts; rows without them are bad rows, not duplicates.
        by_place: whether the rows are known by their places, else by their numbers.
        folder: in which there is room for the files, which are removed.
    """
    with TemporaryDirectory(prefix=".duplicates-", dir=folder) as name:
        buckets = Path(name)
        block = bytearray()
        for number, row in enumerate(rows):
            if find_texts(row, columns) is None:
                continue
            key = key_of(row if by_place else {"row": number}, by_place)
            block += _hash_row(row) + key.to_bytes(8, "little")
            if len(block) == BLOCK * RECORD.itemsize:
                _write(block, buckets)
                block.clear()
        _write(block, buckets)
        found = [_repeated(np.fromfile(file, RECORD)) for file in buckets.iterdir()]
    return Duplicates(array("Q", np.sort(np.concatenate(found)).tobytes()) if found else (), by_place)


def _hash_row(row: Row) -> bytes:
    values = (first_text(value) for name, value in sorted(row.items()) if name not in (PLACE, PROBLEM, "row"))
    return hash_texts(_trim(value) if isinstance(value, str) else str(value) for value in values)


def _write(block: bytearray, folder: Path) -> None:
    """Append records to the files of their buckets."""
    records = np.frombuffer(bytes(block), RECORD)
    numbers = records["high"] >> np.uint64(64 - BUCKET_BITS)
    for number in np.unique(numbers):
        with (folder / str(number)).open("ab") as file:
            file.write(records[numbers == number].tobytes())


def _repeated(records: np.ndarray) -> np.ndarray:
    """Return the keys of the records whose hash an earlier one has."""
    records = records[np.lexsort((records["low"], records["high"]))]  # which keeps the order of equal ones
    is_same = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
    return records["key"][1:][is_same]
