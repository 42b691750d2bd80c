"""A column by the name that the config gives it, where a dot may be part of the name, or reach into another column.

{"translation": {"en": "a"}}    translation.en -> "a"
{"text.en": "a"}                text.en -> "a"
"""

from typing import Any

from pipeline.data.rows import Columns
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


def top_column(row: dict[str, Any], name: str) -> str:
    """Return the name of the column of the data set that holds column `name`."""
    return name if name in row else name.split(".")[0]
