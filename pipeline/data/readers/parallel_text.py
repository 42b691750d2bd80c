"""Parallel text: the n-th lines of `train.en` and `train.fr` are a pair, for the columns en and fr.

    train          train.en, train.fr.gz, or the shards train-0.en, train-0.fr, train-1.en, ...
    news.en-fr     news.en-fr.en, news.en-fr.fr, as OPUS and WMT publish
    corpus-*       all pairs of that name
    {column}/a-*   for names that do not end with the column

They may lie in a zip, as OPUS publishes Moses format: `corpus.zip/corpus.en-fr`. Where nothing is called train, the
only zip of the folder is taken for it; and in a zip the only pair of files.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from pipeline.data.lines import COMPRESSED, ZIP, container, decode, find_line_problem, list_members
from pipeline.data.readers.base import Rows, SplitRequest
from pipeline.data.readers.text_lines import LINES, Parse, has_suffix, open_lines
from pipeline.data.rows import PLACE, PROBLEM, Columns
from pipeline.errors import ConfigError, DataError, nearest

COLUMN = "{column}"  # stands for the name of the column in a pattern
SHARD = r"[-_.]\d+(?:-of-\d+)?"
PACKED = "|".join(map(re.escape, COMPRESSED))
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow")  # for other readers
OPTIONS = {"encoding"}
SHOWN = 10  # names in a message

Shards: TypeAlias = list[dict[str, str]]  # of each shard: column of the data -> file


def accepts(request: SplitRequest) -> bool:
    return bool(_find_shards(request))


def read(request: SplitRequest) -> Rows:
    """Open the files, one for each column.

    Raises:
        ConfigError: for an option that is unknown here.
        DataError: for an empty file.
    """
    for option in request.options:
        if option not in OPTIONS:
            raise ConfigError(f"data.options.{option}: unknown for parallel text{nearest(option, OPTIONS)}")
    shards = [[shard[column] for column in request.columns.values()] for shard in _find_shards(request)]
    for file in map(container, files(request)):
        if Path(file).stat().st_size == 0:
            raise DataError(f"{file}: the file is empty")
    return open_lines(request, shards, _parser(list(request.columns), request.encoding))


def files(request: SplitRequest) -> list[str]:
    """Return the files of all shards."""
    return list(dict.fromkeys(file for shard in _find_shards(request) for file in shard.values()))


def _find_shards(request: SplitRequest) -> Shards:
    """Return the files of each shard by column; none where the split has another shape.

    Raises:
        ConfigError: for a pair that is not in the zip, or where none of several there is named.
        DataError: for a file without its counterpart.
    """
    folder, split = Path(request.path), request.split.name
    if not folder.is_dir():
        return []
    columns = list(dict.fromkeys(request.columns.values()))
    archive, inside, member = split.partition(f"{ZIP}/")
    if inside:
        return _find_in_zip(folder / f"{archive}{ZIP}", member, columns)
    if split.endswith(ZIP):
        return [shard for archive in sorted(folder.glob(split)) for shard in _find_in_zip(archive, "", columns)]
    names = _list_files(folder, split)
    shards = _match(folder, names, split, columns)
    zips = [name for name in names if name.endswith(ZIP)]
    if COLUMN in split and not shards:
        files = " and ".join(split.replace(COLUMN, column) for column in columns)
        raise ConfigError(f"data: there is no {files} in {folder}; there are {_show(sorted(names))}")
    is_elsewhere = shards or any(name.startswith(split) or has_suffix(name, TABLES) for name in names)
    if is_elsewhere or len(zips) != 1 or not _match(folder / zips[0], _list_zipped(folder / zips[0]), "*", columns):
        return shards
    return _find_in_zip(folder / zips[0], "" if split == "train" else split, columns)


def _find_in_zip(archive: Path, member: str, columns: list[str]) -> Shards:
    """Return the shards called `member` in a zip, or else beside it; "" is train, or the only pair in the zip."""
    names = _list_zipped(archive)
    shards = _match(archive, names, member or "train", columns)
    if not shards and member:
        shards = _match(archive.parent, _list_files(archive.parent, member), member, columns)
    if shards:
        return shards
    pairs = _match(archive, names, "*", columns)
    if len(pairs) == 1 and not member:
        return pairs
    if not pairs and not member and any(has_suffix(name, TABLES) for name in names):
        return []
    if not pairs:
        raise ConfigError(
            f"{archive} has no files that end with .{' and .'.join(columns)}, the columns that are wanted; there are "
            f"{_show(names)}"
        )
    stems = _show([_stem(next(iter(pair.items())), archive) for pair in pairs])
    if not member:
        raise ConfigError(f"{archive} has several parallel texts: {stems}; name one as data.train, or '*' for all")
    wanted = " and ".join(f"{member}.{column}" for column in columns)
    raise ConfigError(
        f"{archive} has no {wanted}, and they are not beside it; there is {stems}. Give data.validation and data.test "
        "as one of these, as a slice (train[99%:]), or as null"
    )


def _match(place: Path, names: list[str], split: str, columns: list[str]) -> Shards:
    """Return the shards of a split among the files of a folder or zip.

    Raises:
        DataError: for a file that is missing, or there twice.
    """
    for pattern in _patterns(split, columns):
        found: dict[tuple[str, ...], dict[str, str]] = {}  # what differs between shards -> their files
        for column in columns:
            regex = re.compile(rf"(.*/)?{pattern.replace(COLUMN, re.escape(column))}(?:{PACKED})?", re.DOTALL)
            for match in filter(None, map(regex.fullmatch, names)):
                files = found.setdefault(match.groups(""), {})
                file = str(place / match[0])
                if files.setdefault(column, file) != file:
                    raise DataError(f"{files[column]} and {file} are both there; remove or rename one")
        whole = [shard for shard in found.values() if len(shard) == len(columns)]
        if not whole and any(has_suffix(name, TABLES) for name in names):
            continue
        for shard in found.values():
            if shard not in whole:
                missing = next(column for column in columns if column not in shard)
                raise DataError(
                    f"{next(iter(shard.values()))} has no parallel file for {missing!r} beside it; there are "
                    f"{_show(sorted(names))}"
                )
        if found:
            return [{column: shard[column] for column in columns} for _, shard in sorted(found.items())]
    return []


def _patterns(split: str, columns: list[str]) -> Iterator[str]:
    """Yield what the names of a split's files may look like, as regular expressions in which `COLUMN` stands."""
    wild = {"*": "([^/]*)", "?": "([^/])", COLUMN: COLUMN}

    def pattern(name: str) -> str:
        return "".join(wild.get(token) or re.escape(token) for token in re.split(r"(\*|\?|\{column\})", name))

    if COLUMN in split:
        yield pattern(split)
        return
    yield rf"{pattern(split)}\.{COLUMN}"
    yield rf"{pattern(split)}({SHARD})\.{COLUMN}"
    path = Path(split)
    bare = str(path.with_suffix("")) if path.suffix in COMPRESSED else split
    for column in columns:  # one file of the pairs
        if bare.endswith(f".{column}"):
            yield rf"{pattern(bare.removesuffix(f'.{column}'))}\.{COLUMN}"


def _list_files(folder: Path, split: str) -> list[str]:
    """Name the files in a folder, or as deep below it as those of the split."""
    paths = folder.glob("*/" * split.count("/") + "*")
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def _list_zipped(archive: Path) -> list[str]:
    """Name the files in a zip, but for those in which macOS keeps attributes of the others."""
    return [name for name in list_members(str(archive)) if not name.startswith("__MACOSX/")]


def _show(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _stem(file: tuple[str, str], archive: Path) -> str:
    column, path = file
    return path.removeprefix(f"{archive}/").rsplit(f".{column}", 1)[0]


def _parser(names: list[str], encoding: str | None) -> Parse:
    def parse(batch: Columns) -> Columns:
        texts = [[decode(line) for line in lines] for lines in batch[LINES]]
        columns = dict(zip(names, map(list, zip(*texts, strict=True)), strict=True))
        problems = [
            next(filter(None, (find_line_problem(line, encoding) for line in lines)), None) for lines in batch[LINES]
        ]
        return {**columns, PLACE: batch[PLACE], PROBLEM: problems}

    return parse
