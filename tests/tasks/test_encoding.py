"""A whole split for evaluation: nothing is left out but what is said."""

import pytest
from datasets import Dataset

from pipeline.errors import DataError
from pipeline.run import train
from pipeline.tasks.encoding import encode_rows, encode_split
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from tokenizer.training import train as train_tokenizer

SOURCES = ["a b", "c " * 300 + "d", "d"]


@pytest.fixture
def task() -> SequenceToSequence:
    return SequenceToSequence(train_tokenizer(["a b c d 1 2 3 4"] * 2, "word", 20, max_length=16))


def make_rows(targets: list, streaming: bool = False):
    rows = Dataset.from_dict({"source": SOURCES, "target": targets})
    return rows.to_iterable_dataset() if streaming else rows


@pytest.mark.parametrize("streaming", [False, True])
def test_no_row_is_left_out_for_its_length(task, streaming):
    features = encode_rows(task, make_rows(["b", "c", "d"], streaming))
    assert [feature["sample_id"] for feature in features] == [0, 1, 2]
    assert [len(feature["input_ids"]) for feature in features] == [3, 302, 2]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_bad_row_is_an_error_or_is_skipped(task, streaming, caplog):
    rows = make_rows(["b", None, " "], streaming)
    with pytest.raises(DataError, match=r"^data: test: row 1: target is None, where a text is needed; fix or"):
        encode_rows(task, rows, "data: test")
    assert not caplog.records
    assert [feature["sample_id"] for feature in encode_rows(task, rows, "data: test", "skip")] == [0]
    assert "data: test: 2 bad rows are left out, such as row 1: target is None" in caplog.text


def test_no_split_has_no_features(make_config, task):
    assert encode_split(make_config(data={"test": None}), task, "test") == []


def test_a_split_is_opened_by_its_name(make_config, task):
    features = encode_split(make_config(), task, "test")
    assert len(features) == 8 and {"input_ids", "labels", "sample_id"} <= features[0].keys()
    opened = encode_split(make_config(), task, "validation")
    assert [feature["input_ids"] for feature in opened] != [feature["input_ids"] for feature in features]


def test_a_null_in_the_data_is_named(make_config, make_pairs, no_step):
    folder = make_pairs()
    with (folder / "validation.jsonl").open("a") as stream:
        print('{"source": "a", "target": null}', file=stream)
    with pytest.raises(DataError, match=r"validation.jsonl:7: target is None"):
        train(make_config(data={"path": str(folder), "options": {}}))


def test_a_split_of_which_nothing_is_left_is_an_error(task):
    with pytest.raises(DataError, match=r"^data: test: none of the 3 rows can be used; the first: row 0: "):
        encode_rows(task, make_rows([None, None, " "]), "data: test", "skip")
