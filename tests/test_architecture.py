"""The rules that keep the code easy to read, held by a test."""

import ast
import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

# From the ground up. A room may import from the floors below it, and from itself.
FLOORS = [
    {
        "config",
        "data_config",
        "section",
        "library_settings",
        "languages",
        "source",
        "errors",
        "manifest",
        "signals",
        "plots",
        "progress",
        "memory",
        "data",
        "decoding",
        "models",
    },
    {"tasks"},
    {"inference", "setup"},
    {"training"},
    {"exporting", "pages"},
    {"publishing", "run_folder", "serving"},
    {"rehearsal", "inspection"},
    {"run", "reference"},
    {"commands"},
    {"cli"},
]
LEAVES = (
    "section",
    "library_settings",
    "languages",
    "signals",
    "errors",
    "manifest",
    "plots",
    "progress",
    "memory",
    "models",
    "decoding",
)
GROUND: dict[str, set[str]] = {name: set() for name in LEAVES}
GROUND |= {"source": {"errors"}, "data_config": {"errors", "library_settings", "section", "source"}}
GROUND["config"] = {"data_config", "errors", "languages", "library_settings", "section", "source"}
GROUND["data"] = {"config", "data_config", "errors", "languages", "manifest", "signals"}
SOURCES = [path for folder in ("pipeline", "tokenizer", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
TOP_LEVEL = {"pipeline", "tokenizer", "configs", "scripts", "tests", "README.md", "pyproject.toml"}
BESIDE = {"Makefile", "LICENSE", "CHANGELOG.md", "SECURITY.md", "constraints.txt"}


def room(module: str) -> str:
    """`training` for `pipeline.training.trainer`, `run` for `pipeline.run`."""
    return module.split(".")[1]


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] in ("pipeline", "tokenizer", "scripts", "tests")]


def test_the_sources_are_found():
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    own = module_name(path)
    for name in imports(path):
        if own.startswith("scripts"):
            assert not name.startswith("tests"), f"{own} imports {name}"
        elif own.startswith("tokenizer"):
            assert name.startswith("tokenizer"), f"{own} imports {name}"
        elif own != "pipeline" and name.startswith("pipeline."):
            is_below = floor(name) < floor(own) or room(name) in GROUND.get(room(own), set())
            assert is_below or room(name) == room(own), f"{own} imports {name}"
        else:
            is_version = own == "pipeline.cli" and name == "pipeline"
            assert own == "pipeline" or is_version or name.startswith("tokenizer"), f"{own} imports {name}"


def test_the_document_has_the_same_floors():
    """The table "Layers" of pipeline/README.md."""
    rows = re.findall(r"^\| (\d) \| (.*?) \|", (ROOT / "pipeline" / "README.md").read_text(), re.MULTILINE)
    floors: dict[int, set[str]] = {}
    for number, rooms in rows:
        floors.setdefault(int(number), set()).update(re.findall(r"`(\w+)(?:\.py|/)`", rooms))
    assert floors == dict(enumerate(FLOORS))


def test_no_import_is_a_cycle():
    modules = {module_name(path): path for path in SOURCES}
    modules.pop("pipeline")  # offers names of the others, and imports them when they are asked for
    graph = {
        own: {name for full in imports(path) for name in (full, full.rpartition(".")[0]) if name in modules} - {own}
        for own, path in modules.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("path", [path for path in SOURCES if "models" in path.parts], ids=lambda path: path.name)
def test_models_are_ready_for_the_hub(path):
    """Code copied beside a checkpoint follows only `from .sibling import X`, and must not need this package."""
    assert not imports(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level in (0, 1) and (node.level == 0 or node.module)


def test_training_names_no_task_model_or_metric():
    paths = sorted((ROOT / "pipeline" / "training").glob("*.py"))
    text = "".join(path.read_text() for path in paths if path.name != "changes.py")  # which lists keys of a config
    for name in ("sequence_to_sequence", "SequenceToSequence", "Seq2SeqTransformer", "sacrebleu", "exact_match"):
        assert name not in text


SHOWN = ("translation_pipeline.py",)  # which says how to load a checkpoint, and loads none


def test_no_pickle_is_loaded():
    for path in SOURCES:
        for name in ("pickle", "torch.load", "joblib", "trust_remote_code=True)"):
            text = path.read_text()
            assert name not in text or (path.name in SHOWN and name.startswith("trust")), f"{path}: {name}"


def test_the_top_level_is_as_agreed():
    """Of what git tracks: a user may keep other files in a clone."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git clone")
    names = {name.split("/")[0] for name in done.stdout.splitlines()}
    assert names >= TOP_LEVEL
    assert {name for name in names - TOP_LEVEL if not name.startswith(".")} <= BESIDE


# ---- tests mirror the code

TESTS = ROOT / "tests"
TESTED_ELSEWHERE = {  # module -> where
    "pipeline/data/lane_rows.py": "tests/data, by the streams that stand on it: of one data set, and of a mixture",
    "pipeline/section.py": "tests/test_config.py, by the sections that stand on it",
}
OF_THE_WHOLE = {  # what no single module answers for
    "models/test_contract.py": "what the ecosystem's tools do with a model",
    "models/test_contract_of_others.py": "the same of the other models",
    "serving/test_clients.py": "the unmodified clients of all formats",
    "test_api.py": "the names that the package offers, and what importing it costs",
    "test_architecture.py": "the rules of this file",
    "test_docs.py": "the documents",
    "test_end_to_end.py": "a run that learns",
    "test_extending.py": "tasks and models from outside",
    "test_launchers.py": "several processes",
    "test_numerics.py": "the mathematics",
    "test_private_names.py": "what other libraries may rename",
    "test_properties.py": "whatever a config, rows or a checkpoint hold",
}


def place_of_test(module: Path) -> Path:
    """`tests/data/test_splits.py` for `pipeline/data/splits.py`, `tests/tokenizer/...` for `tokenizer/...`."""
    parts = module.relative_to(ROOT).parts
    return TESTS.joinpath(*parts[parts[0] == "pipeline" : -1], f"test_{module.name}")


def test_every_module_has_a_test_in_its_place():
    modules = [path for path in SOURCES if path.parts[len(ROOT.parts)] != "scripts" and path.name != "__init__.py"]
    missing = {str(path.relative_to(ROOT)) for path in modules if not place_of_test(path).is_file()}
    assert len(modules) > 50 and missing == {*TESTED_ELSEWHERE}


def test_every_test_has_its_module():
    known = {place_of_test(path) for path in SOURCES} | {TESTS / name for name in OF_THE_WHOLE}
    found = {*TESTS.rglob("test_*.py")} - {*TESTS.glob("common/test_*.py")}  # those are of transformers
    assert {str(path.relative_to(TESTS)) for path in found - known} == set()
    assert all((TESTS / name).is_file() for name in OF_THE_WHOLE)
