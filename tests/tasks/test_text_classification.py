import pytest
import torch

from pipeline.config import DataConfig
from pipeline.data.rows import BadRow
from pipeline.errors import ConfigError
from pipeline.tasks.text_classification import TextClassification
from tokenizer.training import train


@pytest.fixture
def task():
    return TextClassification(train(["a b c d"] * 2, "word", 10), ["negative", "positive"], max_length=4)


def encode(task, *targets):
    return task.encode({"source": ["a b"] * len(targets), "target": list(targets), "row": list(range(len(targets)))})


def test_names_and_numbers_of_classes(task):
    features = encode(task, "positive", 1, "negative ", 0)
    assert [(each["labels"], each["target"]) for each in features] == [
        *[(1, "positive")] * 2,
        *[(0, "negative")] * 2,
    ]
    batch = task.collate(features)
    assert batch["labels"].tolist() == [1, 1, 0, 0] and batch["input_ids"].shape == (4, 3)


@pytest.mark.parametrize(
    "target, problem",
    [
        ("positiv", "target 'positiv' is no class of the training; did you mean positive?"),
        (-1, "target '-1' is no class of the training; choose from negative, positive"),
        (2, "target '2' is no class of the training; choose from negative, positive"),
        (None, "target is None, where the name or number of a class is needed"),
        (0.5, "target is 0.5, where the name or number of a class is needed"),
        ("", "target is '', where the name or number of a class is needed"),
    ],
)
def test_a_class_that_was_never_seen(task, target, problem):
    good, bad = encode(task, "positive", target)
    assert bad == BadRow("row 1", problem) and good["labels"] == 1


def test_long_and_empty_texts(task):
    columns = {"source": ["a b c d", " ", "a"], "target": ["negative"] * 3, "row": [0, 1, 2]}
    assert task.encode(columns)[:2] == [
        BadRow("row 0", "source has 5 tokens, where data.max_source_length=4"),
        BadRow("row 1", "source is empty"),
    ]


def test_classes_are_those_of_the_training_split():
    rows = [{"source": "", "target": target} for target in (10, 2, 2, None, 1)]
    data = DataConfig(path="reversal")
    assert TextClassification.sizes(data, rows)["id2label"] == {0: "1", 1: "2", 2: "10"}
    named = DataConfig(path="reversal", labels=["no", "yes"])
    assert TextClassification.sizes(named, rows)["label2id"] == {"no": 0, "yes": 1}


def test_one_class_is_none():
    data = DataConfig(path="reversal")
    with pytest.raises(ConfigError, match="there must be two classes at least; found: 1"):
        TextClassification.sizes(data, [{"target": 1}] * 3)
    with pytest.raises(ConfigError, match=r"data\.labels: name the classes"):
        TextClassification.sizes(DataConfig(path="reversal", streaming=True), [])


def test_losses_and_counts(task):
    outputs = type("Outputs", (), {"logits": torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])})
    batch = {"labels": torch.tensor([0, 1, 1])}
    expected = torch.nn.functional.cross_entropy(outputs.logits, batch["labels"], reduction="none")
    torch.testing.assert_close(task.losses(outputs, batch), expected)
    assert [each.tolist() for each in task.count(outputs, batch)] == [[1, 1, 1], [1, 1, 0]]
    torch.testing.assert_close(task.loss(outputs, batch["labels"], 6), expected.sum() / 6)
