"""From rows as they were read to features, or to a `BadRow` that says why a row cannot be used.

Rows travel as columns: agreed name -> one value for each row. "row" holds their numbers in the split. Rows of text
files also have `PLACE`, file and line, and `PROBLEM`, what is wrong with a line that could not be parsed (else None).

    {"source": ["a b", None], "target": ["c", "d"], "row": [0, 1]}
    -> [{"sample_id": 0, "source": "a b", "input_ids": [4, 5, 2], ...}, BadRow("row 1", "source is None, where ...")]
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

Columns: TypeAlias = dict[str, list]
Feature: TypeAlias = dict[str, Any]

PLACE, PROBLEM = "(place)", "(problem)"  # beside the agreed columns; none of those may have such a name
SHOWN_VALUE = 100  # characters of a wrong value in a message
UNDECODABLE = "\ufffd"  # what Unicode decoders put in the place of invalid bytes
HOW_TO_FIX = "fix or remove the row, or set data.on_bad_row=skip"


class ClassName(str):
    """A class of a data set that numbers its classes: its name, beside all names in the order of their numbers."""

    names: list[str]

    @classmethod
    def of(cls, names: list[str], number: int) -> "ClassName":
        name = cls(names[number])
        name.names = names
        return name

    @property
    def number(self) -> int:
        return self.names.index(self)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where it is (file and line, or number), and what is wrong with it."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


Encode: TypeAlias = Callable[[Columns], list[Feature | BadRow]]  # a feature or a `BadRow` for each row


def encode_rows(
    columns: Columns,
    find_problem: Callable[[dict[str, Any]], str | None],
    make_features: Callable[[Columns], Iterable[Feature]],
    find_fault: Callable[[Feature], str | None] = lambda feature: None,
) -> list[Feature | BadRow]:
    """Encode the good rows together, as a tokenizer is fastest with many texts, and name the bad ones.

    Args:
        columns: the rows.
        find_problem: what is wrong with a row before it is encoded, if anything.
        make_features: one feature for each row of the columns that it gets, which are those of the good rows.
        find_fault: what is wrong with a row after it was encoded, such as its length.

    Returns:
        For each row, in order, its feature or its `BadRow`.
    """
    places = name_places(columns)
    parse_problems = columns.get(PROBLEM) or [None] * len(places)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    reasons = [problem or find_problem(row) for problem, row in zip(parse_problems, rows, strict=True)]
    good = [index for index, reason in enumerate(reasons) if reason is None]
    features = list(make_features({name: [values[index] for index in good] for name, values in columns.items()}))
    encoded: list[Feature | BadRow] = [
        BadRow(place, reason or "") for place, reason in zip(places, reasons, strict=True)
    ]
    for index, feature in zip(good, features, strict=True):
        fault = find_fault(feature)
        encoded[index] = feature if fault is None else BadRow(places[index], fault)
    return encoded


def name_places(columns: Columns) -> list[str]:
    """Name each row for a message: by file and line where its reader knows them, else by its number."""
    return columns.get(PLACE) or [f"row {row}" for row in columns["row"]]


def separate(encoded: Iterable[Feature | BadRow]) -> tuple[list[Feature], list[BadRow]]:
    """Split encoded rows into the features and the bad rows, each in order."""
    features: list[Feature] = []
    bad_rows: list[BadRow] = []
    for row in encoded:
        if isinstance(row, BadRow):
            bad_rows.append(row)
        else:
            features.append(row)
    return features, bad_rows


def find_excess_length(name: str, length: int, bound: int | None, positions: int | None = None) -> str | None:
    """Say that the field `name` has more tokens than are allowed or possible; None where it has not.

    Args:
        bound: `data.max_{name}_length`.
        positions: of the model.
    """
    if bound is not None and length > bound:
        return f"{name} has {length} tokens, where data.max_{name}_length={bound}"
    if positions is not None and length > positions:
        return f"{name} has {length} tokens, and the model has positions for {positions}"
    return None


def shorten(value: object) -> str:
    """Write a wrong value for a message; a picture or a long list has no room there."""
    try:
        text = repr(value)
    except ValueError:  # a whole number with thousands of digits
        return "a number with thousands of digits"
    return text if len(text) <= SHOWN_VALUE else f"{text[:SHOWN_VALUE]}..."


def find_text_problem(name: str, text: object) -> str | None:
    """Say why the field `name` is not a text to train on; None where it is one."""
    if not isinstance(text, str):
        return f"{name} is {shorten(text)}, where a text is needed"
    if not text.strip():
        return f"{name} is empty"
    if UNDECODABLE in text:
        return f"{name} holds U+FFFD, the mark of bytes that are not UTF-8"
    return None


def first_text(value: Any) -> Any:
    """Return the first text of a field that holds a list of them, which is the one to train on; else the field."""
    return value[0] if isinstance(value, list) and value else value
