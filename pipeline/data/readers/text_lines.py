"""Rows made of files that are read by the line, each row with its place; all readers of text stand on this.

The readers of `datasets` end at the first line that is invalid JSON or invalid UTF-8, without its number, and take
chunks of a file for a measure of its types. Here lines are parsed one by one, so that a bad one ends nothing.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, Features, IterableDataset, List, Value

from pipeline.data.fingerprints import fingerprint_files
from pipeline.data.lane_rows import is_divisible
from pipeline.data.lines import COMPRESSED, container, read_lines
from pipeline.data.readers.base import Rows, SplitRequest, take_slice
from pipeline.data.rows import PLACE, Columns
from pipeline.errors import DataError

Parse: TypeAlias = Callable[[Columns], Columns]
MakeRows: TypeAlias = Callable[..., Iterator[dict[str, Any]]]

LINES = "(lines)"


def has_suffix(file: str, suffixes: tuple[str, ...]) -> bool:
    """Tell whether a file has one of these suffixes, before that of a compression."""
    path = Path(file)
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix in suffixes


def find_files(request: SplitRequest) -> list[str]:
    """Return the files in a folder of this machine that have the name of the split, or match it where it is a glob.

    train          train.txt, train.ft.txt.gz, train_5500.label, train-00000-of-00002.txt
    train-*.txt    what matches
    """
    folder, name = Path(request.path), request.split.name
    if not folder.is_dir():
        return []
    named = re.compile(rf"{re.escape(name)}([-_.]?\d+)?(-of-\d+)?(\.\w+)+")
    paths = folder.glob(name) if request.split.is_file else [p for p in folder.iterdir() if named.fullmatch(p.name)]
    return sorted(str(path) for path in paths if path.is_file())


def is_plain(request: SplitRequest) -> bool:
    """Tell whether a split is one name with at most one slice; sums of splits are left to `datasets`."""
    return request.has_files and "+" not in str(request.split)


def open_lines(
    request: SplitRequest, shards: list[list[str]], parse: Parse, make_lines: MakeRows | None = None, **settings: Any
) -> Rows:
    """Open text files as rows that are kept as bytes, and parsed where they are used.

    Args:
        shards: a shard is one file, or several whose n-th lines belong together.
        parse: from columns `LINES` (one line of each file of the shard, as bytes) and `PLACE` to the columns of a row.
        make_lines: a generator function of shards and settings that yields both columns; lines if left out.
    """
    features = Features({LINES: List(Value("binary")), PLACE: Value("string")})
    rows = open_files(request, shards, make_lines or _lines, features, encoding=request.encoding, **settings)
    if isinstance(rows, Dataset):
        return rows.with_transform(parse)
    return rows.map(parse, batched=True, remove_columns=[LINES, PLACE])


def open_files(
    request: SplitRequest, shards: list[list[str]], make_rows: MakeRows, features: Features, **settings: Any
) -> Rows:
    """Open files as the rows that a function makes of them, cut to the slice that the request names.

    Args:
        shards: files, or groups of files.
        make_rows: a generator function of shards and settings.
        features: types of its rows.
        settings: further arguments, no lists among them, as `datasets` takes those for shards.
    """
    arguments = {"shards": shards, **settings}
    if request.streaming and is_divisible(len(shards), request.lanes):
        return IterableDataset.from_generator(make_rows, gen_kwargs=arguments)
    if request.streaming:
        parts = [(shard, part, request.lanes) for shard in shards for part in range(request.lanes)]
        return IterableDataset.from_generator(partial(_parts, make_rows), gen_kwargs={"shards": parts, **settings})
    # An argument, so that the cache of `from_generator` does not outlive the content of the files.
    arguments["fingerprint"] = fingerprint_files(dict.fromkeys(container(file) for shard in shards for file in shard))
    rows = Dataset.from_generator(make_rows, gen_kwargs=arguments, features=features)
    return take_slice(rows, request.split)


def _parts(make_rows: MakeRows, shards: list[tuple[Any, int, int]], **settings: Any) -> Iterator[dict[str, Any]]:
    """Yield of each shard every n-th row, from the one on whose number it has: (shard, number, n).

    A lane reads a shard that it shares with others as a whole, but what comes behind, such as parsing, is spared.
    """
    for shard, part, parts in shards:
        yield from islice(make_rows([shard], **settings), part, None, parts)


def _lines(shards: list[list[str]], encoding: str | None = None, fingerprint: str = "") -> Iterator[dict[str, Any]]:
    """Yield the lines of each shard. Blank lines of a single file are left out."""
    for files in shards:
        for number, lines in enumerate(zip_longest(*(read_lines(file, encoding) for file in files)), start=1):
            if None in lines:
                short = files[lines.index(None)]
                raise DataError(f"{short} has no line {number}, but its parallel file has; make them equally long")
            if len(files) > 1 or lines[0].strip():
                yield {LINES: list(lines), PLACE: f"{' and '.join(files)}:{number}"}
