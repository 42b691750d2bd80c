"""What `save_to_disk` of `datasets` has written: a folder with a data set, or with one below it for each split."""

import json
from pathlib import Path

from datasets import Dataset, load_from_disk

from pipeline.data.readers.base import Rows, SplitRequest, take_slice
from pipeline.errors import ConfigError, DataError, nearest

STATE, SPLITS = "state.json", "dataset_dict.json"  # of a data set, and of several by name


def accepts(request: SplitRequest) -> bool:
    folder = Path(request.path)
    return any((place / STATE).is_file() for place in (folder, folder / request.split.name)) or _has_splits(folder)


def read(request: SplitRequest) -> Rows:
    """Open the data set; its files are mapped into memory, streamed or not.

    Raises:
        ConfigError: for a split that is not there, and for options.
    """
    if request.options:
        raise ConfigError(f"data.options.{min(request.options)}: unknown for a folder of save_to_disk; leave it out")
    rows = load_from_disk(str(_folder(request)))
    assert isinstance(rows, Dataset)  # as the folder has its state
    rows = rows.with_format(None)  # the format that was saved, such as that of tensors, is not that of rows
    if not request.streaming:
        return take_slice(rows, request.split)
    return rows.to_iterable_dataset(num_shards=max(1, min(request.lanes, len(rows))))


def files(request: SplitRequest) -> list[str]:
    """Return the files with the rows; the others have names that are new each time that the same rows are saved.

    Raises:
        ConfigError: for a split that is not there, or a file of it.
        DataError: where there is no row.
    """
    folder = _folder(request)
    names = [file["filename"] for file in json.loads((folder / STATE).read_text(encoding="utf-8"))["_data_files"]]
    for name in names:
        if not (folder / name).is_file():
            raise ConfigError(
                f"data: {folder / name} is missing, of which {STATE} says that it is there; save it again"
            )
    if not names:
        raise DataError(f"{folder} is empty: {STATE} names no file with rows")
    return [str(folder / name) for name in names]


def _folder(request: SplitRequest) -> Path:
    """Return the folder of the split; a data set without splits is "train"."""
    folder, name = Path(request.path), request.split.name
    if (folder / name / STATE).is_file():
        return folder / name
    if (folder / STATE).is_file() and name == "train":
        return folder
    if not _has_splits(folder):
        raise ConfigError(
            f"data: {folder} is one data set, which is train, so it has no split {name!r}; give data.validation and "
            "data.test as null, or as slices of train"
        )
    known = json.loads((folder / SPLITS).read_text(encoding="utf-8"))["splits"]
    raise ConfigError(f"data: {folder} has no split {name!r}{nearest(name, known)}")


def _has_splits(folder: Path) -> bool:
    return (folder / SPLITS).is_file()
