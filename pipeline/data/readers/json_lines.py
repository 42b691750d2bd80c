"""JSON lines, compressed or not, here or on the Hub; a line that cannot be parsed makes a bad row with its place.

With `data.options` other than `encoding` they are left to `datasets`, which knows those.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.data.lines import find_line_problem, read_lines
from pipeline.data.readers.base import Rows, SplitRequest
from pipeline.data.readers.columns import get_value
from pipeline.data.readers.text_lines import LINES, Parse, has_suffix, is_plain, open_lines
from pipeline.data.rows import PLACE, PROBLEM, Columns
from pipeline.errors import DataError

SUFFIXES = (".jsonl", ".ndjson")
LARGEST_ARRAY = 50_000_000  # bytes of a file that `datasets` must hold in memory as a whole


def accepts(request: SplitRequest) -> bool:
    if set(request.options) - {"encoding"} or not is_plain(request):
        return False
    return bool(request.files) and all(_is_json_lines(file, request.encoding) for file in request.files)


def read(request: SplitRequest) -> Rows:
    return open_lines(request, [[file] for file in request.fetch_files()], _parser(request.columns, request.encoding))


def _is_json_lines(file: str, encoding: str | None) -> bool:
    """Tell whether a file holds an object a line; .json may also name a file that is one array."""
    if not has_suffix(file, (".json",)) or not Path(file).is_file():
        return has_suffix(file, SUFFIXES)
    try:
        return isinstance(json.loads(next(read_lines(file, encoding), b"")), dict)
    except (ValueError, RecursionError):
        return False
    except DataError:
        if Path(file).stat().st_size > LARGEST_ARRAY:
            raise
        return False  # an array is often one line


def _parser(columns: dict[str, str], encoding: str | None) -> Parse:
    def parse(batch: Columns) -> Columns:
        parsed: Columns = {name: [] for name in (*columns, PROBLEM)}
        for lines in batch[LINES]:  # one, as there is one file
            values, problem = _parse_line(lines[0], columns, encoding)
            for name in columns:
                parsed[name].append(values.get(name))
            parsed[PROBLEM].append(problem)
        return {**parsed, PLACE: batch[PLACE]}

    return parse


def _parse_line(line: bytes, columns: dict[str, str], encoding: str | None) -> tuple[dict[str, Any], str | None]:
    """Return the agreed columns of a line, or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
        if not isinstance(row, dict):
            return {}, f"the line is not a JSON object, such as {json.dumps(dict.fromkeys(columns.values(), '...'))}"
        values = {agreed: get_value(row, name) for agreed, name in columns.items()}
        if b"\\u" in line and rb"\ud" in line.lower():  # escapes can write half a character, which no tokenizer takes
            json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return {}, f"\\u{ord(error.object[error.start]):04x} is half of a surrogate pair, so the text is not Unicode"
    except UnicodeDecodeError as error:
        return {}, find_line_problem(line) or f"byte {error.start + 1} of the line is not UTF-8"
    except json.JSONDecodeError as error:
        problem = f"the line is not JSON: {error.msg} at character {error.pos + 1}"
        return {}, find_line_problem(line, encoding) or problem
    except RecursionError:
        return {}, "the line is nested too deeply"
    except DataError as error:
        return {}, str(error)
    except ValueError as error:  # of a whole number with thousands of digits
        return {}, f"the line cannot be read: {error}"
    return values, find_line_problem(line, encoding)
