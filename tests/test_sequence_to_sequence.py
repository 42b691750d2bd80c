import pytest

from pipeline.config import DataError
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from tokenizer.training import train


@pytest.fixture
def tokenizer():
    return train(["a b c d"] * 2, "word", 10, max_length=16)


def test_encode_and_collate(tokenizer):
    task = SequenceToSequence(tokenizer)
    features = task.encode({"source": ["a b", "a"], "target": ["c", "c d"], "row": [0, 1]})
    a, b, c, d = tokenizer.convert_tokens_to_ids(list("abcd"))
    assert [feature["input_ids"] for feature in features] == [[a, b, 2], [a, 2]]
    batch = {name: tensor.tolist() for name, tensor in task.collate(features).items()}
    assert batch == {
        "input_ids": [[a, b, 2], [a, 2, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[c, 2, -100], [c, d, 2]],
    }


def test_long_rows_are_left_out(tokenizer):
    columns = {"source": ["a b c", "a", "a b"], "target": ["a", "a b c", "a"], "row": [0, 1, 2]}
    kept = SequenceToSequence(tokenizer, max_source_length=3, max_target_length=3).encode(columns)
    assert [feature and feature["sample_id"] for feature in kept] == [None, None, 2]


@pytest.mark.parametrize("value", [None, 7, ["a"]])
def test_what_is_no_text_is_named(tokenizer, value):
    with pytest.raises(DataError, match=r"row 31: target is .*, where a text is needed"):
        SequenceToSequence(tokenizer).encode({"source": ["a", "b"], "target": ["a", value], "row": [7, 31]})
