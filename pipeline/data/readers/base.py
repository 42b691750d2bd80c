"""What a reader is asked for, and what it gives."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

import datasets
from datasets import Dataset, DatasetBuilder, IterableDataset
from datasets.arrow_reader import ReadInstruction

from pipeline.data.addresses import is_file_name
from pipeline.data.hub_reading import download_files, in_short, is_on_hub, with_retries
from pipeline.data.lines import find_encoding
from pipeline.data.web_reading import cache_folder
from pipeline.data_config import is_address
from pipeline.errors import ConfigError, DataError, nearest

Rows: TypeAlias = Dataset | IterableDataset

RESERVED_OPTIONS = {"path", "name", "revision", "split", "streaming", "config_name"}  # are other keys of `data`
OF_PYTHON = {"features", "download_config"}  # options whose values are objects of `datasets`


@dataclass(frozen=True)
class SplitSpec:
    """A split as the config names it, parsed once: a name or a file, and the slice of it that is wanted.

        train                  SplitSpec("train")
        train[:90%]            SplitSpec("train", "[:90%]")
        valid.jsonl            SplitSpec("valid.jsonl"), a file
        train-*.jsonl[:10]     SplitSpec("train-*.jsonl", "[:10]"), files

    Attributes:
        name: of a split, or of files below the folder of the data; a glob means all that match.
        slice: in the notation of `datasets`, with its brackets; "" is the whole split.
    """

    name: str
    slice: str = ""

    @classmethod
    def parse(cls, text: str) -> "SplitSpec":
        name, bracket, rest = text.partition("[")
        return cls(name, bracket + rest)

    @property
    def is_file(self) -> bool:
        return is_file_name(self.name)

    def __str__(self) -> str:
        return self.name + self.slice


@dataclass(frozen=True)
class SplitRequest:
    """One split of a data set, as a reader is asked for it.

    Attributes:
        path: a folder, here or of the web, owner/name on the Hub, or the name of a generated set; never a single file.
        split: the split; for a data set in a single file, that file.
        columns: agreed name -> name in the data, where dots reach into nested columns.
        streaming: whether rows are read while training, or first.
        options: further arguments, `data.options` of the config.
        subset: configuration of a Hub data set that has several.
        revision: branch, tag or commit of a Hub data set.
        folder: of a Hub data set, in which the split is.
        patience: seconds to try again what the Hub does not give.
        lanes: that share a stream.
    """

    path: str
    split: SplitSpec
    columns: dict[str, str]
    streaming: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    subset: str | None = None
    revision: str | None = None
    folder: str | None = None
    patience: float = 0.0
    lanes: int = 1

    @property
    def has_files(self) -> bool:
        return Path(self.path).is_dir() or is_on_hub(self.path) or is_address(self.path)

    @property
    def encoding(self) -> str | None:
        """The codec of text files, `data.options.encoding`; None for UTF-8."""
        return find_encoding(self.options.get("encoding"))

    @property
    def is_downloaded(self) -> bool:
        """Whether the files come from the Hub before they are read."""
        return is_on_hub(self.path) and not self.streaming

    @property
    def dataset_split(self) -> SplitSpec:
        """The split as `datasets` names it: it calls files that are named one by one "train"."""
        return SplitSpec("train", self.split.slice) if self.split.is_file else self.split

    @property
    def dataset_path(self) -> str:
        """The path as `datasets` takes it: no folder called ".", and any folder for a file of the web."""
        if is_address(self.path):
            return str(cache_folder())
        return str(Path(self.path).resolve()) if Path(self.path).is_dir() else self.path

    @property
    def dataset_arguments(self) -> dict[str, Any]:
        """What `datasets.load_dataset` gets besides path and split."""
        arguments = {"name": self.subset, "revision": self.revision, "data_dir": self.folder, **self.options}
        file = f"{self.path}/{self.split.name}" if is_address(self.path) else self.split.name
        return arguments | {"data_files": {"train": file}} if self.split.is_file else arguments

    @cached_property
    def builder(self) -> DatasetBuilder:
        """What `datasets` makes of the path; it asks the Hub, so it is made once for all readers.

        Raises:
            ConfigError: for options that it does not take, naming those that it does.
        """

        if taken := set(self.options) & RESERVED_OPTIONS:
            raise ConfigError(f"data.options.{min(taken)}: other keys of the section data say this; leave it out")

        if objects := set(self.options) & OF_PYTHON:
            raise ConfigError(f"data.options.{min(objects)}: a config cannot hold such an object; leave it out")

        def make() -> DatasetBuilder:
            return datasets.load_dataset_builder(self.dataset_path, **self.dataset_arguments)

        try:
            return with_retries(make, self.patience, self.path)
        except (ValueError, TypeError) as error:
            if not self.options:
                raise
            self._check_options()
            raise ConfigError(f"data.options: {in_short(error)}") from error

    def _check_options(self) -> None:
        """Raise ConfigError for an option that `datasets` does not know for these data."""
        common = {*signature(datasets.load_dataset_builder).parameters} - RESERVED_OPTIONS - {"config_kwargs"}
        plain = replace(self, options={name: value for name, value in self.options.items() if name in common})
        if plain.options == self.options:  # all are known, so a value is wrong
            return
        own = {field.name for field in dataclasses.fields(plain.builder.config)} - RESERVED_OPTIONS - {"version"}
        for name in self.options:
            if name not in common | own:
                raise ConfigError(
                    f"data.options.{name}: unknown for data of the kind {plain.builder.name}{nearest(name, own)}"
                )

    @property
    def files(self) -> list[str]:
        """The files of the split, found by `datasets` by their names: paths, https://, hf://datasets/owner/name@commit/."""
        if is_address(self.path):
            return [f"{self.path}/{self.split.name}"]
        return [str(file) for file in (self.builder.config.data_files or {}).get(self.dataset_split.name, [])]

    def fetch_files(self) -> list[str]:
        """Download the files of the split, unless they are here already or read as a stream; return where they are."""
        if not self.files or not self.is_downloaded:
            return self.files
        prefix = f"hf://datasets/{self.path}@"
        parts = [file.removeprefix(prefix).split("/", 1) for file in self.files]  # [commit, path]
        names = [name for _, name in parts]
        return [str(path) for path in download_files(self.path, names, unquote(parts[0][0]), self.patience)]


def take_slice(rows: Dataset, split: SplitSpec) -> Dataset:
    """Return the part of all rows that the slice of a split names.

    Raises:
        DataError: where it holds none.
    """
    if not split.slice:
        return rows
    (part,) = ReadInstruction.from_spec(f"train{split.slice}").to_absolute({"train": len(rows)})
    numbers = range(len(rows))[part.from_ : part.to]
    if not numbers:
        raise DataError(f"data: {split} holds no row, as there are {len(rows)} in all; name another part")
    return rows.select(numbers)


def files_of_split(request: SplitRequest) -> list[str]:
    """Return the local files whose names begin with that of the split, or else all in the folder."""
    files = sorted(path for path in Path(request.path).glob("*") if path.is_file())
    return [str(path) for path in files if path.name.startswith(request.split.name)] or [str(path) for path in files]


@dataclass(frozen=True)
class Reader:
    """A line of the table of readers.

    Attributes:
        accepts: whether the data of a request have the shape that this reader reads.
        read: opens them.
        names_places: whether the rows come with the agreed columns, and with `PLACE` and `PROBLEM` of `data.rows`.
        files: those that the rows are read from, by which a change of the data is noticed; one in a zip is named as if
            the zip were a folder.
    """

    accepts: Callable[[SplitRequest], bool]
    read: Callable[[SplitRequest], Rows]
    names_places: bool = False
    files: Callable[[SplitRequest], list[str]] = files_of_split
