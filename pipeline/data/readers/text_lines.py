"""Files read by the line, each row with its place; the readers of parallel text and of JSON lines stand on this.

The readers of `datasets` end at the first line that is invalid JSON or invalid UTF-8, without its number. Here lines
are kept as bytes and parsed where they are used, so that a bad one ends nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import zip_longest
from typing import Any, TypeAlias

import fsspec
from datasets import Dataset, Features, IterableDataset, List, Value

from pipeline.data.fingerprints import fingerprint_files
from pipeline.data.readers.base import Rows
from pipeline.data.rows import Columns
from pipeline.errors import DataError

Parse: TypeAlias = Callable[[Columns], Columns]


def read_lines(shards: list[list[str]], parse: Parse, streaming: bool) -> Rows:
    """Open text files as rows.

    Args:
        shards: a shard is one file, or several whose n-th lines belong together.
        parse: from columns "lines" (one line of each file of the shard, as bytes) and "place" to the columns of a row.
    """
    if streaming:
        return IterableDataset.from_generator(_lines, gen_kwargs={"shards": shards}).map(
            parse, batched=True, remove_columns=["lines", "place"]
        )
    # An argument, so that the cache of `from_generator` does not outlive the content of the files.
    arguments = {"shards": shards, "fingerprint": fingerprint_files(file for shard in shards for file in shard)}
    features = Features({"lines": List(Value("binary")), "place": Value("string")})
    return Dataset.from_generator(_lines, gen_kwargs=arguments, features=features).with_transform(parse)


def _lines(shards: list[list[str]], fingerprint: str = "") -> Iterator[dict[str, Any]]:
    """Yield the lines of each shard.

    A line ends only at a newline byte, so that U+2028 and the like misalign nothing. Blank lines of a single file are
    left out.
    """
    for files in shards:
        with ExitStack() as stack:
            streams = [stack.enter_context(fsspec.open(file, "rb", compression="infer")) for file in files]
            for number, lines in enumerate(zip_longest(*streams), start=1):
                if None in lines:
                    short = files[lines.index(None)]
                    raise DataError(f"{short} has no line {number}, but its parallel file has; make them equally long")
                if len(files) > 1 or lines[0].strip():
                    yield {"lines": list(lines), "place": f"{' and '.join(files)}:{number}"}
