"""JSON, compressed or not, here or on the Hub: an object a line, or one array of objects.

What cannot be parsed makes a bad row with its place: file and line, and of an array the number of the element.
Other `data.options` than `encoding`, and `field`, the key of the array in a file that is one object, are left to
`datasets`.
"""

import json
from typing import Any

from pipeline.data.hub_reading import with_retries
from pipeline.data.lines import find_line_problem, read_lines, read_text
from pipeline.data.readers.base import Rows, SplitRequest
from pipeline.data.readers.columns import get_value
from pipeline.data.readers.json_array import array_rows
from pipeline.data.readers.text_lines import LINES, Parse, has_suffix, is_plain, open_lines
from pipeline.data.rows import PLACE, PROBLEM, Columns
from pipeline.errors import ConfigError, DataError

LINE_SUFFIXES = (".jsonl", ".ndjson")
SUFFIXES = (*LINE_SUFFIXES, ".json")  # .json may hold lines, an array, or something else
FIELD = "field"  # the option
OPTIONS = {FIELD, "encoding"}


def accepts(request: SplitRequest) -> bool:
    if not set(request.options) <= OPTIONS or not is_plain(request) or not request.files:
        return False
    if not all(has_suffix(file, SUFFIXES) for file in request.files):
        return False
    return bool(_field(request)) or _find_shape(request, request.files[0]) is not None


def read(request: SplitRequest) -> Rows:
    """Open the files.

    Raises:
        DataError: for files of several shapes.
    """
    keys, files = _field(request), request.fetch_files()
    shapes = {file: "array" if keys else _find_shape(request, file) for file in files}
    if len({*shapes.values()}) > 1:
        first, other = files[0], next(file for file in files if shapes[file] != shapes[files[0]])
        raise DataError(f"{first} and {other}: one is an array, the other is not; make them alike")
    shards = [[file] for file in files]
    if shapes[files[0]] == "array":
        return open_lines(request, shards, _parser(request, "element"), array_rows, column=LINES, keys=keys)
    return open_lines(request, shards, _parser(request, "line"))


def _field(request: SplitRequest) -> tuple[str, ...]:
    """Return the keys of the objects around an array.

    Raises:
        ConfigError: where the option is not a name.
    """
    field = request.options.get(FIELD, "")
    if not isinstance(field, str):
        raise ConfigError(f"data.options.{FIELD}: {field!r} is not the name of a key")
    return tuple(field.split(".")) if field else ()


def _find_shape(request: SplitRequest, file: str) -> str | None:
    """Return "lines", "array", or None for another shape."""
    if has_suffix(file, LINE_SUFFIXES):
        return "lines"
    return with_retries(lambda: _look_at(file, request.encoding), request.patience, file)


def _look_at(file: str, encoding: str | None) -> str | None:
    begin = next(read_text(file, encoding), "").lstrip()
    if begin.startswith("["):
        return "array"
    try:
        first = next(filter(bytes.strip, read_lines(file, encoding)), b"")
        return "lines" if isinstance(json.loads(first), dict) else None
    except (ValueError, RecursionError):
        return None
    except DataError as error:
        hint = "; of one object that holds a list, name its key, as in data.options: {field: data}"
        raise DataError(f"{error}{hint if begin.startswith('{') else ''}") from error


def _parser(request: SplitRequest, unit: str) -> Parse:
    columns, encoding = request.columns, request.encoding

    def parse(batch: Columns) -> Columns:
        parsed: Columns = {name: [] for name in (*columns, PROBLEM)}
        for lines in batch[LINES]:  # one, as there is one file
            values, problem = _parse(lines[0], columns, encoding, unit)
            for name in columns:
                parsed[name].append(values.get(name))
            parsed[PROBLEM].append(problem)
        return {**parsed, PLACE: batch[PLACE]}

    return parse


def _parse(line: bytes, columns: dict[str, str], encoding: str | None, unit: str) -> tuple[dict[str, Any], str | None]:
    """Return the agreed columns of a line, or of an element; or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
        if not isinstance(row, dict):
            return {}, f"the {unit} is not a JSON object, such as {json.dumps(dict.fromkeys(columns.values(), '...'))}"
        values = {agreed: get_value(row, name) for agreed, name in columns.items()}
        if b"\\u" in line and rb"\ud" in line.lower():  # escapes can write half a character, which no tokenizer takes
            json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return {}, f"\\u{ord(error.object[error.start]):04x} is half of a surrogate pair, so the text is not Unicode"
    except UnicodeDecodeError as error:
        return {}, find_line_problem(line) or f"byte {error.start + 1} of the {unit} is not UTF-8"
    except json.JSONDecodeError as error:
        problem = f"the {unit} is not JSON: {error.msg} at character {error.pos + 1}"
        return {}, find_line_problem(line, encoding) or problem
    except RecursionError:
        return {}, f"the {unit} is nested too deeply"
    except DataError as error:
        return {}, str(error)
    except ValueError as error:  # of a whole number with thousands of digits
        return {}, f"the {unit} cannot be read: {error}"
    return values, find_line_problem(line, encoding)
