"""What the documents say holds: their blocks run, and their links lead somewhere. tests/test_reference.py has the keys.

The blocks run in the order of the documents, in one folder that looks like a clone, on models and data of toy size. A
block behind `<!-- not run: REASON -->` is only parsed. Targets of make are only looked up here: the workflow tests.yml
runs them.
"""

import ast
import contextlib
import dataclasses
import importlib.util
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.cli import main, make_parsers
from pipeline.data.readers import READERS
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.registry import MODELS, TASKS
from tests.conftest import ROOT

WITH_BLOCKS = [
    "README.md",
    "configs/README.md",
    "configs/accelerate/README.md",
    "configs/recipes/back_translation/README.md",
    "configs/recipes/distillation/README.md",
    "pipeline/README.md",
    "pipeline/exporting/README.md",
    "pipeline/serving/README.md",
    "scripts/BENCHMARKS.md",
    ".github/CONTRIBUTING.md",
]
WITH_LINKS = [*WITH_BLOCKS, "configs/REFERENCE.md", "CHANGELOG.md", ".github/PULL_REQUEST_TEMPLATE.md"]
YAML_FILES = sorted([*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"])

TOY_RUN = [
    *(f"training.{key}=2" for key in ("max_steps", "eval_steps", "save_steps")),
    *("training.warmup_steps=1", "training.logging_steps=1", "training.disable_tqdm=true"),
    *("tokenizer.vocab_size=300", "data.batch_tokens=null", "generation.max_new_tokens=8"),
]
TOY_MODEL = {
    "sequence_to_sequence": "model.d_model=16 model.attention_heads=4 model.encoder_layers=1 model.decoder_layers=1",
    "text_classification": "model.d_model=16 model.attention_heads=4",
    "language_modeling": "model.embedding_size=16 model.hidden_size=16 training.per_device_train_batch_size=2",
    "forecasting": "model.d_model=16 model.context_length=48 model.prediction_length=4 model.encoder_layers=1",
}


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a document, and why it is not run, where it says so."""

    document: str
    number: int
    language: str
    text: str
    reason: str

    @property
    def file(self) -> str:
        """The name that the first line of a YAML block gives it."""
        return match[1] if (match := re.match(r"# (\S+\.yaml)\n", self.text)) else ""

    def __str__(self) -> str:
        return f"{self.document}:{self.number}:{self.language}"


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks_of(document: str) -> list[Block]:
    fences = re.findall(r"(?:^<!-- not run: (.+?) -->\n)?^```(\w*)\n(.*?)^```$", read(document), re.M | re.S)
    return [Block(document, number, language, text, reason) for number, (reason, language, text) in enumerate(fences)]


BLOCKS = [block for document in WITH_BLOCKS for block in blocks_of(document)]
SHOWN = ("mermaid", "text")  # a picture, and what a command prints
ELSEWHERE = "tests/test_extending.py"  # runs the walk-throughs of pipeline/README.md, each in a new process
PARSED = [block for block in BLOCKS if block.reason and ELSEWHERE not in block.reason and block.language not in SHOWN]
# Launching processes takes long, and other tests launch them in the same way.
RUN = [
    pytest.param(block, id=str(block), marks=[pytest.mark.slow] if "torchrun" in block.text else [])
    for block in BLOCKS
    if not block.reason and block.language not in SHOWN
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A clone in looks, with small data sets and what `make train` leaves."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("scripts", "configs", "pipeline", "tokenizer"):
        (folder / name).symlink_to(ROOT / name)
    rows = [f'{{"en": "a dog runs {n}", "fr": "un chien court {n}"}}' for n in range(20)]
    reviews = [f'{{"text": "film {n}", "label": "{("negative", "positive")[n % 2]}"}}' for n in range(20)]
    for name, lines in (("multi30k", rows), ("my_data", rows), ("reviews", reviews)):
        (folder / name).mkdir()
        for split in ("train", "validation", "test"):
            (folder / name / f"{split}.jsonl").write_text("\n".join(lines))
    (folder / "texts.txt").write_text("1 2 3\n4 5 6\n")
    (folder / "glove.txt").write_text("dog 0.1 0.2 0.3 0.4\nchien 0.5 0.6 0.7 0.8\n")
    (folder / "novel.txt").write_text("\n\n".join(f"It was day {n}, and a dog ran." for n in range(100)))
    values = [f"{n % 24},{n % 7}" for n in range(400)]
    (folder / "values.csv").write_text("\n".join(["temperature,humidity", *values]))
    for block in BLOCKS:
        if block.file:
            (folder / block.file).write_text(block.text)
    with contextlib.chdir(folder):
        command(["train", "configs/reversal.yaml"])
    return folder


@pytest.mark.parametrize("block", RUN)
def test_block_runs(folder, block, monkeypatch):
    monkeypatch.chdir(folder)
    if block.file:  # a line of bash below it trains it
        assert any(f"teacher-forcing train {block.file}" in other.text for other in blocks_of(block.document))
    elif block.language == "yaml":
        Path("block.yaml").write_text(block.text)
        command(["train", "block.yaml", f"training.output_dir=runs/{block.number}"])
    elif block.language == "python":
        with tables_kept():
            exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
    else:
        for line in block.text.splitlines():
            run_line(shlex.split(line, comments=True))


@contextlib.contextmanager
def tables_kept():
    """Undo what a block adds to the tables of tasks, models and readers."""
    tables: list[dict] = [TASKS, MODELS]
    before, readers = [dict(table) for table in tables], list(READERS)
    yield
    for table, lines in zip(tables, before, strict=True):
        table.clear()
        table.update(lines)
    READERS[:] = readers


def run_line(words: list[str]) -> None:
    if "<" in words:
        text = Path(words.pop(words.index("<") + 1)).read_text()
        words.remove("<")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
            return run_line(words)
    if words[0] == "teacher-forcing":  # in this process, as imports take most of a short command's time
        return command(words[1:])
    if words[0] == "python" and words[1].startswith("scripts/"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words[1:])
            assert not script(words[1]).main()
        return None
    if words[0] == "make":
        return execute(["make", "--dry-run", *words[1:]], cwd=ROOT)
    assert words[0] in ("accelerate", "torchrun"), f"a block that nobody runs: {words}"
    return execute([*words, *toy_overrides(words)])


def command(words: list[str]) -> None:
    """Run a subcommand of `teacher-forcing`; a training on toy scale."""
    assert main([*words, *toy_overrides(words)] if words[0] == "train" else words) == 0


def toy_overrides(words: list[str]) -> list[str]:
    """Return what makes the run of a config in `words` one of seconds."""
    config = next(word for word in words if word.endswith(".yaml") and "accelerate" not in word)
    values = YAML(typ="safe").load(Path(config).read_text())
    rows = ["data.options.rows=500", "data.options.held_out=50"] if values["data"]["path"] == "reversal" else []
    return [*TOY_RUN, *TOY_MODEL[values.get("task", "sequence_to_sequence")].split(), *rows]


def execute(words: list[str], cwd: Path | None = None) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{words}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"


def script(path: str):
    """Import a script by its path below the root."""
    specification = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# ---- blocks that need a GPU, a network or minutes


@pytest.mark.parametrize("block", PARSED, ids=str)
def test_block_that_is_not_run_is_valid(folder, block, monkeypatch):
    monkeypatch.chdir(folder)
    if block.language == "python":
        ast.parse(block.text)
    elif block.language == "yaml":
        Path("block.yaml").write_text(block.text)
        load_config("block.yaml")
    else:
        execute(["bash", "-n", "-c", block.text])
        for line in block.text.splitlines():
            parse_line(shlex.split(line, comments=True), monkeypatch)


def parse_line(words: list[str], monkeypatch) -> None:
    """Check that the command takes these options, and that the configs exist; of other programs, nothing."""
    for word in words:
        assert not word.startswith("configs/") or Path(word).is_file(), word
    if words and words[0] == "make":
        return execute(["make", "--dry-run", *words[1:]], cwd=ROOT)
    if "pipeline.cli" in words or (words and words[0] == "teacher-forcing"):
        name, *arguments = words[words.index("pipeline.cli" if "pipeline.cli" in words else "teacher-forcing") + 1 :]
    elif path := next((word for word in words if re.fullmatch(r"scripts/\w+\.py", word)), ""):
        name, arguments = path, words[words.index(path) + 1 :]
    else:
        return None
    subcommands = make_parsers()[1]
    if name in ("scripts/train.py", *subcommands):
        subcommands["train" if name == "scripts/train.py" else name].parse_intermixed_args(arguments)
    else:
        parse_only(name, arguments, monkeypatch)
    return None


class Parsed(Exception):
    """A script has read its arguments."""


def parse_only(path: str, arguments: list[str], monkeypatch) -> None:
    module = script(path)
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(ArgumentParser, name)

        def parse_and_stop(parser, *words, parse=parse):
            parse(parser, *words)
            raise Parsed

        monkeypatch.setattr(ArgumentParser, name, parse_and_stop)
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    with pytest.raises(Parsed):
        module.main()
    monkeypatch.undo()


def test_every_block_is_looked_at():
    assert len(RUN) > 20 and len(PARSED) > 8
    assert {block.language for block in BLOCKS} <= {"bash", "python", "yaml", *SHOWN}
    for document in WITH_BLOCKS:
        reasons = [block.reason for block in blocks_of(document) if block.reason]
        assert read(document).count("<!-- not run") == len(reasons), f"{document}: a marker without a block below it"


def test_the_readme_opens_with_the_two_commands():
    assert [line.split("#")[0].strip() for line in BLOCKS[0].text.splitlines()] == ["make train", "make test"]


def test_the_readme_is_short():
    text = read("README.md")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1200


# ---- links

LINK = r"\]\(([^)\s]+)\)"


def without_blocks(document: str) -> str:
    return re.sub(r"^```.*?^```$", "", read(document), flags=re.M | re.S)


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to headings: lower case, no punctuation, hyphens for spaces."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", WITH_LINKS)
def test_links_lead_somewhere(document):
    for link in re.findall(LINK, without_blocks(document)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), f"{document}: {link}"
        assert not anchor or anchor in anchors(target), f"{document}: {link}: no such heading"


def test_links_are_found():
    assert len(re.findall(LINK, without_blocks("README.md"))) > 10


# ---- configs


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_config_says_how_it_is_run(path):
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    header = "".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert f"# Command:   teacher-forcing train configs/{path.name}\n" in header
    assert "# Hardware:  " in header and "# Result:    " in header
    assert f"`{path.name}`" in read("configs/README.md")


# ---- workflows and templates


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_yaml_files_load(path):
    assert YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def test_versions_are_those_of_the_project():
    load = YAML(typ="safe").load
    hooks = load(read(".pre-commit-config.yaml"))["repos"]
    [ruff] = re.findall(r"^ruff==(.+)$", read("constraints.txt"), re.M)
    assert next(repo for repo in hooks if "ruff" in repo["repo"])["rev"] == f"v{ruff}"
    pythons = load(read(".github/workflows/tests.yml"))["jobs"]["tests"]["strategy"]["matrix"]["python"]
    [(first, last)] = re.findall(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', read("pyproject.toml"))
    assert pythons == [f"3.{minor}" for minor in range(int(first), int(last))]


def test_the_workflow_runs_the_commands_of_the_readme():
    steps = YAML(typ="safe").load(read(".github/workflows/tests.yml"))["jobs"]["tests"]["steps"]
    assert {"make check", "make test", "make train"} <= {step.get("run") for step in steps}
