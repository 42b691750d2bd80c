"""The public names of the package: they are offered lazily, and each does what it says."""

import importlib
import pkgutil
import subprocess
import sys

import pytest
from huggingface_hub import HfApi

import pipeline
from pipeline.errors import DataError
from tests.conftest import ROOT, SMALL_RUN


def test_every_public_name_is_a_function_after_every_submodule_was_imported():
    """A submodule that bore the name of a public function would take its place."""
    for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        importlib.import_module(module.name)
    for name in set(pipeline.__all__) - {"__version__"}:
        assert callable(getattr(pipeline, name)), name
        assert getattr(pipeline, name).__doc__, name
    assert pipeline.__version__[0].isdigit() and set(pipeline.__all__) <= set(dir(pipeline))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = pipeline.trian


def test_importing_the_package_imports_nothing_heavy():
    code = "import pipeline, sys; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_from_a_config_to_the_hub(make_config, finished_folder, tmp_path, hub_name):
    """Each public function once, on a small run; `train` reports it, as it is finished."""
    (tmp_path / "small.yaml").write_text(make_config().to_yaml())
    config = pipeline.load_config(tmp_path / "small.yaml")
    result = pipeline.train(config)
    assert result.was_finished and result.output_dir == finished_folder and "loss" in result.scores["test"]
    model, task = pipeline.load_trained(result.output_dir)
    assert len(pipeline.generate(model, task, ["1 2 3 4", "4 3 2 1"])) == 2
    rows = [{"source": "1 2 3 4", "target": "4 3 2 1"}, {"source": "5 5 1 2", "target": "2 1 5 5"}]
    evaluation = pipeline.evaluate(model, task, rows, metrics=["exact_match"])
    assert set(evaluation.scores) == {"loss", "perplexity", "token_accuracy", "exact_match"}
    assert [prediction.reference for prediction in evaluation.predictions] == ["4 3 2 1", "2 1 5 5"]
    with pytest.raises(DataError, match=r"rows: row 1: target is None, where a text is needed"):
        pipeline.evaluate(model, task, [*rows[:1], {"source": "1", "target": None}])
    with pytest.raises(DataError, match=r"rows: there is no column 'target'; choose from source"):
        pipeline.evaluate(model, task, [{"source": "1 2 3"}])
    with pytest.raises(DataError, match="rows: there are no rows"):
        pipeline.evaluate(model, task, [])
    assert pipeline.export(result.output_dir, "transformers") == finished_folder / "exports" / "transformers"
    pipeline.publish(result.output_dir, hub_name)
    assert "model.safetensors" in HfApi().list_repo_files(hub_name)


def test_evaluation_is_that_of_the_run(finished_folder):
    """Rows from Python give the scores that the run gave on the same split."""
    from pipeline.data.readers.generated import reversal

    model, task = pipeline.load_trained(finished_folder)
    rows = reversal("test", **SMALL_RUN["data"]["options"])
    scores = pipeline.evaluate(model, task, rows, metrics=["exact_match"]).scores
    expected = importlib.import_module("pipeline.run_folder").RunFolder(finished_folder).read_scores()["test"]
    assert scores == pytest.approx(expected)
