"""Rows, and the formats in which the tests put them on their Hub."""

import csv
import gzip
import io
import json

import pyarrow
import pyarrow.parquet

ROWS = [{"source": f"a b {index}", "target": f"{index} b a"} for index in range(300)]
SHARDS = [ROWS[start : start + 100] for start in (0, 100, 200)]


def as_jsonl(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["source", "target"])
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def as_parquet(rows) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream, row_group_size=30)
    return stream.getvalue()


FORMATS = {
    "jsonl": as_jsonl,
    "jsonl.gz": lambda rows: gzip.compress(as_jsonl(rows)),
    "csv": as_csv,
    "parquet": as_parquet,
}
