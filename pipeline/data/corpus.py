"""Texts that a model is to answer, read one after another from wherever they are.

No more of them are in memory than somebody holds. Each text has its place, so that a bad one can be named.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from datasets import Dataset

from pipeline.config import DataConfig
from pipeline.data.addresses import find_repository
from pipeline.data.fingerprints import fingerprint_files
from pipeline.data.hub_reading import iterate_rows, resolve_commit, retry_seconds
from pipeline.data.lines import COMPRESSED, bounded_lines, read_lines
from pipeline.data.readers.text_lines import has_suffix
from pipeline.data.rows import PLACE, PROBLEM, find_text_problem
from pipeline.data.splits import fingerprint_split, open_split
from pipeline.errors import explain_path

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")  # other files hold one text a line
INVALID = "invalid UTF-8; fix this line, or convert all of the text to UTF-8"
BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Text:
    """A text of a corpus.

    Attributes:
        number: of the text in its corpus, from 0.
        place: file and line, or what else a message calls it.
        content: "" where there is a problem.
        problem: why it could not be read.
    """

    number: int
    place: str
    content: str
    problem: str | None = None


@dataclass(frozen=True)
class Corpus:
    """Texts in their order.

    Attributes:
        read: yields all texts from the first on; those of standard input once.
        facts: what tells these texts from others: their name, split, column and commit, and a hash of the content.
        count: of the texts, where it is known without reading them all; progress is measured by it.
    """

    read: Callable[[], Iterator[Text]]
    facts: dict[str, Any]
    count: int | None = None


def given_texts(texts: Sequence[str]) -> Corpus:
    """Return texts that are in memory already."""

    def read() -> Iterator[Text]:
        for number, text in enumerate(texts):
            yield Text(number, f"text {number + 1}", text)

    content = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return Corpus(read, {"name": "texts of the command", "content": content}, len(texts))


def text_stream(stream: IO[bytes], name: str) -> Corpus:
    """Return the lines of an open stream, which can be read once.

    Only newlines end a line, so that there is one text for each line that other tools count.
    """
    return Corpus(lambda: _decoded(bounded_lines(stream, name), name), {"name": name})


def text_file(file: Path) -> Corpus:
    """Return the lines of a file, compressed or not.

    Raises:
        ConfigError: for a file that is not there.
    """
    with explain_path(f"--file {file}"):
        os.stat(file)

    def read() -> Iterator[Text]:
        if file.suffix in COMPRESSED:
            yield from _decoded(read_lines(file), str(file))
            return
        with explain_path(f"--file {file}"), file.open("rb") as stream:
            yield from _decoded(bounded_lines(stream, str(file)), str(file))

    return Corpus(read, {"name": file.name, "content": fingerprint_files([str(file)])}, _count_lines(file))


def split_rows(data: DataConfig, split: str, column: str) -> Corpus:
    """Return the texts in a column of a split, which is any that training reads.

    It is read as a stream, unless only a part of it is wanted (`train[:10%]`), which `datasets` has of no stream.

    Args:
        data: where the rows are.
        column: dots reach into nested columns.

    Raises:
        ConfigError, DataError, RunError: as `open_split`.
    """
    columns = {"source": column}
    repository = find_repository(data, split)
    commit = None if repository is None else resolve_commit(*repository, data.hub_patience)
    data = data.model_copy(update={"revision": commit, "streaming": "[" not in split})
    name = repository[0] if repository else Path(data.path).name
    facts = {
        "name": name,
        "split": split,
        "subset": data.subset,
        "column": column,
        "revision": commit,
        "content": fingerprint_split(data, split, columns),
    }
    rows = open_split(data, split, columns)

    def read() -> Iterator[Text]:
        for number, row in enumerate(iterate_rows(rows, retry_seconds(data))):
            place, text = row.get(PLACE) or f"{name} ({split}), row {number}", row["source"]
            problem = row.get(PROBLEM)
            if problem is None and not (isinstance(text, str) and not text.strip()):
                problem = find_text_problem(column, text)
            yield Text(number, place, "" if problem else str(text), problem)

    return Corpus(read, {key: value for key, value in facts.items() if value is not None}, _count_rows(rows, data))


def is_table(file: Path) -> bool:
    """Tell whether a file has columns, by its name; else each of its lines is a text."""
    return has_suffix(str(file), TABLES)


def _decoded(lines: Iterator[bytes], name: str) -> Iterator[Text]:
    for number, line in enumerate(lines):
        place = f"{name}:{number + 1}"
        try:
            yield Text(number, place, line.decode("utf-8").removesuffix("\n").removesuffix("\r"))
        except UnicodeDecodeError:
            yield Text(number, place, "", INVALID)


def _count_rows(rows: Any, data: DataConfig) -> int | None:
    if isinstance(rows, Dataset):
        return len(rows)
    file = Path(data.path)
    return _count_lines(file) if has_suffix(data.path, (".jsonl", ".ndjson", ".csv", ".tsv")) else None


def _count_lines(file: Path) -> int | None:
    """Count the lines of a file, about a gigabyte a second; None of one that is packed or not a file."""
    if file.suffix in COMPRESSED or not file.is_file():
        return None
    count, last = 0, b"\n"
    with explain_path(str(file)), file.open("rb") as stream:
        while block := stream.read(BLOCK):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")
