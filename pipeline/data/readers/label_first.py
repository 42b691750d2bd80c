"""Lines that begin with their class, for `data.options: {format: label_first}`, in the columns "text" and "label".

    __label__sports who won the cup ?    fastText: the prefix is left out, so the class is "sports"
    HUM who won the cup ?                TREC and others: the class ends at the first white space

A file is fastText's if one of its first lines begins with the prefix. Then a line that does not is bad, as is one with
several classes.
"""

import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from datasets import Features, Value

from pipeline.data.lines import decode, find_line_problem, read_lines
from pipeline.data.readers.base import Rows, SplitRequest
from pipeline.data.readers.columns import missing_column
from pipeline.data.readers.text_lines import find_files, open_files
from pipeline.data.rows import PLACE, PROBLEM
from pipeline.errors import ConfigError, nearest

OPTION, FORMAT = "format", "label_first"  # of `data.options`, by which files are known to have this shape
OPTIONS = {OPTION, "encoding"}
COLUMNS = ["text", "label"]
PREFIX = "__label__"
FIRST_LINES = 100


def accepts(request: SplitRequest) -> bool:
    return OPTION in request.options


def read(request: SplitRequest) -> Rows:
    """Open the files.

    Raises:
        ConfigError: for another format, an option that is unknown here, and where there is no file of the split.
        DataError: for a column of another name.
    """
    if request.options[OPTION] != FORMAT:
        raise ConfigError(f"data.options.{OPTION}: unknown format {request.options[OPTION]!r}; choose from {FORMAT}")
    for option in request.options:
        if option not in OPTIONS:
            raise ConfigError(f"data.options.{option}: unknown beside {OPTION}={FORMAT}{nearest(option, OPTIONS)}")
    for name in request.columns.values():
        if name not in COLUMNS:
            raise missing_column(name, COLUMNS)
    if not find_files(request):
        raise ConfigError(
            f"data: no file {request.split.name}.* in {request.path}, a folder of this machine; name it, as in "
            "data.train=train.txt"
        )
    features = Features({name: Value("string") for name in (*request.columns, PLACE, PROBLEM)})
    shards = [[file] for file in find_files(request)]
    columns = tuple(request.columns.items())
    return open_files(request, shards, _rows, features, columns=columns, encoding=request.encoding)


def _rows(
    shards: list[list[str]], columns: tuple[tuple[str, str], ...], encoding: str | None, fingerprint: str = ""
) -> Iterator[dict[str, Any]]:
    for (file,) in shards:
        lines = read_lines(file, encoding)
        first = list(islice(lines, FIRST_LINES))
        has_prefix = any(line.startswith(PREFIX.encode()) for line in first)
        for number, line in enumerate(chain(first, lines), start=1):
            if line.strip():
                values, problem = _parse(decode(line), has_prefix)
                problem = find_line_problem(line, encoding) or problem
                row = {agreed: None if problem else values[name] for agreed, name in columns}
                yield {**row, PLACE: f"{file}:{number}", PROBLEM: problem}


def _parse(line: str, has_prefix: bool) -> tuple[dict[str, str], str | None]:
    """Return the columns of a line, and what is wrong with it."""
    label, *rest = re.split(r"[ \t]+", line.strip(), maxsplit=1)
    values = {"label": label.removeprefix(PREFIX), "text": rest[0] if rest else ""}
    if has_prefix != label.startswith(PREFIX):
        where = "as other lines do" if has_prefix else "where the first lines of the file do not"
        return values, f"the line {'does not begin' if has_prefix else 'begins'} with {PREFIX}, {where}"
    if not values["label"]:
        return values, f"there is no class behind {PREFIX}"
    if any(word.startswith(PREFIX) for word in values["text"].split()):
        return values, "the line has several classes, where one is needed"
    return values, None if values["text"] else "there is no text behind the class"
