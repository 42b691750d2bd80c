"""From a path in the config to rows with agreed columns, streamed or not.

Everything is a `datasets.Dataset` or `datasets.IterableDataset`. Which files are read how is the table in `readers/`;
here a split's name is parsed, one of the readers picked, and what it gives checked before anything starts.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from huggingface_hub.errors import HfHubHTTPError

from pipeline.config import DataConfig
from pipeline.data.fingerprints import fingerprint_files
from pipeline.data.hub_reading import explain_refusal, is_on_hub, iterate_rows, retry_seconds
from pipeline.data.readers import READERS
from pipeline.data.readers.base import Reader, Rows, SplitRequest, SplitSpec
from pipeline.data.readers.columns import get_column, get_value, top_column
from pipeline.data.readers.generated import GENERATED
from pipeline.data.rows import Columns
from pipeline.errors import ConfigError, DataError

FIRST_ROWS = 100  # are looked at before anything starts


def open_split(data: DataConfig, split: str, columns: dict[str, str]) -> Rows:
    """Open one split.

    Args:
        data: where the rows are.
        split: the value of data.train, data.validation or data.test.
        columns: agreed name -> name in the data, where dots reach into nested columns.

    Returns:
        Rows with exactly the agreed columns. Rows of text files also have "place", file and line, and "problem", what
        is wrong with a line from which they could not be read.

    Raises:
        ConfigError: for a path, split or option that does not exist.
        DataError: for a missing column, an empty file, or one that cannot be read, naming it.
    """
    place = f"data.path: {data.path} ({split})"
    with _errors_explained(data, place):
        request = make_request(data, split, columns)
        reader = find_reader(request)
        rows = reader.read(request)
        first_rows = list(iterate_rows(rows.take(FIRST_ROWS), request.patience))
    if not first_rows:
        raise DataError(f"{place} is empty: there is no row to read")
    if reader.names_places:
        if all(row["problem"] for row in first_rows):
            raise DataError(f"{first_rows[0]['place']}: {first_rows[0]['problem']}")
        return rows
    return _pick_columns(rows, first_rows[0], columns, place)


def fingerprint_splits(data: DataConfig, revision: str | None, columns: dict[str, str]) -> dict[str, str]:
    """Return a hash for each split that a run reads: of its rows' source, and of how they are read.

    Args:
        revision: the commit at which a data set of the Hub is read, which stands for its content.
        columns: as for `open_split`.

    Returns:
        "train", "validation" and "test", as far as there are such -> hash.

    Raises:
        ConfigError, DataError: as `open_split`.
    """
    names = {"train": data.train, "validation": data.validation, "test": data.test}
    return {key: _fingerprint(data, revision, name, columns) for key, name in names.items() if name is not None}


def _fingerprint(data: DataConfig, revision: str | None, split: str, columns: dict[str, str]) -> str:
    with _errors_explained(data, f"data.path: {data.path} ({split})"):
        request = make_request(data, split, columns)
        if request.path in GENERATED:
            content = request.path
        elif is_on_hub(request.path):
            content = f"{request.path}@{revision}"
        else:
            content = fingerprint_files(find_reader(request).files(request))
    source = [content, str(request.split), columns, request.options, request.subset]
    return hashlib.sha256(json.dumps(source, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def _errors_explained(data: DataConfig, place: str) -> Iterator[None]:
    """Raise our own errors for those of the libraries that read data."""
    try:
        yield
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, HfHubHTTPError) as error:
        raise ConfigError(f"{place}: {explain_refusal(error, data.path) or error}") from error
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetGenerationError) as error:
        raise DataError(f"{place}: {error.__cause__ or error}") from error


def make_request(data: DataConfig, split: str, columns: dict[str, str]) -> SplitRequest:
    """Say what a reader is to open; of a data set that is a single file, its folder and that file.

    Raises:
        ConfigError: for files that are not there, or another split of a single file.
        DataError: for an empty file.
    """
    path, spec = data.path, SplitSpec.parse(split)
    if path not in GENERATED:  # which has the name before a file of this machine
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
    if spec.is_file:
        return str(file.parent), spec
    raise ConfigError(
        f"data.path: {file} is one file, so it has no split {str(spec)!r}; "
        "give data.validation and data.test as files beside it, or as null"
    )


def _check_files(folder: Path, spec: SplitSpec) -> None:
    files = list(folder.glob(spec.name if spec.is_file else f"{spec.name}.*"))
    if spec.is_file and not files:
        raise ConfigError(f"data: no file {folder / str(spec)}")
    for file in files:
        if file.stat().st_size == 0:
            raise DataError(f"{file}: the file is empty")


def _pick_columns(rows: Rows, first_row: dict[str, Any], columns: dict[str, str], place: str) -> Rows:
    """Give rows exactly the agreed columns, where the first row has them."""
    for name in columns.values():
        try:
            get_value(first_row, name)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error

    def pick(batch: Columns) -> Columns:
        return {agreed: get_column(batch, name) for agreed, name in columns.items()}

    if isinstance(rows, Dataset):
        needed = sorted({top_column(first_row, name) for name in columns.values()})
        return rows.select_columns(needed).with_transform(pick)
    return rows.map(pick, batched=True, remove_columns=list(first_row))
