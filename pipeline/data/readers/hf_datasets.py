"""Whatever `datasets.load_dataset` reads: Parquet, JSON arrays, archives and more, and data sets of the Hub."""

import csv
from collections import deque
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets import Features, Value

from pipeline.data.fingerprints import fingerprint_files
from pipeline.data.hub_reading import with_retries
from pipeline.data.lines import read_lines
from pipeline.data.readers.base import Rows, SplitRequest
from pipeline.data.readers.delimited_text import has_quotes
from pipeline.data.readers.text_lines import has_suffix

FIRST_LINES = 1_000  # of a file, whose length is looked at


def accepts(request: SplitRequest) -> bool:
    return request.has_files


def read(request: SplitRequest) -> Rows:
    for file in request.files:
        is_text = request.builder.name in ("csv", "text") or has_suffix(file, (".jsonl", ".ndjson"))
        if is_text and Path(file).is_file():
            # `datasets` takes a line of any length into memory, several times.
            deque(islice(read_lines(file, request.encoding), FIRST_LINES), maxlen=0)
    path, arguments = request.dataset_path, request.dataset_arguments
    features = request.builder.info.features
    if request.files and request.is_downloaded:
        # What was downloaded and checked is read in place of the Hub's: by its own format, with the Hub's features.
        path = request.builder.name
        arguments = {name: value for name, value in arguments.items() if name not in ("name", "revision", "data_dir")}
        arguments["data_files"] = {request.dataset_split.name: request.fetch_files()}
        arguments["features"] = features
    elif request.files and not request.streaming:
        # The cache of `datasets` knows local files by path and time, under which other content may lie by now.
        cache = Path(arguments.get("cache_dir") or datasets.config.HF_DATASETS_CACHE)
        arguments = arguments | {"cache_dir": str(cache / fingerprint_files(request.files))}

    def load(**more: Any) -> Rows:
        split = str(request.dataset_split)
        return datasets.load_dataset(path, split=split, **{"streaming": request.streaming, **arguments, **more})

    if request.builder.name == "csv":
        # Bytes that are not UTF-8 make a bad row rather than an end.
        arguments = {"keep_default_na": False, "encoding_errors": "replace"} | arguments
        if not has_quotes(request):
            arguments["quoting"] = csv.QUOTE_NONE
        if features is None:  # or pandas would guess them, chunk by chunk
            names = with_retries(lambda: _first_names(load(streaming=True)), request.patience, request.path)
            arguments["features"] = Features({name: Value("string") for name in names})
    return with_retries(load, request.patience, request.path)


def _first_names(rows: datasets.IterableDataset) -> list[str]:
    return list(next(iter(rows), {}))
