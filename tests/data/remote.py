"""Files of some pairs for tests of the Hub and of the web, and what reads them."""

import gzip
import json

import pytest

from pipeline.config import DataConfig
from pipeline.data.hub_reading import iterate_rows, retry_seconds
from pipeline.data.splits import open_split
from tests.hub_data import ROWS, as_csv, as_jsonl, as_parquet

STREAMING = pytest.mark.parametrize("streaming", [False, True])


def config(**keys) -> DataConfig:
    return DataConfig(**{"validation": None, "hub_patience": 30, **keys})


def read(data: DataConfig) -> list[dict]:
    rows = iterate_rows(open_split(data, data.train, data.columns), retry_seconds(data))
    return [{name: row[name] for name in ("source", "target")} for row in rows]


FILES = {
    "a.jsonl": as_jsonl(ROWS),
    "a.csv.gz": gzip.compress(as_csv(ROWS)),
    "a.json": json.dumps(ROWS).encode(),
    "a.parquet": as_parquet(ROWS),
}
