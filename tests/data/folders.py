"""Folders of small data, and what is read of them, for the tests of splits and their readers."""

import gzip
import json

import pyarrow
import pyarrow.parquet

from pipeline.config import DataConfig
from pipeline.data.splits import open_split

ROWS = [{"en": f"a {index}", "fr": f"un {index}"} for index in range(7)]


EXPECTED = [{"source": row["en"], "target": row["fr"]} for row in ROWS]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(path, rows, separator=","):
    lines = [separator.join(rows[0])] + [separator.join(row.values()) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def write_gz(path, rows):
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def texts(rows):
    """Without what the reader of text files adds."""
    return [{name: row[name] for name in ("source", "target")} for row in rows]


def open_folder(folder, split="train", streaming=False, source="en", target="fr", **options):
    data = DataConfig(path=str(folder), source=source, target=target, streaming=streaming, options=options)
    return open_split(data, split, data.columns)
