"""CSV and TSV, compressed or not, here or on the Hub: every field is the text that stands in the file.

`datasets` reads them by pandas, which takes "01" for 1 where all values of a chunk look like numbers, and not in the
next. Here nothing is inferred: `000`, `1e0`, `True` and `NA` stay what they are. A row may span lines where a field in
quotes does. Where the quotes of a row do not add up, that row alone is a bad one, not what lies behind it.

TSV has no quoting, unless `data.options` ask for it (`quoting: 0` or a `quotechar`). Other options than `OPTIONS`, and
types that a data set of the Hub declares, are left to `datasets`.
"""

import csv
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

from datasets import Features, Value

from pipeline.data.lines import LONGEST_LINE, decode, find_encoding, find_line_problem, read_lines
from pipeline.data.readers.base import Rows, SplitRequest
from pipeline.data.readers.columns import missing_column
from pipeline.data.readers.text_lines import has_suffix, is_plain, open_files
from pipeline.data.rows import PLACE, PROBLEM
from pipeline.errors import ConfigError, DataError

SUFFIXES = (".csv", ".tsv")
OPTIONS = {"sep", "delimiter", "names", "column_names", "quotechar", "quoting", "encoding"}

Record: TypeAlias = tuple[int, list[str], str | None]  # the number of its first line, its fields, what is wrong

csv.field_size_limit(LONGEST_LINE)


def accepts(request: SplitRequest) -> bool:
    if not is_plain(request) or not request.files or not all(has_suffix(file, SUFFIXES) for file in request.files):
        return False
    config = request.builder.config
    is_known = changed_options(request) <= OPTIONS and all(
        isinstance(mark, str) and len(mark) == 1 for mark in (config.sep, config.quotechar)
    )
    return is_known and request.builder.info.features is None


def read(request: SplitRequest) -> Rows:
    config = request.builder.config
    if isinstance(request.options.get("names", []), str):
        raise ConfigError(f"data.options.names: give a list, as in [source, target], not {config.names!r}")
    features = Features({name: Value("string") for name in (*request.columns, PLACE, PROBLEM)})
    return open_files(
        request,
        [[file] for file in request.fetch_files()],
        _rows,
        features,
        columns=tuple(request.columns.items()),
        names=None if config.names is None else tuple(map(str, config.names)),
        separator=config.sep,
        quote=config.quotechar if has_quotes(request) else None,
        encoding=find_encoding(config.encoding),
    )


def changed_options(request: SplitRequest) -> set[str]:
    """Name the options of the config, and what the data set itself says, that differ from the defaults of CSV."""
    config = request.builder.config
    usual = type(config)()
    given = {field.name for field in dataclasses.fields(config)} - {"name", "version", "data_dir", "data_files"}
    return {name for name in given if getattr(config, name) != getattr(usual, name)} | set(request.options)


def has_quotes(request: SplitRequest) -> bool:
    """Tell whether a field may stand in quotes."""
    config = request.builder.config
    is_asked = bool({"quotechar", "quoting"} & changed_options(request))
    return config.quoting != csv.QUOTE_NONE and (config.sep != "\t" or is_asked)


def _rows(
    shards: list[list[str]],
    columns: tuple[tuple[str, str], ...],
    names: tuple[str, ...] | None,
    separator: str,
    quote: str | None,
    encoding: str | None = None,
    fingerprint: str = "",
) -> Iterator[dict[str, Any]]:
    """Yield the agreed columns of each row; the first record of a file holds the names, unless they are given."""
    nothing = dict.fromkeys(agreed for agreed, _ in columns)
    for (file,) in shards:
        records = _records(read_lines(file, encoding), separator, quote, encoding)
        header = _read_header(records, file) if names is None else list(names)
        rest = (fields for _, fields, _ in records if fields)
        indices = _find_columns(header, columns, file, partial(next, rest, [])) if header else {}
        counted = "the header has" if names is None else "data.options.names has"
        blanks: list[int] = []  # lines since the last record; those at the end of a file are none
        for number, fields, problem in records:
            if not fields and problem is None:
                blanks.append(number)
                continue
            # A field of the only column that is empty is a blank line, as every step of a series counts.
            for blank in blanks if len(header) == 1 else ():
                yield {**nothing, **dict.fromkeys(indices, ""), PLACE: f"{file}:{blank}", PROBLEM: None}
            blanks.clear()
            if problem is None and len(fields) != len(header):
                problem = f"the row has {len(fields)} fields, where {counted} {len(header)}"
            values = nothing if problem else {agreed: fields[index] for agreed, index in indices.items()}
            yield {**values, PLACE: f"{file}:{number}", PROBLEM: problem}


def _read_header(records: Iterator[Record], file: str) -> list[str]:
    """Return the fields of the first record; none of an empty file."""
    for number, fields, problem in records:
        if problem is not None:
            raise DataError(f"{file}:{number}: {problem}")
        if fields:
            return fields
    return []


def _find_columns(
    header: list[str], columns: tuple[tuple[str, str], ...], file: str, first_row: Callable[[], list[str]]
) -> dict[str, int]:
    """Return where the agreed columns stand in a row.

    Args:
        first_row: reads its fields, for the message.

    Raises:
        DataError: for a column that is not there, or there twice.
    """
    indices = {}
    for agreed, name in columns:
        if name not in header:
            row = dict(zip(header, first_row(), strict=False))
            raise DataError(f"{file}: {missing_column(name, header, row or None)}")
        if header.count(name) > 1:
            raise DataError(f"{file}: there are {header.count(name)} columns {name!r}; rename one")
        indices[agreed] = header.index(name)
    return indices


def _records(lines: Iterator[bytes], separator: str, quote: str | None, encoding: str | None) -> Iterator[Record]:
    """Yield the number of the first line, the fields, and the problem of each record; a blank line has no fields."""
    waiting: deque[bytes] = deque()  # lines that were read for a record whose quotes did not end
    number = 1
    mark = None if quote is None else quote.encode()
    while (line := waiting.popleft() if waiting else next(lines, None)) is not None:
        if mark is None or mark not in line:
            text = decode(line)
            yield number, text.split(separator) if text else [], find_line_problem(line, encoding)
            number += 1
            continue
        taken = [line]

        def follow(taken: list[bytes] = taken) -> Iterator[str]:
            yield taken[0].decode("utf-8", "replace")
            size = len(taken[0])
            while size <= LONGEST_LINE and (line := waiting.popleft() if waiting else next(lines, None)) is not None:
                taken.append(line)
                size += len(line)
                yield line.decode("utf-8", "replace")

        try:
            fields = next(csv.reader(follow(), delimiter=separator, quotechar=quote, strict=True))
            yield number, fields, find_line_problem(b"".join(taken), encoding)
        except csv.Error:
            swallowed = f", so that it swallows the lines up to {number + len(taken) - 1}" if len(taken) > 1 else ""
            yield number, [], f"a field opens with {quote} and does not end with one{swallowed}"
            waiting.extendleft(reversed(taken[1:]))
            del taken[1:]
        number += len(taken)
