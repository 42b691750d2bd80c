"""transformers' own tests of models, from a source tree that TRANSFORMERS_SRC names."""

import importlib
import importlib.util
import inspect
import os
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "transformers_tests"  # theirs is called `tests`, which is the name of ours


def transformers_tests(module: str) -> Any:
    """Import a module of transformers' tests, such as "test_modeling_common".

    Skips the module that asks where no tree is named, or where the named one lacks it.
    """
    folder = os.environ.get("TRANSFORMERS_SRC")
    if not folder:
        pytest.skip("TRANSFORMERS_SRC names no source tree of transformers", allow_module_level=True)
    if PACKAGE not in sys.modules:
        _load(Path(folder, "tests"))
    return importlib.import_module(f"{PACKAGE}.{module}")


def _load(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None or not (folder / "__init__.py").is_file():
        raise FileNotFoundError(f"TRANSFORMERS_SRC: {folder} is not the folder of transformers' tests")
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)
    export_tests = importlib.import_module(f"{PACKAGE}.exporters.test_export")
    sys.modules["tests.exporters.test_export"] = export_tests  # the one module that theirs import by the full name
    if ".program" not in inspect.getsource(export_tests):
        _expect_exported_models(export_tests)


def _expect_exported_models(tests: Any) -> None:
    """Let tests of exporters that expect programs take what the exporters give since v5.23: models that hold them."""
    exporter: Any = tests.DynamoExporter

    class DynamoExporter(exporter):
        def export(self, *args, **kwargs):
            return super().export(*args, **kwargs).program

    tests.DynamoExporter = DynamoExporter
    tests._run_onnx_program = lambda exported, inputs: tests.get_leaf_tensors(exported(**inputs))
