"""Parallel text: the n-th lines of `train.en` and `train.fr` are a pair, for the columns en and fr."""

from pathlib import Path

from pipeline.data.readers.base import Rows, SplitRequest
from pipeline.data.readers.text_lines import Parse, read_lines
from pipeline.data.rows import Columns
from pipeline.errors import DataError


def accepts(request: SplitRequest) -> bool:
    return all(Path(file).is_file() for file in files(request))


def read(request: SplitRequest) -> Rows:
    """Open the files, one for each column.

    Raises:
        DataError: for an empty one.
    """
    paths = files(request)
    for file in paths:
        if Path(file).stat().st_size == 0:
            raise DataError(f"{file}: the file is empty")
    return read_lines([paths], _parser(list(request.columns)), request.streaming)


def files(request: SplitRequest) -> list[str]:
    return [str(Path(request.path) / f"{request.split}.{column}") for column in request.columns.values()]


def _parser(names: list[str]) -> Parse:
    def parse(batch: Columns) -> Columns:
        texts = [[_decode(line) for line in lines] for lines in batch["lines"]]
        columns = dict(zip(names, map(list, zip(*texts, strict=True)), strict=True))
        return {**columns, "place": batch["place"], "problem": [None] * len(texts)}

    return parse


def _decode(line: bytes) -> str:
    """Decode a line without its end; invalid bytes become U+FFFD, which tasks refuse."""
    return line.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")
