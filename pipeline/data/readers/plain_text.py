"""Plain text, a row a line or a paragraph, in the column "text"."""

from collections.abc import Iterator
from typing import Any

from datasets import Features, Value

from pipeline.data.lines import LONGEST_LINE, decode, find_line_problem, read_lines
from pipeline.data.readers.base import Rows, SplitRequest
from pipeline.data.readers.columns import missing_column
from pipeline.data.readers.text_lines import has_suffix, is_plain, open_files
from pipeline.data.rows import PLACE, PROBLEM
from pipeline.errors import DataError

COLUMN = "text"
OPTION = "sample_by"
OPTIONS = {OPTION, "encoding"}  # of `data.options`; with others, text is left to `datasets`
UNITS = ("line", "paragraph")


def accepts(request: SplitRequest) -> bool:
    is_known = set(request.options) <= OPTIONS and request.options.get(OPTION, UNITS[0]) in UNITS
    return (
        is_known and is_plain(request) and bool(request.files) and all(has_suffix(f, (".txt",)) for f in request.files)
    )


def read(request: SplitRequest) -> Rows:
    """Open the files.

    Raises:
        DataError: for a column of another name.
    """
    for name in request.columns.values():
        if name != COLUMN:
            raise missing_column(name, [COLUMN])
    features = Features({name: Value("string") for name in (*request.columns, PLACE, PROBLEM)})
    shards = [[file] for file in request.fetch_files()]
    by_paragraph = request.options.get(OPTION) == UNITS[1]
    settings = {"names": tuple(request.columns), "by_paragraph": by_paragraph, "encoding": request.encoding}
    return open_files(request, shards, _rows, features, **settings)


def _rows(
    shards: list[list[str]],
    names: tuple[str, ...],
    by_paragraph: bool,
    encoding: str | None = None,
    fingerprint: str = "",
) -> Iterator[dict[str, Any]]:
    for (file,) in shards:
        lines = enumerate(read_lines(file, encoding), start=1)
        for number, content in _paragraphs(lines, file) if by_paragraph else lines:
            text = decode(content) if not by_paragraph else content.decode("utf-8", "replace")
            problem = find_line_problem(content, encoding)
            yield {**dict.fromkeys(names, text), PLACE: f"{file}:{number}", PROBLEM: problem}


def _paragraphs(lines: Iterator[tuple[int, bytes]], file: str) -> Iterator[tuple[int, bytes]]:
    """Yield what two newlines end, as `datasets` does, each with the number of its first line."""
    first, content = 1, bytearray()
    for number, line in lines:
        first = first if content else number
        content += line.removesuffix(b"\r\n") + b"\n" if line.endswith(b"\r\n") else line
        if len(content) > LONGEST_LINE:
            raise DataError(f"{file}:{first}: the paragraph has more than {LONGEST_LINE // 1_000_000} MB; read by line")
        if content.endswith(b"\n\n"):
            if len(content) > 2:
                yield first, bytes(content[:-2])
            content = bytearray()
    if content:
        yield first, bytes(content)
