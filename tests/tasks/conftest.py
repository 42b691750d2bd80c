"""Small data and finished runs of every task but pairs of texts, made once for all tests."""

import csv
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Config
from pipeline.run import train
from tests.conftest import HUB, TINY, small_config

NO_METRICS = {"metrics": [], "show": 0}


def write_classes(folder):
    generator = random.Random(0)
    for split, count in (("train", 48), ("validation", 8), ("test", 8)):
        with (folder / f"{split}.jsonl").open("w") as stream:
            for _ in range(count):
                words = generator.choices("abcdefgh", k=generator.randint(1, 6))
                print(json.dumps({"text": " ".join(words), "label": int("a" in words)}), file=stream)
    return {
        "data": {"path": str(folder), "source": "text", "target": "label", "options": {}},
        "model": {name: TINY[name] for name in ("d_model", "encoder_layers", "attention_heads", "ffn_dim")},
        "evaluation": {"metrics": ["macro_f1"], "show": 1},
        "generation": {"max_new_tokens": 128},
    }


def write_text(folder):
    generator = random.Random(0)
    paragraphs = [
        " ".join(generator.choices(["Anna", "and", "the", "prince", "went", "home"], k=30)) + "." for _ in range(40)
    ]
    (folder / "novel.txt").write_text("\n\n".join(paragraphs))
    return {
        "data": {
            "path": str(folder / "novel.txt"),
            "options": {"sample_by": "paragraph"},
            "source": "text",
            "train": "train[:80%]",
            "validation": "train[80%:90%]",
            "test": "train[90%:]",
        },
        "language_modeling": {"bptt": 8},
        "tokenizer": {"kind": "word_punct"},
        "model": {"embedding_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "dropout": 0.1},
        "evaluation": NO_METRICS,
    }


def write_series(folder):
    steps = np.arange(120)
    rows = np.stack([np.sin(steps / 3) * 5 + 20, np.cos(steps / 5), steps / 10], 1)
    with (folder / "power.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["date", "HUFL", "OT", "load"], *([f"t{n}", *row] for n, row in enumerate(rows))])
    return {
        "data": {
            "path": str(folder / "power.csv"),
            "options": {},
            "train": "train[:80]",
            "validation": "train[68:100]",
            "test": "train[88:120]",
        },
        "forecasting": {"series": ["HUFL", "OT"]},
        "model": {
            **{name: TINY[name] for name in ("d_model", "encoder_layers", "attention_heads", "ffn_dim")},
            **{"context_length": 12, "prediction_length": 4, "patch_length": 4, "patch_stride": 2},
        },
        "evaluation": NO_METRICS,
    }


WRITERS = {"text_classification": write_classes, "language_modeling": write_text, "forecasting": write_series}


def task_config(task: str, data_folder: Path, output_dir: Path, /, **changes) -> Config:
    """Make the config of a run of seconds of one task, on data that are written into a folder."""
    data_folder.mkdir(exist_ok=True)
    values = {name: dict(section) for name, section in WRITERS[task](data_folder).items()}
    for name, section in changes.items():
        values[name] = values.get(name, {}) | section
    return small_config(output_dir, task, **values)


@pytest.fixture
def make_task(tmp_path):
    """Makes data of one task, and the config of a run of seconds on them, in the test's own folder."""

    def make(task, **changes):
        return task_config(task, tmp_path / "data", tmp_path / "run", **changes)

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Gives the folder of a finished run of a task, published as me/<task>; to be read, not to be changed."""
    folder, configs = tmp_path_factory.mktemp("tasks"), {}

    def get(task: str) -> Config:
        if task not in configs:
            HUB.start()
            HUB.break_next()
            hub = {"push": True, "model_id": f"me/{task.replace('_', '-')}"}
            configs[task] = task_config(task, folder / f"{task}_data", folder / task, hub=hub)
            train(configs[task])
        return configs[task]

    return get


@pytest.fixture
def rewound(finished, tmp_path):
    """Copies a finished run of a task, and puts it back to the moment at which it had written checkpoint 2."""

    def copy(task: str) -> Config:
        config = finished(task)
        shutil.copytree(config.output_dir, tmp_path / "run")
        rewind(tmp_path / "run", 2)
        training = config.training | {"output_dir": str(tmp_path / "run")}
        return config.model_copy(update={"training": training, "hub": type(config.hub)()})

    return copy


def rewind(folder, step):
    """Puts a finished run back to the moment at which it had written a checkpoint."""
    for path in folder.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    for name in ("metrics.json", "model.safetensors"):
        (folder / name).unlink()
