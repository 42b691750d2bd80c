"""From a path in the config to rows with agreed columns, streamed or not.

Everything is a `datasets.Dataset` or `datasets.IterableDataset`. Files of JSON lines and parallel text files are read
here by the line, as the readers of `datasets` end at the first line that is no JSON or no UTF-8, without its number.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

import datasets
import fsspec
from datasets import Dataset, Features, IterableDataset, List, Value
from huggingface_hub.errors import HfHubHTTPError

from pipeline.config import DataConfig
from pipeline.data.hub_reading import denial, download, each_row, patiently
from pipeline.errors import ConfigError, DataError, nearest

Rows: TypeAlias = Dataset | IterableDataset

JSON_LINES = (".jsonl", ".ndjson")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
FIRST_ROWS = 100  # are looked at before anything starts


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
        Rows with exactly the agreed columns. Rows of text files also have "place", file and line, and "problem", what
        is wrong with a line from which they could not be read.

    Raises:
        ConfigError: for a path, split or option that does not exist.
        DataError: for a missing column, an empty file, or one that cannot be read, naming it.
    """
    place = f"data.path: {data.path} ({split})"
    try:
        rows = _open(data, split, columns)
        first = list(each_row(rows.take(FIRST_ROWS), patience_of(data)))
    except (ConfigError, DataError):
        raise
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, HfHubHTTPError) as error:
        raise ConfigError(f"{place}: {denial(error, data.path) or error}") from error
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetGenerationError) as error:
        raise DataError(f"{place}: {error.__cause__ or error}") from error
    if not first:
        raise DataError(f"{place} is empty: there is no row to read")
    if "place" in first[0]:
        if all(row["problem"] for row in first):
            raise DataError(f"{first[0]['place']}: {first[0]['problem']}")
        return rows
    for name in columns.values():
        _check_column(first[0], name, place)

    def pick(batch: dict[str, list]) -> dict[str, list]:
        return {agreed: _column(batch, name) for agreed, name in columns.items()}

    if isinstance(rows, Dataset):
        return rows.select_columns(sorted({_head(first[0], name) for name in columns.values()})).with_transform(pick)
    return rows.map(pick, batched=True, remove_columns=list(first[0]))


def _open(data: DataConfig, split: str, columns: dict[str, str]) -> Rows:
    if data.path in SOURCES:
        try:
            rows = SOURCES[data.path](split, **data.options)
        except TypeError as error:
            raise ConfigError(f"data.options: {error}") from error
        return rows.to_iterable_dataset() if data.streaming else rows
    path = Path(data.path)
    if path.is_file():
        name, bracket, part = split.partition("[")
        if name != "train" and not _is_file_pattern(name):
            raise ConfigError(
                f"data.path: {path} is one file, so it has no split {split!r}; "
                "give data.validation and data.test as files beside it, or as null"
            )
        path, split = path.parent, (path.name if name == "train" else name) + bracket + part
    if path.is_dir():
        _check_files(path, split)
    elif not is_on_hub(data.path):
        raise ConfigError(f"data.path: {data.path!r} is no local file or folder, nor of the form owner/name")
    if parallel := _parallel_files(path, split, columns):
        return _read_lines([parallel], _parse_parallel(list(columns)), data.streaming)
    options: dict[str, Any] = {"name": data.subset, "revision": data.revision, **data.options}
    pattern, bracket, part = split.partition("[")
    if _is_file_pattern(pattern):
        options["data_files"], split = {"train": pattern}, f"train{bracket}{part}"
    where = str(path.resolve()) if path.is_dir() else data.path  # load_dataset takes no folder called "."
    builder = patiently(lambda: datasets.load_dataset_builder(where, **options), patience_of(data), data.path)
    files = [str(file) for file in (builder.config.data_files or {}).get(split.partition("[")[0], [])]
    if files and is_on_hub(data.path) and not data.streaming:
        files = _download(files, data)
    if "[" not in split and not data.options and files and all(_is_json_lines(file) for file in files):
        return _read_lines([[file] for file in files], _parse_json(columns), data.streaming)
    if builder.name == "csv":
        # A text may be "NA", and bytes that are not UTF-8 make a bad row rather than an end.
        options = {"keep_default_na": False, "encoding_errors": "replace"} | options
    if files and is_on_hub(data.path) and not data.streaming:
        options = {name: value for name, value in options.items() if name not in ("name", "revision", "data_dir")}
        options |= {"data_files": {split.partition("[")[0]: files}, "features": builder.info.features}
        where = builder.name
    return patiently(
        lambda: datasets.load_dataset(where, split=split, streaming=data.streaming, **options),
        patience_of(data),
        data.path,
    )


def is_on_hub(path: str) -> bool:
    """Whether a path means owner/name on the Hub: no generated set, and nothing that lies on this machine."""
    is_name = path.count("/") == 1 and not path.startswith((".", "/", "~"))
    return is_name and path not in SOURCES and not Path(path).exists()


def patience_of(data: DataConfig) -> float:
    """Seconds to wait for data that do not come; none for local files, where waiting cannot help."""
    return data.hub_patience if is_on_hub(data.path) else 0.0


def _download(files: list[str], data: DataConfig) -> list[str]:
    """Local copies of hf://datasets/owner/name@revision/path."""
    revisions, names = zip(
        *(file.removeprefix(f"hf://datasets/{data.path}@").split("/", 1) for file in files), strict=True
    )
    return [str(path) for path in download(data.path, list(names), unquote(revisions[0]), data.hub_patience)]


def _parallel_files(folder: Path, split: str, columns: dict[str, str]) -> list[str] | None:
    """train.en and train.fr, for columns en and fr, where all of them are there."""
    files = [folder / f"{split}.{name}" for name in columns.values()]
    if not all(file.is_file() for file in files):
        return None
    for file in files:
        if file.stat().st_size == 0:
            raise DataError(f"{file}: the file is empty")
    return [str(file) for file in files]


def _is_json_lines(file: str) -> bool:
    path = Path(file)
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix in JSON_LINES


def _is_file_pattern(split: str) -> bool:
    return "." in split or "*" in split


def _check_files(folder: Path, split: str) -> None:
    name = split.partition("[")[0]
    files = list(folder.glob(name if _is_file_pattern(name) else f"{name}.*"))
    if _is_file_pattern(name) and not files:
        raise ConfigError(f"data: no file {folder / split}")
    for file in files:
        if file.stat().st_size == 0:
            raise DataError(f"{file}: the file is empty")


Parse: TypeAlias = Callable[[dict[str, list]], dict[str, list]]


def _read_lines(shards: list[list[str]], parse: Parse, streaming: bool) -> Rows:
    """Rows of text files: a shard is one file, or several whose n-th lines belong together.

    The lines are kept as they are and parsed where they are used, so that a bad one ends nothing.
    """
    # The time of change is an argument so that the cache of `from_generator` does not outlive the files.
    changed = [[Path(file).stat().st_mtime_ns if Path(file).is_file() else 0 for file in shard] for shard in shards]
    arguments = {"shards": shards, "changed": changed}
    if streaming:
        return IterableDataset.from_generator(_lines, gen_kwargs=arguments).map(
            parse, batched=True, remove_columns=["lines", "place"]
        )
    features = Features({"lines": List(Value("binary")), "place": Value("string")})
    return Dataset.from_generator(_lines, gen_kwargs=arguments, features=features).with_transform(parse)


def _lines(shards: list[list[str]], changed: list[list[int]]) -> Iterator[dict[str, Any]]:
    """Lines end at a newline byte alone, so that U+2028 and the like misalign nothing; blank lines of one file go."""
    for files in shards:
        with ExitStack() as stack:
            streams = [stack.enter_context(fsspec.open(file, "rb", compression="infer")) for file in files]
            for number, lines in enumerate(zip_longest(*streams), start=1):
                if None in lines:
                    short = files[lines.index(None)]
                    raise DataError(f"{short} has no line {number}, but its parallel file has; make them equally long")
                if len(files) > 1 or lines[0].strip():
                    yield {"lines": list(lines), "place": f"{' and '.join(files)}:{number}"}


def _parse_parallel(names: list[str]) -> Parse:
    def parse(batch: dict[str, list]) -> dict[str, list]:
        texts = [[_decode(line) for line in lines] for lines in batch["lines"]]
        columns = dict(zip(names, map(list, zip(*texts, strict=True)), strict=True))
        return {**columns, "place": batch["place"], "problem": [None] * len(texts)}

    return parse


def _decode(line: bytes) -> str:
    return line.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")


def _parse_json(columns: dict[str, str]) -> Parse:
    def parse(batch: dict[str, list]) -> dict[str, list]:
        parsed: dict[str, list] = {name: [] for name in (*columns, "problem")}
        for [line] in batch["lines"]:
            values, problem = _parse_json_line(line, columns)
            for name in columns:
                parsed[name].append(values.get(name))
            parsed["problem"].append(problem)
        return {**parsed, "place": batch["place"]}

    return parse


def _parse_json_line(line: bytes, columns: dict[str, str]) -> tuple[dict[str, Any], str | None]:
    try:
        row = json.loads(line.decode("utf-8"))
        return {agreed: _value(row, name) for agreed, name in columns.items()}, None
    except UnicodeDecodeError as error:
        return {}, f"byte {error.start + 1} of the line is not UTF-8"
    except json.JSONDecodeError as error:
        return {}, f"the line is not JSON: {error.msg} at character {error.pos + 1}"
    except DataError as error:
        return {}, str(error)


def _head(row: dict[str, Any], name: str) -> str:
    return name if name in row else name.split(".")[0]


def _check_column(row: dict[str, Any], name: str, place: str) -> None:
    try:
        _value(row, name)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def _value(row: Any, name: str) -> Any:
    """Raises DataError where there is no such column; a dot may be part of its name, or reach into another."""
    if isinstance(row, dict) and name in row:
        return row[name]
    value = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            known = value if isinstance(value, dict) else {}
            raise DataError(f"there is no column {name!r}{nearest(part, known)}")
        value = value[part]
    return value


def _column(batch: dict[str, list], name: str) -> list:
    if name in batch:
        return batch[name]
    head, *rest = name.split(".")
    values = batch[head]
    for part in rest:
        values = [None if value is None else value[part] for value in values]
    return values
