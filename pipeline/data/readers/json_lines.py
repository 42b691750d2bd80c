"""JSON lines, compressed or not, here or on the Hub; a line that cannot be parsed makes a bad row with its place.

With a slice (`train[:90%]`) or `data.options` they are left to `datasets`, which knows both.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.data.readers.base import Rows, SplitRequest
from pipeline.data.readers.columns import get_value
from pipeline.data.readers.text_lines import Parse, read_lines
from pipeline.data.rows import Columns
from pipeline.errors import DataError

SUFFIXES = (".jsonl", ".ndjson")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def accepts(request: SplitRequest) -> bool:
    if request.split.slice or request.options or not request.is_folder_or_on_hub:
        return False
    files = request.files
    return bool(files) and all(_is_json_lines(file) for file in files)


def read(request: SplitRequest) -> Rows:
    return read_lines([[file] for file in request.fetch_files()], _parser(request.columns), request.streaming)


def _is_json_lines(file: str) -> bool:
    path = Path(file)
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix in SUFFIXES


def _parser(columns: dict[str, str]) -> Parse:
    def parse(batch: Columns) -> Columns:
        parsed: Columns = {name: [] for name in (*columns, "problem")}
        for lines in batch["lines"]:  # one, as there is one file
            values, problem = _parse_line(lines[0], columns)
            for name in columns:
                parsed[name].append(values.get(name))
            parsed["problem"].append(problem)
        return {**parsed, "place": batch["place"]}

    return parse


def _parse_line(line: bytes, columns: dict[str, str]) -> tuple[dict[str, Any], str | None]:
    """Return the agreed columns of a line, or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
        return {agreed: get_value(row, name) for agreed, name in columns.items()}, None
    except UnicodeDecodeError as error:
        return {}, f"byte {error.start + 1} of the line is not UTF-8"
    except json.JSONDecodeError as error:
        return {}, f"the line is not JSON: {error.msg} at character {error.pos + 1}"
    except DataError as error:
        return {}, str(error)
