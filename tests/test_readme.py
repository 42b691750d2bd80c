"""Every block of the README runs, in order, in one folder, on a model and data of toy size."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import load
from tests.conftest import ROOT

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
SMALL = (
    "training.max_steps=2 training.warmup_steps=0 training.eval_steps=2 training.save_steps=2 training.logging_steps=1"
)
SMALL += " model.d_model=16 model.attention_heads=4 tokenizer.vocab_size=300 data.batch_tokens=null"
SMALL += " generation.max_new_tokens=8"
FEW_ROWS = ["data.options.rows=500", "data.options.held_out=50"]  # of reversal


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A clone in looks, with a data set, a list of texts and what `make train` leaves."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("scripts", "configs", "pipeline", "tokenizer"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "multi30k").mkdir()
    for split in ("train", "validation", "test"):
        rows = [f'{{"en": "a dog runs {number}", "fr": "un chien court {number}"}}' for number in range(20)]
        (folder / "multi30k" / f"{split}.jsonl").write_text("\n".join(rows))
    (folder / "texts.txt").write_text("1 2 3\n4 5 6\n")
    execute(["scripts/train.py", "configs/reversal.yaml", *SMALL.split(), *FEW_ROWS], folder)
    return folder


def execute(arguments: list[str], folder: Path, **options) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if arguments[0].endswith(".py"):
        arguments = [sys.executable, *arguments]
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def test_the_readme_opens_with_the_two_commands():
    assert [line.split("#")[0].strip() for line in BLOCKS[0][1].splitlines()] == ["make train", "make test"]
    assert {language for language, _ in BLOCKS} == {"bash", "python", "yaml"}


# Launching processes takes long, and tests/test_launchers.py launches them in the same way.
PARAMETERS = [
    pytest.param(language, text, id=f"{language}{n}", marks=[pytest.mark.slow] if "torchrun" in text else [])
    for n, (language, text) in enumerate(BLOCKS)
]


@pytest.mark.parametrize("language, text", PARAMETERS)
def test_block_runs(folder, language, text, command, monkeypatch):
    monkeypatch.chdir(folder)
    if language == "yaml":
        (folder / "block.yaml").write_text(text)
        assert load(folder / "block.yaml").data.path
    elif language == "python":
        execute([sys.executable, "-c", text], folder)
    else:
        for line in text.splitlines():
            run_line(shlex.split(line, comments=True), folder, command)


def run_line(words: list[str], folder: Path, command) -> None:
    if words[0] == "make":  # the other tests do what these targets do: here they must exist
        return execute(["make", "--dry-run", *words[1:]], ROOT)
    if "scripts/benchmark.py" in words:  # takes minutes; tests/scripts/test_benchmark.py runs it with the slow tests
        return execute([words[1], "--help"], folder)
    stdin: str | None = None
    if "<" in words:
        stdin = (folder / words.pop(words.index("<") + 1)).read_text()
        words.remove("<")
    if "scripts/train.py" in words:
        words += SMALL.split()
        if "configs/reversal.yaml" in words:
            words += FEW_ROWS
    if words[0] == "python":  # in this process, as imports take most of a short command's time
        subcommand = {"train_tokenizer": "tokenizer"}.get(Path(words[1]).stem, Path(words[1]).stem)
        done = command(subcommand, *words[2:], stdin=stdin or "")
        assert done.returncode == 0, done.stderr
    else:
        execute(words, folder, input=stdin)
