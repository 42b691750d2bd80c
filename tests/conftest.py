"""What the tests share: small models, small runs, a small Hub, and the folder of real data if there is one."""

import copy
import importlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.hub_data import FORMATS, SHARDS
from tests.hub_server import WRITER, shared_server

# Before the first import of a Hugging Face library: the Hub at this address is all that tests and their processes know.
HUB = shared_server()
os.environ["HF_ENDPOINT"] = HUB.address
os.environ["HF_TOKEN"] = WRITER
os.environ["HF_HOME"] = str(HUB.folder / "home")
os.environ["HF_HUB_DISABLE_XET"] = "1"  # another protocol, which this Hub does not speak
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.pop("HF_HUB_OFFLINE", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for models so small, threads cost more than they save

import pytest
import torch
from PIL import Image

from pipeline import cli
from pipeline.config import Config
from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration
from pipeline.tasks.config_loading import parse_config

ROOT = Path(__file__).parents[1]
TINY = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "attention_heads": 4, "ffn_dim": 32}


@pytest.fixture(autouse=True, scope="session")
def caches(tmp_path_factory):
    """Data sets are cached in a folder of this session, not in the user's."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture(autouse=True, scope="session")
def running_hub():
    """The process behind the address above; collecting tests starts none."""
    HUB.start()
    yield
    HUB.stop()


@pytest.fixture
def hub():
    """The Hub of the tests, without faults and with an empty log."""
    HUB.start()
    HUB.break_next()
    HUB.forget()
    yield HUB
    HUB.start()
    HUB.break_next()


@pytest.fixture
def hub_name(hub, request) -> str:
    """The name of a repository on the Hub that no other test uses."""
    return "me/" + re.sub(r"\W+", "-", request.node.name)[:60].strip("-")


@pytest.fixture
def data_set(hub_name):
    """Puts three shards on the Hub, in a format; gives the name and the commit."""

    def make(kind: str = "jsonl", private: bool = False, **splits) -> tuple[str, str]:
        files = {f"train-{number}.{kind}": FORMATS[kind](rows) for number, rows in enumerate(SHARDS)}
        files |= {f"{split}.{kind}": FORMATS[kind](rows) for split, rows in splits.items()}
        return hub_name, HUB.add(hub_name, files, private=private)

    return make


@pytest.fixture
def little_sleep(monkeypatch):
    """Shorten the clients' pauses between their tries; ours are counted by `patience` all the same."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.002)))


@pytest.fixture
def shared_data() -> Path:
    """Real data sets that some machines keep beside the clone."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is not on this machine: {folder}")
    return folder


@pytest.fixture
def make_model():
    """Makes a small random model in evaluation mode; keyword arguments change its config."""

    def make(**changes) -> Seq2SeqTransformerForConditionalGeneration:
        torch.manual_seed(0)
        config = Seq2SeqTransformerConfig(**{"vocab_size": 40, **TINY, **changes})
        return Seq2SeqTransformerForConditionalGeneration(config).eval()

    return make


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two pairs, the second padded on both sides."""
    input_ids = torch.tensor([[5, 6, 7, 8, 9, 2], [10, 11, 2, 0, 0, 0]])
    labels = torch.tensor([[12, 13, 14, 2], [15, 2, -100, -100]])
    return {"input_ids": input_ids, "attention_mask": input_ids.ne(0).long(), "labels": labels}


@pytest.fixture
def make_pairs(tmp_path):
    """Writes a folder of JSON lines, train, validation and test: words of very different number, and their reversal."""

    def make(rows: int = 40, held_out: int = 6) -> Path:
        generator, folder = random.Random(0), tmp_path / "pairs"
        folder.mkdir()
        for split, count in (("train", rows), ("validation", held_out), ("test", held_out)):
            with (folder / f"{split}.jsonl").open("w") as stream:
                for index in range(count):
                    words = generator.choices("abcdefghij", k=1 + 3 * index % 11)
                    print(json.dumps({"source": " ".join(words), "target": " ".join(reversed(words))}), file=stream)
        return folder

    return make


@pytest.fixture
def no_step(monkeypatch):
    """Fails a test in which a training starts."""

    def started(*args, **kwargs):
        raise AssertionError("the training was started")

    monkeypatch.setattr("pipeline.run.TeacherForcingTrainer.train", started)


SMALL_RUN: dict[str, dict[str, Any]] = {  # a run of seconds, on reversal
    "data": {
        "path": "reversal",
        "test": "test",
        "options": {"length": 4, "symbols": 8, "rows": 64, "held_out": 8},
    },
    "tokenizer": {"kind": "word"},
    "model": TINY,
    "training": {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "logging_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "disable_tqdm": True,
    },
    "generation": {"max_new_tokens": 8},
}


def small_config(output_dir: Path, task: str = "sequence_to_sequence", **changes) -> Config:
    """Make the config of a run of seconds; keyword arguments are section=dict."""
    values = copy.deepcopy(SMALL_RUN)
    values["training"]["output_dir"] = str(output_dir)
    if task != "sequence_to_sequence":
        values["model"] = {}  # another model has other sizes
    for section, keys in changes.items():
        values[section] = {**values.get(section, {}), **keys}
    return parse_config({"task": task, **values})


@pytest.fixture
def make_config(tmp_path):
    """Makes the config of a run of seconds in the test's own folder; keyword arguments are section=dict."""
    return partial(small_config, tmp_path / "run")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """The folder of a small run that is over. For all tests of the session: read it, or take a `finished_folder`."""
    from pipeline.run import train

    return train(small_config(tmp_path_factory.mktemp("finished") / "run")).output_dir


@pytest.fixture
def finished_folder(finished_run, tmp_path) -> Path:
    """A copy of `finished_run` where `make_config` has its output folder, to change as a test likes."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


class Terminal(io.StringIO):
    """A standard error on which progress bars are drawn."""

    def isatty(self) -> bool:
        return True


def colours_of(picture: Image.Image) -> set[object]:
    """The colours that an RGB picture has."""
    counted = picture.getcolors(1 << 20)
    assert counted is not None, "there are more than a million"
    return {colour for _, colour in counted}


def write_config(make_config, path: Path, **changes) -> Path:
    """Write the config that `make_config` makes as a file."""
    path.write_text(json.dumps(make_config(**changes).model_dump()))  # JSON is YAML
    return path


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a subcommand of `teacher-forcing`, or another script, in this process, as imports take most of the time."""

    def call(name: str, *arguments, stdin: str | bytes = "") -> subprocess.CompletedProcess[str]:
        content = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        words = [str(argument) for argument in arguments]
        capsys.readouterr()
        if name in cli.make_parsers()[1]:
            code = cli.main([name, *words])
        else:
            code = importlib.import_module(f"scripts.{name}").main(words)
        return subprocess.CompletedProcess([name, *words], code, *capsys.readouterr())

    return call


@pytest.fixture
def cudnn_attention():
    """The process as it starts, in which PyTorch may choose cuDNN for attention."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)
