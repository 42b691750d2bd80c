"""A column by the name that the config gives it, where a dot may be part of the name, or reach into another column.

{"translation": {"en": "a"}}            translation.en -> "a"
{"text.en": "a"}                        text.en -> "a"
{"paragraphs": [{"text": "a"}, ...]}    paragraphs.0.text -> "a"
"""

from collections.abc import Iterable, Sequence
from typing import Any

from datasets import ClassLabel, List

from pipeline.data.rows import ClassName, Columns, shorten
from pipeline.errors import DataError, nearest

SHOWN_COLUMNS = 30  # in a message
SHOWN_ROW = 300  # characters of a row in a message


def get_value(row: Any, name: str) -> Any:
    """Return one row's value of a column.

    Raises:
        DataError: where there is no such column, with those that there are, and the row.
    """
    if isinstance(row, dict) and name in row:
        return row[name]
    value, keys = row, name.split(".")
    for depth, key in enumerate(keys):
        way = ".".join(keys[:depth])
        if isinstance(value, dict):
            if key not in value:
                raise missing_column(name, [".".join([*keys[:depth], str(known)]) for known in value], row, "The row")
            value = value[key]
        elif isinstance(value, list) and key.isdecimal():
            if int(key) >= len(value):
                raise DataError(f"there is no {name!r}, as {way} is a list of {len(value)}. The row: {show_row(row)}")
            value = value[int(key)]
        elif isinstance(value, list):
            example = ".".join([*keys[:depth], "0", *keys[depth:]])
            raise DataError(
                f"there is no column {name!r}, as {way} is a list; name one element, as in {example}, "
                f"where 0 is the first. The row: {show_row(row)}"
            )
        else:
            raise DataError(f"there is no column {name!r}, as {way} is {shorten(value)}. The row: {show_row(row)}")
    return value


def get_column(columns: Columns, name: str) -> list:
    """Return all rows' values of a column that exists; what lacks in a row on the way to it is null."""
    if name in columns:
        return columns[name]
    top, *keys = name.split(".")
    values = columns[top]
    for key in keys:
        values = [_step(value, key) for value in values]
    return values


def _step(value: Any, key: str) -> Any:
    if isinstance(value, list):
        return value[int(key)] if key.isdecimal() and int(key) < len(value) else None
    return None if value is None else value.get(key)


def top_column(names: Iterable[str], name: str) -> str | None:
    """Return the one of a data set's columns that holds column `name`; None where there is none."""
    names, top = {*names}, name.split(".")[0]
    return name if name in names else top if top in names else None


def check_column(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Check that some of the first rows have a column; in the others, it may be null on the way.

    Raises:
        DataError: as `get_value`, of the first of them.
    """
    problems = []
    for row in rows:
        try:
            get_value(row, name)
            return
        except DataError as error:
            problems.append(error)
    if problems:
        raise problems[0]


def missing_column(name: str, columns: Sequence[str], row: Any = None, which: str = "The first row") -> DataError:
    """Make the error of a column that is not there: it names those that are, and shows a row.

    Args:
        row: None where there is none to show.
        which: what that row is called.
    """
    hint = nearest(name, columns) if columns else ", nor any other"
    shown = ", ".join(columns[:SHOWN_COLUMNS]) + (", ..." if len(columns) > SHOWN_COLUMNS else "")
    if hint.endswith("?"):
        hint += f" The columns: {shown}"
    elif columns:
        hint = f"; choose from {shown}"
    return DataError(f"there is no column {name!r}{hint}{'' if row is None else f'. {which}: {show_row(row)}'}")


def show_row(row: Any) -> str:
    """Write a row for a message, with no more of it than a line holds."""
    if not isinstance(row, dict):
        return shorten(row)
    text = ", ".join(f"{name!r}: {shorten(value)}" for name, value in row.items())
    return f"{{{text}}}" if len(text) <= SHOWN_ROW else f"{{{text[:SHOWN_ROW]}..."


def find_class_names(features: Any, name: str) -> list[str] | None:
    """Return the names of the classes that a column numbers, where it does."""
    feature = features.get(name)
    if feature is None:
        feature = features
        for key in name.split("."):
            is_list = isinstance(feature, List) and key.isdecimal()
            feature = feature.feature if is_list else feature.get(key) if isinstance(feature, dict) else None
    return feature.names if isinstance(feature, ClassLabel) else None


def name_classes(values: list, names: list[str] | None) -> list:
    """Replace the numbers of classes by their names; -1, which means that there is none, by None."""
    if names is None:
        return values
    return [None if value is None or value < 0 else ClassName.of(names, value) for value in values]
