"""Small streams of a hundred rows, of two kinds, for the tests of the order of batches and of the loader."""

from itertools import islice

import pytest
import torch
from datasets import Dataset, IterableDataset

from pipeline.data.batch_loader import BatchLoader
from pipeline.data.batch_stream import BatchStream
from pipeline.data.lanes import Lanes
from pipeline.data.rows import BadRow

KINDS = pytest.mark.parametrize("kind", ["dataset", "stream"])
LENGTHS = [(1 + 7 * index % 13, 1 + 5 * index % 11) for index in range(100)]


def shard(shards):
    for number in shards:
        yield from ({"value": index} for index in range(number * 25, number * 25 + 25))


def make_rows(kind: str):
    if kind == "dataset":
        return Dataset.from_dict({"value": list(range(100))})
    return IterableDataset.from_generator(shard, gen_kwargs={"shards": [0, 1, 2, 3]})


def encode(columns):
    return [{"value": value, "lengths": LENGTHS[value]} for value in columns["value"]]


def make_stream(kind: str, **options) -> BatchStream:
    options = {"batch_rows": 4, "window": 30, "seed": 1, **options}
    return BatchStream(make_rows(kind), options.pop("encode", encode), lambda each: each["lengths"], **options)


def make_lanes(kind: str, lanes: int = 1, rank: int = 0, world_size: int = 1, **options) -> Lanes:
    return Lanes(lambda lane: make_stream(kind, lane=lane, lanes=lanes, **options), lanes, rank, world_size)


def collate(features):
    return {"values": torch.tensor([feature["value"] for feature in features])}


def take_loaded(loader: BatchLoader, count: int) -> list[list[int]]:
    return [batch["values"].tolist() for batch in islice(iter(loader), count)]


def take(stream, count: int) -> list[list[int]]:
    return [[feature["value"] for feature in batch] for batch, _ in islice(iter(stream), count)]


def odd(columns):
    return [
        feature if feature["value"] % 2 else BadRow(f"row {row}", "even")
        for feature, row in zip(encode(columns), columns["row"], strict=True)
    ]
