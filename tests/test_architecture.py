"""The rules that keep the code easy to read, held by a test."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

LAYERS = [  # each may import from those behind it, never from its own or an earlier one, but for the pairs named below
    {"pipeline.run"},
    {"pipeline.training", "pipeline.building", "pipeline.card", "pipeline.hub", "pipeline.trace_page"},
    {"pipeline.evaluation", "pipeline.generation", "pipeline.callbacks", "pipeline.tracing", "pipeline.trace_assets"},
    {"pipeline.tasks", "pipeline.loading"},
    {"pipeline.sources", "pipeline.batching", "pipeline.optimization", "pipeline.checkpointing"},
    {
        "pipeline.downloads",
        "pipeline.grouping",
        "pipeline.embeddings",
        "pipeline.augmentation",
        "pipeline.ngrams",
        "pipeline.decoding",
    },
    {"pipeline.config", "pipeline.signals", "pipeline.metrics", "pipeline.models", "pipeline.plots", "tokenizer"},
]
SOURCES = [path for folder in ("pipeline", "tokenizer", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
TOP_LEVEL = {"pipeline", "tokenizer", "configs", "scripts", "tests", "README.md", "pyproject.toml"}
BESIDE = {"Makefile", ".ci", "LICENSE", "constraints.txt"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer(module: str) -> int | None:
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    return None


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in found if name.split(".")[0] in ("pipeline", "tokenizer", "scripts", "tests")]


def test_the_sources_are_found():
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    own = module_name(path)
    for name in imports(path):
        if own.startswith("scripts"):
            assert not name.startswith(("scripts", "tests")), f"{own} imports {name}"
        elif own not in ("pipeline", "tokenizer"):
            upper, lower = layer(own), layer(name)
            assert upper is not None and lower is not None, f"{own} or {name} stands in no layer"
            within = own.rsplit(".", 1)[0] == name.split(".")[0] == "tokenizer" or own.startswith("pipeline.tasks.")
            assert lower > upper or (within and lower == upper), f"{own} imports {name}"


@pytest.mark.parametrize("path", [path for path in SOURCES if "models" in path.parts], ids=lambda path: path.name)
def test_models_are_ready_for_the_hub(path):
    """Code copied beside a checkpoint follows `from .sibling import X` alone, and must not need this package."""
    assert not imports(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level in (0, 1) and (node.level == 0 or node.module)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
            assert length <= 60, f"{path}:{node.lineno} {node.name}: {length} lines"


def test_training_names_no_task_model_or_metric():
    text = (ROOT / "pipeline" / "training.py").read_text()
    for name in ("sequence_to_sequence", "SequenceToSequence", "Seq2SeqTransformer", "sacrebleu", "exact_match"):
        assert name not in text


SHOWN = ("card.py", "translation_pipeline.py")  # which say how to load a checkpoint, and load none


def test_no_pickle_is_loaded():
    for path in SOURCES:
        for name in ("pickle", "torch.load", "joblib", "trust_remote_code=True)"):
            text = path.read_text()
            assert name not in text or (path.name in SHOWN and name.startswith("trust")), f"{path}: {name}"


def test_the_top_level_is_as_agreed():
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and path.suffix != ".egg-info"}
    names -= {"runs", "build", "dist", "__pycache__"}
    assert TOP_LEVEL <= names <= TOP_LEVEL | BESIDE
