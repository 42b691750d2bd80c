"""Data that have one of each fault, and configs for them."""

import json
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.inspection.inspection import inspect
from pipeline.tasks.config_loading import parse_config

GOOD = [{"source": f"number {n} is a word", "target": f"le nombre {n} est un mot"} for n in range(30)]
FAULTY: list[dict[str, Any]] = [
    GOOD[3],  # 30: equal to row 3
    {"source": "number 4  is a word ", "target": "tout autre chose"},  # 31: row 4 with another target, but for spaces
    {"source": "same", "target": "same"},
    {"source": None, "target": "rien"},  # 33
    {"source": "", "target": "rien"},
    {"source": "a " * 60, "target": "trop long"},  # 35: for max_source_length
    {"source": "Ã©tÃ©", "target": "Q&amp;amp;A"},
    {"source": "it is 7 now", "target": "il est 8 heures"},
    {"source": "held out", "target": "mis de côté"},
    {"source": "held out", "target": "mis à part"},  # 39
]
HELD_OUT = [{"source": "held out", "target": "mis de côté"}, {"source": "not seen", "target": "pas vu"}]


def write(folder: Path, **splits: list[dict[str, Any]]) -> str:
    folder.mkdir()
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(folder)


def config_of(path: str, task: str = "sequence_to_sequence", **sections) -> Config:
    values: dict[str, Any] = {"data": {"path": path, "max_source_length": 50}, "tokenizer": {"kind": "bpe"}}
    for name, keys in sections.items():
        values[name] = values.get(name, {}) | keys
    return parse_config({"task": task, **values, "training": {"output_dir": f"{path}/../run"}})


def rows_of(found: Any) -> list[str]:
    """The last part of the places of all examples: numbers of rows from 1, as lines."""
    return [example.place.split(":")[-1].removeprefix("row ") for example in found.examples]


def look(config: Config, limit: int | None = None) -> list[Any]:
    """What is found in the texts of each corpus and set."""
    return [*inspect(config, limit).texts]
