"""A column by the name that the config gives it, where a dot may be part of the name, or reach into another column.

{"translation": {"en": "a"}}    translation.en -> "a"
{"text.en": "a"}                text.en -> "a"
"""

from collections.abc import Iterable
from typing import Any

from datasets import ClassLabel

from pipeline.data.rows import ClassName, Columns
from pipeline.errors import DataError, nearest


def get_value(row: Any, name: str) -> Any:
    """Return one row's value of a column.

    Raises:
        DataError: where there is no such column, with the nearest right name.
    """
    if isinstance(row, dict) and name in row:
        return row[name]
    value = row
    for key in name.split("."):
        if not isinstance(value, dict) or key not in value:
            known = value if isinstance(value, dict) else {}
            raise DataError(f"there is no column {name!r}{nearest(key, known)}")
        value = value[key]
    return value


def get_column(columns: Columns, name: str) -> list:
    """Return all rows' values of a column that exists; a null on the way to it stays null."""
    if name in columns:
        return columns[name]
    top, *keys = name.split(".")
    values = columns[top]
    for key in keys:
        values = [None if value is None else value[key] for value in values]
    return values


def top_column(names: Iterable[str], name: str) -> str:
    """Return the one of a data set's columns that holds column `name`.

    Raises:
        DataError: where there is none, with the nearest right name.
    """
    names = [*names]
    top = name if name in names else name.split(".")[0]
    if top not in names:
        raise DataError(f"there is no column {name!r}{nearest(top, names)}")
    return top


def find_class_names(features: Any, name: str) -> list[str] | None:
    """Return the names of the classes that a column numbers, where it does."""
    feature = features.get(name)
    if feature is None:
        feature = features
        for key in name.split("."):
            feature = feature.get(key) if isinstance(feature, dict) else None
    return feature.names if isinstance(feature, ClassLabel) else None


def name_classes(values: list, names: list[str] | None) -> list:
    """Replace the numbers of classes by their names; -1, which means that there is none, by None."""
    if names is None:
        return values
    return [None if value is None or value < 0 else ClassName.of(names, value) for value in values]
