"""What systems answered, read from files, and the check that all of them answered the same rows.

A file has one answer a line: as text, or as JSON lines with `prediction` and, where they are known, `source`,
`reference` and `corpus`. `teacher-forcing score --predictions` writes the latter; what `generate` writes has `source`
and, as a corpus to train on, the answer as `target`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.data.lines import decode, read_lines
from pipeline.data.rows import shorten
from pipeline.errors import ConfigError, DataError
from pipeline.inference.compare import EvaluationSet
from pipeline.inference.metrics import Reference, answers

EXAMPLE = '{"source": "...", "reference": "...", "prediction": "..."}'
T = TypeVar("T")


@dataclass(frozen=True)
class Answers:
    """The answers of one system, row by row, and what its file says of the rows; None for what it does not say.

    `place` is the file or folder, for messages.
    """

    place: str
    predictions: list[str]
    sources: list[str] | None = None
    references: list[Reference] | None = None
    corpora: list[str] | None = None


@dataclass(frozen=True)
class Texts:
    """The lines of a file that an option names."""

    place: str
    lines: list[str]


def read_texts(path: Path) -> Texts:
    """Read a file of texts, one a line; CRLF ends a line as well.

    Raises:
        DataError: for a file that cannot be read, that is empty, or that is not UTF-8.
    """
    lines = list(read_lines(path))
    for number, line in enumerate(lines, start=1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: invalid UTF-8; fix this line, or convert the file to UTF-8") from error
    if not lines:
        raise DataError(f"{path}: the file is empty; one text a line is needed")
    return Texts(str(path), [decode(line) for line in lines])


def read_answers(path: Path) -> Answers:
    """Read the answers of a system from a file of texts or JSON lines, whose name ends with .jsonl or first line tells.

    Raises:
        DataError: for a file that cannot be read, and for a line that is not as the others.
    """
    if path.suffix == ".parquet":
        raise DataError(f"{path}: Parquet is not read here; write the answers as .jsonl or as text")
    texts = read_texts(path)
    if ".jsonl" not in path.suffixes and not _holds_prediction(texts.lines[0]):
        return Answers(texts.place, texts.lines)
    rows = [_parse_row(line, f"{path}:{number}") for number, line in enumerate(texts.lines, start=1)]
    for number, row in enumerate(rows, start=1):
        if row.keys() != rows[0].keys():
            name = min(row.keys() ^ rows[0].keys())
            raise DataError(f"{path}:{number}: {name} is not in all lines; give it in all or in none")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return Answers(
        str(path), columns["prediction"], columns.get("source"), columns.get("reference"), columns.get("corpus")
    )


def _holds_prediction(line: str) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and not row.keys().isdisjoint(("prediction", "target"))


def _parse_row(line: str, place: str) -> dict[str, Any]:
    """Return the fields of a line that are known here.

    Raises:
        DataError: for a line that is not an object, a field that is not a text, or an answer that is missing.
    """
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # escapes can write half a character
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: the line cannot be read as JSON: {error}; write one object a line: {EXAMPLE}"
        ) from error
    if isinstance(row, dict) and "target" in row:
        row = {"prediction": row["target"], **row}
    if not isinstance(row, dict) or "prediction" not in row:
        raise DataError(f"{place}: the line has no prediction; write one object a line: {EXAMPLE}")
    fields = {name: row[name] for name in ("source", "reference", "prediction", "corpus") if name in row}
    if fields["prediction"] is None:
        raise DataError(
            f"{place}: prediction is null, as nothing was generated; score again with evaluation.metrics set"
        )
    for name, value in fields.items():
        texts = value if name == "reference" and isinstance(value, list) and value else [value]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{place}: {name} is {shorten(value)}, where a text is needed")
    return fields


def agree(systems: Sequence[Answers], sources: Texts | None = None, references: Sequence[Texts] = ()) -> EvaluationSet:
    """Return the rows that all systems answered.

    Args:
        sources: of a file, for systems that do not tell theirs.
        references: of files, each with one reference of each row; a system's own must be among them.

    Raises:
        DataError: where rows differ, naming the first line.
        ConfigError: where nothing gives references.
    """
    given_sources = [(system.place, system.sources) for system in systems if system.sources is not None]
    if sources is not None:
        given_sources.insert(0, (sources.place, sources.lines))
    for place, texts in given_sources[1:]:
        _check_rows("source", given_sources[0], (place, texts), _is_same_text)
    given_references = [(system.place, system.references) for system in systems if system.references is not None]
    if references:
        for file in references[1:]:
            _check_count((references[0].place, references[0].lines), (file.place, file.lines))
        lines = zip(*(file.lines for file in references), strict=True)
        rows: list[Reference] = [list(row) if len(row) > 1 else row[0] for row in lines]
        given_references.insert(0, (references[0].place, rows))
    if not given_references:
        raise ConfigError(f"--references: {systems[0].place} has no references; name a file with one a line")
    for others in given_references[1:]:
        _check_rows("reference", given_references[0], others, _is_among if references else _are_same_answers)
    counted: list[tuple[str, Sequence[object]]] = [(system.place, system.predictions) for system in systems]
    for column in [*counted, *given_sources, *given_references]:
        _check_count(counted[0], column)
    return EvaluationSet(
        references=given_references[0][1],
        sources=given_sources[0][1] if given_sources else None,
        corpora=next((system.corpora for system in systems if system.corpora is not None), None),
    )


def _check_rows(
    name: str, first: tuple[str, list[T]], second: tuple[str, list[T]], is_same: Callable[[T, T], bool]
) -> None:
    """Refuse rows that differ, as far as both have any."""
    for number, (expected, value) in enumerate(zip(first[1], second[1], strict=False), start=1):
        if not is_same(expected, value):
            raise DataError(
                f"{second[0]}:{number}: the {name} is {shorten(value)}, but in {first[0]} {shorten(expected)}; compare "
                "answers to the same rows, in the same order"
            )


def _check_count(first: tuple[str, Sequence[object]], second: tuple[str, Sequence[object]]) -> None:
    if len(first[1]) != len(second[1]):
        (less, few), (more, many) = sorted((first, second), key=lambda rows: len(rows[1]))
        raise DataError(
            f"{less} has {len(few):,} rows and {more} {len(many):,}: line {len(few) + 1} is the first that is missing; "
            "compare answers to the same rows"
        )


def _is_same_text(first: str, second: str) -> bool:
    return first.strip() == second.strip()


def _are_same_answers(first: Reference, second: Reference) -> bool:
    return [text.strip() for text in answers(first)] == [text.strip() for text in answers(second)]


def _is_among(first: Reference, second: Reference) -> bool:
    return {text.strip() for text in answers(second)} <= {text.strip() for text in answers(first)}
