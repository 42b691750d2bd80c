"""From a path in the config to rows with agreed columns, streamed or not.

Everything is a `datasets.Dataset` or `datasets.IterableDataset`. Which files are read how is the table in `readers/`;
here a split's name is parsed, one of the readers picked, and what it gives checked before anything starts.
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from pipeline.config import DataConfig
from pipeline.data.fingerprints import fingerprint_files
from pipeline.data.hub_reading import (
    NOT_REACHED,
    UNREADABLE,
    explain_refusal,
    in_short,
    is_on_hub,
    iterate_rows,
    retry_seconds,
)
from pipeline.data.lane_rows import is_divisible
from pipeline.data.lines import ZIP
from pipeline.data.readers import READERS
from pipeline.data.readers.base import Reader, Rows, SplitRequest, SplitSpec
from pipeline.data.readers.columns import find_class_names, get_column, get_value, name_classes, top_column
from pipeline.data.readers.generated import GENERATED
from pipeline.data.rows import PLACE, PROBLEM, Columns
from pipeline.data_config import ColumnNames, Constant
from pipeline.errors import ConfigError, DataError, RunError

FIRST_ROWS = 100  # are looked at before anything starts
SUFFIXES = r"\.(csv|tsv|json|jsonl|ndjson|txt|parquet|arrow)(\.(gz|bz2|xz|zst))?"  # of tables and texts
SHOWN_FILES = 10  # of a folder, in a message
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def open_split(data: DataConfig, split: str, columns: ColumnNames, lanes: int = 1) -> Rows:
    """Open one split.

    Args:
        data: where the rows are.
        split: the value of data.train, data.validation or data.test.
        columns: agreed name -> name in the data, where dots reach into nested columns; or what is the same in all rows.
        lanes: that will share a stream; it has shards for each of them, where its reader can make them.

    Returns:
        Rows with exactly the agreed columns. Rows of text files also have `PLACE`, file and line, and `PROBLEM`, what
        is wrong with a line from which they could not be read. A class of a data set that numbers its classes is a
        `ClassName`.

    Raises:
        ConfigError: for a path, split or option that does not exist.
        DataError: for a missing column, an empty file, or one that cannot be read, naming it.
        RunError: where there is no room for the rows on this machine.
    """
    if reserved := {PLACE, PROBLEM} & set(columns):
        raise ConfigError(f"data: a column cannot be called {min(reserved)}; rename it")
    place = f"data.path: {data.path} ({split})"
    named = {name: column for name, column in columns.items() if isinstance(column, str)}
    constants = {name: column.value for name, column in columns.items() if isinstance(column, Constant)}
    with _errors_explained(data, place):
        request = replace(make_request(data, split, named), lanes=lanes)
        reader = find_reader(request)
        _check_left_out(request, reader.files(request))
        rows = reader.read(request)
        if reader.names_places:
            first_rows = list(iterate_rows(rows.take(FIRST_ROWS), request.patience))
            return _add_constants(_check_problems(rows, first_rows, place), constants)
        picked = _pick_columns(rows, named, constants, place, request.patience)
        if isinstance(picked, Dataset) or is_divisible(picked.num_shards, lanes):
            return picked
        return picked.reshard()  # Parquet's groups of rows in place of its files


def _add_constants(rows: Rows, constants: dict[str, str]) -> Rows:
    """Add columns that are the same in all rows."""
    if not constants:
        return rows
    # Of a data set whose lines are parsed when they are asked for.
    parse = rows.format["format_kwargs"].get("transform", dict) if isinstance(rows, Dataset) else dict

    def add(batch: Columns) -> Columns:
        parsed = parse(batch)
        return {**parsed, **_repeat(constants, parsed)}

    return rows.with_transform(add) if isinstance(rows, Dataset) else rows.map(add, batched=True)


def _repeat(constants: dict[str, str], batch: Columns) -> Columns:
    num_rows = len(next(iter(batch.values())))
    return {name: [value] * num_rows for name, value in constants.items()}


def _explain(error: BaseException, data: DataConfig, place: str) -> BaseException:
    """Turn what a library raises while it reads into an error of ours, where it is not the fault of our code."""
    if isinstance(error, TypeError | LookupError):  # of an option's value, such as an encoding that is unknown
        return ConfigError(f"data.options: {in_short(error)}") if data.options else error
    if isinstance(error, datasets.exceptions.DataFilesNotFoundError) and Path(data.path).is_dir():
        return ConfigError(f"{place}: there is no file of data; there are {_list_files(Path(data.path))}")
    if "corresponds to no data" in str(error):
        return DataError(f"{place} is empty: there is no row to read")
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        cache = datasets.config.HF_DATASETS_CACHE
        return RunError(f"{place}: {error.strerror}; make room for the rows in {cache}, or set HF_DATASETS_CACHE")
    if isinstance(error, NOT_REACHED):
        return ConfigError(f"{place}: {explain_refusal(error, data.path) or in_short(error)}")
    return DataError(f"{place}: {in_short(error)}") if isinstance(error, UNREADABLE) else error


def fingerprint_split(data: DataConfig, split: str, columns: ColumnNames) -> str:
    """Return a hash of the source of a split's rows, and of how they are read.

    A data set of the Hub is known by its revision, which should be a commit.

    Args:
        split, columns: as for `open_split`.

    Raises:
        ConfigError, DataError: as `open_split`.
    """
    named = {name: column for name, column in columns.items() if isinstance(column, str)}
    with _errors_explained(data, f"data.path: {data.path} ({split})"):
        request = make_request(data, split, named)
        if request.path in GENERATED:
            content = request.path
        elif is_on_hub(request.path):
            content = f"{request.path}@{request.revision}"
        else:
            content = fingerprint_files(find_reader(request).files(request))
    source = [content, str(request.split), columns, request.options, request.subset]
    return hashlib.sha256(json.dumps(source, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def _errors_explained(data: DataConfig, place: str) -> Iterator[None]:
    """Raise our own errors for those of the libraries that read data."""
    try:
        yield
    except datasets.exceptions.DatasetGenerationError as error:
        raise _explain(error.__cause__ or error, data, place) from error
    except StopIteration as error:  # of `datasets`, where an option such as chunksize=0 leaves nothing
        options = ", ".join(data.options)
        raise DataError(f"{place} gives no row to read{options and f' with data.options of {options}'}") from error
    except (*NOT_REACHED, *UNREADABLE, TypeError, LookupError) as error:
        raise _explain(error, data, place) from error


def make_request(data: DataConfig, split: str, columns: dict[str, str]) -> SplitRequest:
    """Say what a reader is to open; of a data set that is a single file, its folder and that file.

    Raises:
        ConfigError: for files that are not there, or another split of a single file.
        DataError: for an empty file.
    """
    path, spec = data.path, SplitSpec.parse(split)
    if path not in GENERATED:  # which has the name before a file of this machine
        if spec.slice and data.streaming:
            raise ConfigError(
                f"data: a stream has no part {split!r}; set data.streaming=false, or name the whole split"
            )
        _check_path(path)
        if spec.name.startswith("/"):
            raise ConfigError(f"data: {spec.name} must lie below data.path; name it from there, as in train.jsonl")
        if Path(path).is_file():
            path, spec = _folder_of_file(Path(path), spec)
        if Path(path).is_dir():
            _check_files(Path(path), spec)
    return SplitRequest(
        path,
        spec,
        columns,
        streaming=data.streaming,
        options=data.options,
        subset=data.subset,
        revision=data.revision,
        patience=retry_seconds(data),
    )


def find_reader(request: SplitRequest) -> Reader:
    """Return the first reader that accepts the data.

    Raises:
        ConfigError: when none does.
    """
    for reader in READERS:
        if reader.accepts(request):
            return reader
    raise ConfigError(f"data.path: {request.path!r} is not a local file or folder, nor of the form owner/name")


def _folder_of_file(file: Path, spec: SplitSpec) -> tuple[str, SplitSpec]:
    """Take "train" of a single file as that file, and another file's name as one beside it."""
    if spec.name == "train":
        return str(file.parent), SplitSpec(file.name, spec.slice)
    if file.suffix == ZIP and not any(file.parent.glob(spec.name)):
        return str(file.parent), SplitSpec(f"{file.name}/{spec.name}", spec.slice)
    if spec.is_file:
        return str(file.parent), spec
    raise ConfigError(
        f"data.path: {file} is one file, so it has no split {str(spec)!r}; "
        "give data.validation and data.test as files beside it, or as null"
    )


def _check_path(path: str) -> None:
    """Refuse what lies on this machine and is neither a file nor a folder, or cannot be opened."""
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return  # perhaps a name on the Hub
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise ConfigError(f"data.path: {path[:200]!r}: {reason}") from error
    if Path(path).resolve() == Path("/"):  # which has no name, and `datasets` needs one
        raise ConfigError(f"data.path: {path} is the root of all files; name the folder of the data below it")
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise ConfigError(f"data.path: {path} is a device or a pipe; name a file or a folder")


def _check_files(folder: Path, spec: SplitSpec) -> None:
    name, zipped, _ = spec.name.replace("{column}", "*").partition(f"{ZIP}/")
    name += zipped.removesuffix("/")
    files = list(folder.glob(name if spec.is_file else f"{name}.*"))
    if spec.is_file and not files:  # perhaps of parallel files, as news.en-fr is of news.en-fr.en
        files = [
            file
            for file in folder.glob(f"{name.rstrip('*')}*")
            if not re.search(f"{SUFFIXES}$", file.name, re.IGNORECASE)
        ]
    if spec.is_file and not files:
        raise ConfigError(f"data: no file {folder / str(spec)}; there are {_list_files(folder)}")
    for file in files:
        if spec.is_file and file.is_dir():
            raise ConfigError(f"data: {file} is a folder where a file is needed")
        if file.stat().st_size == 0:
            raise DataError(f"{file}: the file is empty")


def _check_left_out(request: SplitRequest, files: list[str]) -> None:
    """Refuse shards of several kinds, such as train-0.jsonl and train-1.csv, of which `datasets` reads one kind."""
    folder, name = Path(request.path), request.split.name
    if not files or request.split.is_file or not folder.is_dir():
        return
    shard = re.compile(rf"{re.escape(name)}([-_.]?\d+)?(-of-\d+)?{SUFFIXES}", re.IGNORECASE)
    read = {Path(file).resolve() for file in files}
    shards = [path for path in folder.iterdir() if shard.fullmatch(path.name) and path.is_file()]
    others = sorted(path for path in shards if path.resolve() not in read)
    if others:
        raise ConfigError(
            f"data: {others[0]} would be left out beside {files[0]}, which is of another kind; move it away, or name "
            f"the files, such as {Path(files[0]).name}, in the place of {name!r}"
        )


def _list_files(folder: Path) -> str:
    return ", ".join(sorted(file.name for file in folder.iterdir() if file.is_file())[:SHOWN_FILES]) or "no files"


def _check_problems(rows: Rows, first_rows: list[dict[str, Any]], place: str) -> Rows:
    """Return rows that know their places, unless there are none, or the first of them are all bad."""
    if not first_rows:
        raise DataError(f"{place} is empty: there is no row to read")
    if all(row[PROBLEM] for row in first_rows):
        raise DataError(f"{first_rows[0][PLACE]}: {first_rows[0][PROBLEM]}")
    return rows


def _pick_columns(rows: Rows, columns: dict[str, str], constants: dict[str, str], place: str, patience: float) -> Rows:
    """Give rows exactly the agreed columns; others are never decoded, where they are known before the first row."""
    features = rows.features or {}
    try:
        needed = sorted({top_column(features, name) for name in columns.values()}) if features else []
        first_rows = list(iterate_rows((rows.select_columns(needed) if needed else rows).take(FIRST_ROWS), patience))
        for name in columns.values() if first_rows else ():
            get_value(first_rows[0], name)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    if not first_rows:
        raise DataError(f"{place} is empty: there is no row to read")
    classes = {agreed: find_class_names(features, name) for agreed, name in columns.items()}

    def pick(batch: Columns) -> Columns:
        picked = {agreed: name_classes(get_column(batch, name), classes[agreed]) for agreed, name in columns.items()}
        return {**picked, **_repeat(constants, batch)}

    selected = rows.select_columns(needed) if needed else rows
    if isinstance(selected, Dataset):
        return selected.with_transform(pick)
    return selected.map(pick, batched=True, remove_columns=needed or list(first_rows[0]))
