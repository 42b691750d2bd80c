"""From a path in the config to rows with agreed columns, streamed or not.

Everything is a `datasets.Dataset` or `datasets.IterableDataset`; only generated sets and parallel text files, which
`datasets` does not know, are made here.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets import Dataset, IterableDataset

from pipeline.config import ConfigError, DataConfig, DataError, nearest

Rows: TypeAlias = Dataset | IterableDataset


def reversal(
    split: str, length: int = 10, symbols: int = 20, rows: int = 20_000, held_out: int = 1_000, seed: int = 0
) -> Dataset:
    """Sequences of numbers and their reversal, as text: "5 12 3" -> "3 12 5".

    Args:
        split: train, validation or test; no sequence stands in two of them.
        length: numbers in a sequence, drawn with repetition.
        symbols: the numbers are 1 to `symbols`.
        rows: size of the training split. held_out: size of each of the other two.

    Raises:
        ConfigError: for another split, or when there are too few different sequences.
    """
    sizes = {"test": held_out, "validation": held_out, "train": rows}
    if split not in sizes:
        raise ConfigError(f"data: the generated set has no split {split!r}{nearest(split, sizes)}")
    if symbols**length < 2 * sum(sizes.values()):
        raise ConfigError(f"data.options: {symbols} symbols at length {length} make too few different sequences")
    generator = random.Random(seed)
    sequences: dict[tuple[int, ...], None] = {}  # a set that keeps its order
    while len(sequences) < sum(sizes.values()):
        sequences[tuple(generator.choices(range(1, symbols + 1), k=length))] = None
    names = list(sizes)
    start = sum(sizes[name] for name in names[: names.index(split)])
    chosen = list(sequences)[start : start + sizes[split]]
    return Dataset.from_dict(
        {
            "source": [" ".join(map(str, sequence)) for sequence in chosen],
            "target": [" ".join(map(str, reversed(sequence))) for sequence in chosen],
        }
    )


SOURCES: dict[str, Callable[..., Dataset]] = {"reversal": reversal}


def read(data: DataConfig, split: str, columns: dict[str, str]) -> Rows:
    """Opens one split.

    Args:
        data: where the rows are.
        split: the value of data.train, data.validation or data.test.
        columns: agreed name -> name in the data, where dots reach into nested columns.

    Returns:
        Rows with exactly the agreed columns.

    Raises:
        ConfigError: for a path, split or option that does not exist.
        DataError: for a missing column or an empty file, naming it.
    """
    place = f"data.path: {data.path} ({split})"
    try:
        rows = _open(data, split, columns)
        first = next(iter(rows.take(1)), None)
    except (ConfigError, DataError):
        raise
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise ConfigError(f"{place}: {error}") from error
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetGenerationError) as error:
        raise DataError(f"{place}: {error.__cause__ or error}") from error
    if first is None:
        raise DataError(f"{place} is empty: there is no row to read")
    for name in columns.values():
        _check_column(first, name, place)

    def pick(batch: dict[str, list]) -> dict[str, list]:
        return {agreed: _column(batch, name) for agreed, name in columns.items()}

    if isinstance(rows, Dataset):
        return rows.select_columns(sorted({_head(first, name) for name in columns.values()})).with_transform(pick)
    return rows.map(pick, batched=True, remove_columns=list(first))


def _open(data: DataConfig, split: str, columns: dict[str, str]) -> Rows:
    if data.path in SOURCES:
        try:
            rows = SOURCES[data.path](split, **data.options)
        except TypeError as error:
            raise ConfigError(f"data.options: {error}") from error
        return rows.to_iterable_dataset() if data.streaming else rows
    path = Path(data.path)
    if path.is_file():
        if split != "train" and not _is_file_pattern(split):
            raise ConfigError(
                f"data.path: {path} is one file, so it has no split {split!r}; "
                "give data.validation and data.test as files beside it, or as null"
            )
        path, split = path.parent, path.name if split == "train" else split
    if path.is_dir():
        _check_files(path, split)
    elif data.path.count("/") != 1 or data.path.startswith((".", "/", "~")):
        raise ConfigError(f"data.path: {data.path!r} is no local file or folder, nor of the form owner/name")
    if parallel := _parallel_files(path, split, columns):
        return _read_parallel(parallel, data.streaming)
    options: dict[str, Any] = dict(data.options)
    if _is_file_pattern(split):
        options["data_files"], split = {"train": split}, "train"
    return datasets.load_dataset(
        str(path) if path.is_dir() else data.path,
        data.subset,
        split=split,
        revision=data.revision,
        streaming=data.streaming,
        **options,
    )


def _parallel_files(folder: Path, split: str, columns: dict[str, str]) -> dict[str, Path] | None:
    """train.en and train.fr, for columns en and fr, where all of them are there."""
    files = {name: folder / f"{split}.{name}" for name in columns.values()}
    return files if all(file.is_file() for file in files.values()) else None


def _is_file_pattern(split: str) -> bool:
    return "." in split or "*" in split


def _check_files(folder: Path, split: str) -> None:
    files = list(folder.glob(split if _is_file_pattern(split) else f"{split.partition('[')[0]}.*"))
    if _is_file_pattern(split) and not files:
        raise ConfigError(f"data: no file {folder / split}")
    for file in files:
        if file.stat().st_size == 0:
            raise DataError(f"{file}: the file is empty")


def _read_parallel(files: dict[str, Path], streaming: bool) -> Rows:
    """Line n of every file is row n; lines end at a newline alone, so that U+2028 and the like misalign nothing."""
    for file in files.values():
        if file.stat().st_size == 0:
            raise DataError(f"{file}: the file is empty")
    # The time of change is an argument so that the cache of `from_generator` does not outlive the files.
    arguments = {name: {"path": str(file), "changed": file.stat().st_mtime_ns} for name, file in files.items()}
    maker = IterableDataset if streaming else Dataset
    return maker.from_generator(_parallel_lines, gen_kwargs={"files": arguments})


def _parallel_lines(files: dict[str, dict[str, Any]]) -> Iterator[dict[str, str]]:
    paths = [file["path"] for file in files.values()]
    with ExitStack() as stack:
        streams = [stack.enter_context(open(path, encoding="utf-8", newline="\n")) for path in paths]
        for number, lines in enumerate(zip_longest(*streams), start=1):
            if None in lines:
                short = paths[lines.index(None)]
                raise DataError(f"{short} has no line {number}, but its parallel file has; make them equally long")
            yield dict(zip(files, (line.removesuffix("\n").removesuffix("\r") for line in lines), strict=True))


def _head(row: dict[str, Any], name: str) -> str:
    return name if name in row else name.split(".")[0]


def _check_column(row: dict[str, Any], name: str, place: str) -> None:
    if name in row:  # a dot may also be part of a name
        return
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            known = value if isinstance(value, dict) else {}
            raise DataError(f"{place}: there is no column {name!r}{nearest(part, known)}")
        value = value[part]


def _column(batch: dict[str, list], name: str) -> list:
    if name in batch:
        return batch[name]
    head, *rest = name.split(".")
    values = batch[head]
    for part in rest:
        values = [None if value is None else value[part] for value in values]
    return values
