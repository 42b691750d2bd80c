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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, IterableDataset
from datasets.iterable_dataset import VerticallyConcatenatedMultiSourcesExamplesIterable

from pipeline.config import DataConfig
from pipeline.data.addresses import find_place
from pipeline.data.fingerprints import fingerprint_files
from pipeline.data.hub_reading import (
    NOT_REACHED,
    UNREADABLE,
    download_files,
    explain_refusal,
    in_short,
    is_on_hub,
    iterate_rows,
    retry_seconds,
    with_retries,
)
from pipeline.data.lane_rows import is_divisible
from pipeline.data.lines import ZIP, container
from pipeline.data.readers import READERS, translation_memory
from pipeline.data.readers.base import Reader, Rows, SplitRequest, SplitSpec
from pipeline.data.readers.columns import (
    check_column,
    find_class_names,
    get_column,
    missing_column,
    name_classes,
    top_column,
)
from pipeline.data.readers.generated import GENERATED
from pipeline.data.readers.text_lines import has_suffix
from pipeline.data.rows import PLACE, PROBLEM, Columns
from pipeline.data.web_reading import check_parts, download, find_facts
from pipeline.data_config import ColumnNames, Constant, SplitNames, is_address, split_names, write_split
from pipeline.errors import ConfigError, DataError, RunError

FIRST_ROWS = 100  # are looked at before anything starts
SUFFIXES = r"\.(csv|tsv|json|jsonl|ndjson|txt|parquet|arrow)(\.(gz|bz2|xz|zst))?"  # of tables and texts
LOCAL_ONLY = (ZIP, *translation_memory.SUFFIXES)  # suffixes of what is read where it lies
SPECIAL = re.compile(r"[*?\[\]]")  # characters of patterns
SHOWN_FILES = 10  # of a folder, in a message
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def open_split(data: DataConfig, split: SplitNames, columns: ColumnNames, lanes: int = 1) -> Rows:
    """Open one split.

    Args:
        data: where the rows are.
        split: the value of data.train, data.validation or data.test; of a list, one is read after the other.
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
    place = _name_place(data, split)
    named = {name: column for name, column in columns.items() if isinstance(column, str)}
    constants = {name: column.value for name, column in columns.items() if isinstance(column, Constant)}
    with _errors_explained(data, place):
        requests = [replace(make_request(data, name, named), lanes=lanes) for name in split_names(split)]
        _check_together(requests)
        parts = [
            _open_part(request, _name_place(data, name))
            for request, name in zip(requests, split_names(split), strict=True)
        ]
        return _add_constants(_join(parts), constants)


def _name_place(data: DataConfig, split: SplitNames) -> str:
    """Name a split for a message."""
    return f"data.path: {data.path} ({write_split(split)})" if data.path else f"data: {write_split(split)}"


def _open_part(request: SplitRequest, place: str) -> Rows:
    """Open what one name of a split means."""
    reader = find_reader(request)
    _check_left_out(request, [container(file) for file in reader.files(request)])
    rows = reader.read(request)
    if reader.names_places:
        first_rows = list(iterate_rows(rows.take(FIRST_ROWS), request.patience))
        return _check_problems(rows, first_rows, place)
    picked = _pick_columns(rows, request.columns, place, request.patience)
    if isinstance(picked, Dataset) or is_divisible(picked.num_shards, request.lanes):
        return picked
    return picked.reshard()  # Parquet's groups of rows in place of its files


def _check_together(requests: Sequence[SplitRequest]) -> None:
    """Refuse a list of names that are read in different ways, or that mean the same file.

    Raises:
        ConfigError: naming two of them.
    """
    kinds: dict[str, SplitRequest] = {}
    names_of_files: dict[str, SplitRequest] = {}
    for request in requests if len(requests) > 1 else ():
        reader = find_reader(request)
        kind = request.builder.name if reader is READERS[-1] else reader.read.__module__.rpartition(".")[2]
        kinds.setdefault(kind, request)
        for file in reader.files(request):
            other = names_of_files.setdefault(file, request)
            if other is not request and not (other.split.slice and request.split.slice):
                raise ConfigError(f"data: {file} would be read twice, as {other.split} and {request.split}")
    if len(kinds) > 1:
        (first, one), (second, other) = list(kinds.items())[:2]
        raise ConfigError(
            f"data: {one.split} and {other.split} are of different kinds ({first} and {second}); convert one of them, "
            "or name them as corpora of data.mix or as sets"
        )


def _join(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all parts, one after another; they were read in the same way."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Dataset):
        joined = datasets.concatenate_datasets([part.with_format(None) for part in parts])
        return joined.with_transform(first.format["format_kwargs"]["transform"]) if _has_transform(first) else joined
    # Not `concatenate_datasets`, which takes the types of the first five rows for those of all:
    # https://github.com/huggingface/datasets/blob/5.2.0/src/datasets/iterable_dataset.py
    return IterableDataset(VerticallyConcatenatedMultiSourcesExamplesIterable([part._ex_iterable for part in parts]))


def _has_transform(rows: Dataset) -> bool:
    return "transform" in rows.format["format_kwargs"]


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
    if isinstance(error, datasets.exceptions.DataFilesNotFoundError) and data.path and Path(data.path).is_dir():
        return ConfigError(f"{place}: there is no file of data; there are {_list_files(Path(data.path))}")
    if "corresponds to no data" in str(error):
        return DataError(f"{place} is empty: there is no row to read")
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        cache = datasets.config.HF_DATASETS_CACHE
        return RunError(f"{place}: {error.strerror}; make room for the rows in {cache}, or set HF_DATASETS_CACHE")
    if "with any supported extension" in str(error):
        return ConfigError(
            f"{place}: no file of data has this name. It must end in .csv, .tsv, .json, .jsonl, .txt, .parquet, "
            ".arrow, .tmx or .zip, in small letters, lie below data.path, and have no colon; rename the file"
        )
    if isinstance(error, NOT_REACHED):
        return ConfigError(f"{place}: {explain_refusal(error, data.path or 'the file') or in_short(error)}")
    return DataError(f"{place}: {in_short(error)}") if isinstance(error, UNREADABLE) else error


def fingerprint_split(data: DataConfig, split: SplitNames, columns: ColumnNames) -> str:
    """Return a hash of the source of a split's rows, and of how they are read.

    A data set of the Hub is known by its revision, which should be a commit.

    Args:
        split, columns: as for `open_split`.

    Raises:
        ConfigError, DataError: as `open_split`.
    """
    named = {name: column for name, column in columns.items() if isinstance(column, str)}
    with _errors_explained(data, _name_place(data, split)):
        hashes = [_fingerprint(make_request(data, name, named), columns) for name in split_names(split)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _fingerprint(request: SplitRequest, columns: ColumnNames) -> str:
    if request.path in GENERATED:
        content = request.path
    elif is_on_hub(request.path):
        content = "/".join(filter(None, [f"{request.path}@{request.revision}", request.folder]))
    elif is_address(request.path):
        content = json.dumps([request.files, find_facts(request.files[0], request.patience)])
    else:
        files = find_reader(request).files(request)
        content = fingerprint_files(list(dict.fromkeys(map(container, files))))
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
    found = find_place(data, split)
    path, spec = found.path, SplitSpec.parse(found.name)
    if spec.slice and data.streaming and path not in GENERATED:
        raise ConfigError(f"data: a stream has no part {split!r}; set data.streaming=false, or name the whole split")
    if is_address(path):
        path, spec = _make_ready(path, spec, data)
    elif is_on_hub(path) and has_suffix(spec.name, LOCAL_ONLY):
        _check_streaming(data, f"{path}/{spec.name}")
        file = download_files(path, [spec.name], found.revision or "main", retry_seconds(data))[0]
        path, spec = str(file.parent), SplitSpec(file.name, spec.slice)
    elif path not in GENERATED:  # which has the name before a file of this machine
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
        revision=found.revision,
        folder=found.folder,
        patience=retry_seconds(data),
    )


def _make_ready(address: str, spec: SplitSpec, data: DataConfig) -> tuple[str, SplitSpec]:
    """Download a file of the web, or check that it can be streamed; return its folder, and its name there."""
    if not data.streaming:
        file = download(address, data.hub_patience)
        return str(file.parent), SplitSpec(file.name, spec.slice)
    if has_suffix(address, LOCAL_ONLY):
        _check_streaming(data, address)
    find_facts(address, data.hub_patience)
    check_parts(address, data.hub_patience)
    folder, _, name = address.rpartition("/")
    return folder, SplitSpec(name)


def _check_streaming(data: DataConfig, file: str) -> None:
    """Refuse to stream a file that is read where it lies."""
    if data.streaming:
        raise ConfigError(f"data: {file}: a file of this kind is not streamed; set data.streaming=false")


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
    if file.suffix == ZIP and not _is_beside(file, spec.name):
        return str(file.parent), SplitSpec(f"{file.name}/{spec.name}", spec.slice)
    if spec.is_file:
        return str(file.parent), spec
    raise ConfigError(
        f"data.path: {file} is one file, so it has no split {str(spec)!r}; "
        "give data.validation and data.test as files beside it, or as null"
    )


def _is_beside(archive: Path, name: str) -> bool:
    """Tell whether a name is one of files beside a zip; a pattern of pairs, such as *, is one of those inside."""
    is_table = re.search(f"{SUFFIXES}$", name, re.IGNORECASE) or has_suffix(name, LOCAL_ONLY)
    return any(archive.parent.glob(name)) and bool(is_table or "*" not in name)


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
    if special := SPECIAL.search(str(Path(path).resolve())):
        raise ConfigError(f"data.path: {path} has a {special[0]} in its name, which stands for others; rename it")
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


def _read_first_row(rows: Rows, patience: float) -> dict[str, Any] | None:
    """Return the first row as it is stored, so that no picture is decoded; None where there is none."""
    stored = rows.with_format("arrow")
    tables = [stored[:1]] if isinstance(stored, Dataset) else with_retries(lambda: list(stored.take(1)), patience, "")
    return next((row for table in tables for row in table.to_pylist()), None)


def _pick_columns(rows: Rows, columns: dict[str, str], place: str, patience: float) -> Rows:
    """Give rows exactly the agreed columns; others are never decoded, where they are known before the first row."""
    features = rows.features or {}
    try:
        for name in columns.values() if features else ():
            if top_column(features, name) is None:
                raise missing_column(name, [*features], _read_first_row(rows, patience))
        needed = sorted({top for name in columns.values() if (top := top_column(features, name))})
        first_rows = list(iterate_rows((rows.select_columns(needed) if needed else rows).take(FIRST_ROWS), patience))
        for name in columns.values():
            check_column(first_rows, name)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    if not first_rows:
        raise DataError(f"{place} is empty: there is no row to read")
    classes = {agreed: find_class_names(features, name) for agreed, name in columns.items()}

    def pick(batch: Columns) -> Columns:
        return {agreed: name_classes(get_column(batch, name), classes[agreed]) for agreed, name in columns.items()}

    selected = rows.select_columns(needed) if needed else rows
    if isinstance(selected, Dataset):
        return selected.with_transform(pick)
    return selected.map(pick, batched=True, remove_columns=needed or list(first_rows[0]))
