"""Parallel text: the n-th lines of `train.en` and `train.fr` are a pair, for the columns en and fr."""

from pathlib import Path

from pipeline.data.lines import decode, find_line_problem
from pipeline.data.readers.base import Rows, SplitRequest
from pipeline.data.readers.text_lines import LINES, Parse, open_lines
from pipeline.data.rows import PLACE, PROBLEM, Columns
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
    return open_lines(request, [paths], _parser(list(request.columns)))


def files(request: SplitRequest) -> list[str]:
    return [str(Path(request.path) / f"{request.split.name}.{column}") for column in request.columns.values()]


def _parser(names: list[str]) -> Parse:
    def parse(batch: Columns) -> Columns:
        texts = [[decode(line) for line in lines] for lines in batch[LINES]]
        columns = dict(zip(names, map(list, zip(*texts, strict=True)), strict=True))
        problems = [next(filter(None, map(find_line_problem, lines)), None) for lines in batch[LINES]]
        return {**columns, PLACE: batch[PLACE], PROBLEM: problems}

    return parse
