"""Which rows a model and its export are compared on."""

import json

import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.exporting.rows import choose_rows
from pipeline.tasks.trained_model import load_trained


@pytest.fixture
def task(finished_run):
    return load_trained(finished_run)[1]


@pytest.fixture
def write_rows(tmp_path):
    def write(*rows, name="rows.jsonl"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    return write


def test_the_first_rows_of_the_validation_split(task, make_config):
    config = make_config(evaluation={"sacrebleu": {"tokenize": "char"}})
    rows = choose_rows(task, config, None, num_rows=5, positions=512)
    assert len(rows.features) == 5 and rows.has_references and rows.num_left_out == 0
    assert rows.origin == "reversal (validation)" and rows.bleu.tokenize == "char"
    everything = choose_rows(task, config, None, num_rows=None, positions=512)
    assert len(everything.features) == 8 and everything.features[:5] == rows.features


def test_a_file_with_the_columns_of_the_config(task, make_config, write_rows):
    config = make_config(data={"source": "en", "target": "fr"})
    rows = choose_rows(task, config, write_rows({"en": "1 2", "fr": "2 1"}), None, 512)
    assert rows.features[0]["target"] == "2 1" and rows.has_references and rows.origin == "rows.jsonl"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.txt"])
def test_a_file_without_targets_or_config(task, write_rows, name):
    file = write_rows("1 2", "3", name=name) if name == "rows.txt" else write_rows({"source": "1 2"}, {"source": "3"})
    rows = choose_rows(task, None, file, None, 512)
    assert [row["source"] for row in rows.features] == ["1 2", "3"] and not rows.has_references


def test_rows_longer_than_any_in_training_are_left_out(task, write_rows):
    file = write_rows({"source": "1 2 3 4", "target": "1"}, {"source": "1", "target": "1"})
    rows = choose_rows(task, None, file, None, positions=4)  # and the end token
    assert [row["source"] for row in rows.features] == ["1"] and rows.num_left_out == 1
    with pytest.raises(DataError, match=r"all sources have more than 1 tokens; give others: --rows FILE"):
        choose_rows(task, None, file, None, positions=1)


def test_without_rows_the_message_names_the_option(task, make_config, tmp_path):
    gone = make_config(data={"path": str(tmp_path / "gone"), "options": {}})
    for config, file, message in (
        (None, None, r"there is no run.yaml .*: --rows FILE"),
        (make_config(data={"validation": None}, training={"eval_strategy": "no"}), None, r"validation.*--rows FILE"),
        (gone, None, r"gone.*; or give other rows to compare on: --rows FILE"),
        (None, tmp_path / "gone.jsonl", r"--rows .*gone.jsonl: no such file"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            choose_rows(task, config, file, None, 512)
