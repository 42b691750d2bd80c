import datasets
import pytest

from pipeline.data.readers.base import SplitSpec
from tests.data.folders import EXPECTED, ROWS, open_folder, texts, write_jsonl, write_parquet


@pytest.mark.parametrize(
    "text, spec, is_file",
    [
        ("train", SplitSpec("train"), False),
        ("train[:90%]", SplitSpec("train", "[:90%]"), False),
        ("valid.jsonl", SplitSpec("valid.jsonl"), True),
        ("train-*.jsonl[10:20]", SplitSpec("train-*.jsonl", "[10:20]"), True),
        ("train*", SplitSpec("train*"), True),
    ],
)
def test_names_of_splits(text, spec, is_file):
    assert SplitSpec.parse(text) == spec and spec.is_file == is_file and str(spec) == text


@pytest.mark.parametrize("writer, name", [(write_jsonl, "train.jsonl"), (write_parquet, "train.parquet")])
def test_files_are_looked_for_once(tmp_path, monkeypatch, writer, name):
    """Though two readers ask for them, as on the Hub that takes several calls."""
    calls = []
    make_builder = datasets.load_dataset_builder

    def count(*args, **kwargs):
        calls.append(args)
        return make_builder(*args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset_builder", count)
    writer(tmp_path / name, ROWS)
    assert texts(open_folder(tmp_path)) == EXPECTED and len(calls) == 1
