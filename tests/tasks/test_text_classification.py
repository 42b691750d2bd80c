import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.modeling_outputs import SequenceClassifierOutput

from pipeline.config import DataConfig
from pipeline.data.rows import BadRow, ClassName
from pipeline.errors import ConfigError, DataError
from pipeline.inference.generation import generate
from pipeline.run import train
from pipeline.tasks.config_loading import parse_config
from pipeline.tasks.text_classification import TextClassification
from pipeline.tasks.trained_model import load_trained
from tests.tasks.conftest import rewind
from tokenizer.training import train as train_tokenizer


@pytest.fixture
def task():
    return TextClassification(train_tokenizer(["a b c d"] * 2, "word", 10), ["negative", "positive"])


def encode(task, *targets):
    return task.encode({"source": ["a b"] * len(targets), "target": list(targets), "row": list(range(len(targets)))})


def config(labels=None, **data):
    sections = {"data": {"path": "reversal", **data}, "text_classification": {"labels": labels}}
    return parse_config({"task": "text_classification", **sections})


def test_names_and_numbers_of_classes(task):
    features = encode(task, "positive", 1, "negative ", 0)
    assert [(feature["labels"], feature["target"]) for feature in features] == [
        *[(1, "positive")] * 2,
        *[(0, "negative")] * 2,
    ]
    batch = task.collate(features)
    assert batch["labels"].tolist() == [1, 1, 0, 0] and batch["input_ids"].shape == (4, 3)


@pytest.mark.parametrize(
    "target, problem",
    [
        ("positiv", "target 'positiv' is not a class of the training split; did you mean positive?"),
        (-1, "target '-1' is not a class of the training split; choose from negative, positive"),
        (2, "target '2' is not a class of the training split; choose from negative, positive"),
        (None, "target is None, where the name or number of a class is needed"),
        (0.5, "target '0.5' is not a class of the training split; choose from negative, positive"),
        (float("nan"), "target is nan, where the name or number of a class is needed"),
        (b"x" * 1000, f"target is {str(b'x' * 1000)[:100]}..., where the name or number of a class is needed"),
        ([1], "target is [1], where the name or number of a class is needed"),
        ("", "target is '', where the name or number of a class is needed"),
    ],
)
def test_a_class_that_was_never_seen(task, target, problem):
    good, bad = encode(task, "positive", target)
    assert bad == BadRow("row 1", problem) and good["labels"] == 1


@pytest.mark.parametrize(
    "targets, names",
    [
        ([True, False, True], ["False", "True"]),
        ([0.5, 10.0, 2.0], ["0.5", "2.0", "10.0"]),
        (["01", "1", "A1", "1e0", "nan", "10"], ["01", "1", "10", "1e0", "A1", "nan"]),
        ([ClassName.of(["pos", "neg", "none"], 1), ClassName.of(["pos", "neg", "none"], 0)], ["pos", "neg", "none"]),
    ],
)
def test_kinds_of_names(task, targets, names):
    """A bool, a fraction or text is a class as it is written; a data set that numbers its classes has their order."""
    model = TextClassification.model_settings(config(), [{"target": target} for target in targets])
    assert list(model["label2id"]) == names
    task.labels = names
    assert [feature["target"] for feature in encode(task, *targets)] == [str(target) for target in targets]


def test_a_number_that_python_does_not_write(task):
    (bad,) = encode(task, 10**5000)
    assert bad.reason == "target is a number with thousands of digits, where the name or number of a class is needed"


def test_a_number_is_a_place_only_where_classes_have_other_names(task):
    classes = [ClassName.of(["bad", "good"], number) for number in (0, 1)]
    features = encode(task, "1", 0, True, 1.0, *classes)
    assert [feature["labels"] for feature in features] == [1, 0, 1, 1, 0, 1]
    task.labels = ["1", "2", "3"]
    first, bad = encode(task, 1, 0)
    assert first["labels"] == 0 and bad.reason.startswith("target '0' is not a class of the training split")


def test_long_and_empty_texts(task):
    columns = {"source": ["a b c d", " ", "a"], "target": ["negative"] * 3, "row": [0, 1, 2]}
    limits = DataConfig(path="x", max_source_length=4)
    assert task.encode(columns, limits)[:2] == [
        BadRow("row 0", "source has 5 tokens, where data.max_source_length=4"),
        BadRow("row 1", "source is empty"),
    ]


def test_classes_are_those_of_the_training_split():
    rows = [{"source": "", "target": target} for target in (10, 2, 2, None, 1)]
    assert TextClassification.model_settings(config(), rows)["id2label"] == {0: "1", 1: "2", 2: "10"}
    assert TextClassification.model_settings(config(labels=["no", "yes"]), rows)["label2id"] == {"no": 0, "yes": 1}


def test_corpora_that_number_their_classes_have_those_of_all():
    mix = config(mix={"a": {"path": "reversal"}, "b": {"path": "reversal"}})
    numbered = [ClassName.of(names, 0) for names in (["y", "z"], ["x", "z"])]
    rows = [{"target": target} for target in [*numbered, "w", 1, "y"]]
    assert list(TextClassification.model_settings(mix, rows)["label2id"]) == ["y", "z", "x", "w"]


def test_one_class_is_none():
    with pytest.raises(ConfigError, match="there must be at least two classes; found: 1; is target the column"):
        TextClassification.model_settings(config(), [{"target": 1}] * 3)
    with pytest.raises(ConfigError, match=r"text_classification\.labels: name the classes"):
        TextClassification.model_settings(config(streaming=True), [])


def test_losses_and_counts(task):
    outputs = SequenceClassifierOutput(logits=torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]))
    batch = {"labels": torch.tensor([0, 1, 1])}
    expected = torch.nn.functional.cross_entropy(outputs.logits, batch["labels"], reduction="none")
    torch.testing.assert_close(task.losses(outputs, batch), expected)
    assert [counts.tolist() for counts in task.count_items(outputs, batch)] == [[1, 1, 1], [1, 1, 0]]
    torch.testing.assert_close(task.loss(outputs, batch["labels"], 6), expected.sum() / 6)


def test_each_text_has_the_log_probability_of_its_class(task):
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    features = task.encode({"source": ["a", "b"], "target": [task.labels[1]] * 2, "row": [0, 4]})
    batch = task.collate(features)
    sums = task.score(lambda **inputs: SequenceClassifierOutput(logits=logits), batch)
    rows = task.score_rows(features, sums)
    assert [(row.row, row.items) for row in rows] == [(0, 1), (4, 1)]
    assert [row.log_probability for row in rows] == pytest.approx(logits.log_softmax(-1)[:, 1].tolist())


def test_classification(make_task):
    result = train(make_task("text_classification", text_classification={"labels": ["without", "with"]}))
    folder = result.output_dir
    assert set(result.scores["test"]) == {"loss", "accuracy", "macro_f1"}
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "without", 1: "with"}
    assert not (folder / "generation_config.json").exists()
    classify = pipeline("text-classification", model=str(folder))
    answer = classify("a b c")
    own, task = load_trained(folder)
    assert [answer[0]["label"]] == generate(own, task, ["a b c"])
    inputs = AutoTokenizer.from_pretrained(folder)("a b c", return_tensors="pt")
    probability = model(input_ids=inputs["input_ids"]).logits.softmax(-1).max().item()
    assert answer[0]["score"] == pytest.approx(probability, abs=1e-5)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card and "class in column `label` of the text" in card
    assert not any(word in model.config.to_dict() for word in ("custom_pipelines", "embeddings"))
    assert result.last is not None
    right = sum(answer.prediction == answer.reference for answer in result.last.predictions) / 8
    assert result.scores["test"]["accuracy"] == right


def test_classes_do_not_reach_the_vocabulary(finished):
    tokenizer = AutoTokenizer.from_pretrained(finished("text_classification").output_dir)
    assert set(tokenizer.get_vocab()) == {"<pad>", "<s>", "</s>", "<unk>", *"abcdefgh"}


def test_an_unseen_class_in_validation(make_task, tmp_path):
    config = make_task("text_classification")
    with (tmp_path / "data" / "validation.jsonl").open("a") as stream:
        print(json.dumps({"text": "a b", "label": 7}), file=stream)
    with pytest.raises(DataError, match=r"validation\.jsonl:9: target '7' is not a class of the training split"):
        train(config)


@pytest.mark.parametrize("trainable", ["both", *(pytest.param(it, marks=pytest.mark.slow) for it in (True, False))])
def test_word_vectors(make_task, tmp_path, trainable):
    """They join the vocabulary, are kept or tuned, and are not needed any more when the run goes on."""
    path = tmp_path / "vectors.txt"
    path.write_text("".join(f"{word} {n} {n * n} 1 0.5\n" for n, word in enumerate(["a", "b", "unseen"])))
    config = make_task(
        "text_classification",
        tokenizer={"kind": "word", "words": str(path)},
        model={"embeddings": {"path": str(path), "trainable": trainable}},
    )
    folder = train(config).output_dir
    before = load_file(folder / "checkpoint-2" / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    learned, static = "encoder.embed_tokens.weight", "encoder.static_tokens.weight"
    assert torch.equal(before[learned], after[learned]) is not trainable
    assert (static in after) is (trainable == "both")
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    assert "unseen" in vocabulary
    if static in after:
        assert torch.equal(before[static], after[static])
        with_vector = after[static].any(-1).nonzero().squeeze(1).tolist()
        assert sorted(with_vector) == sorted(vocabulary[word] for word in ("a", "b", "unseen"))
    rewind(folder, 2)
    path.unlink()
    train(config)
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in after.items())


@pytest.mark.parametrize("given", ["glove.txt", {"path": "x"}, {"path": "x", "trainable": 1}])
def test_word_vectors_wrongly_asked_for(make_task, given):
    with pytest.raises(ConfigError, match=r"model\.embeddings: write \{path: FILE, trainable: true\}"):
        train(make_task("text_classification", model={"embeddings": given}))


def test_word_vectors_beside_learned_ones_need_a_model_for_them(make_task):
    model = {"embeddings": {"path": "x", "trainable": "both"}}
    with pytest.raises(ConfigError, match=r"model\.embeddings: language_modeling has no place for both"):
        train(make_task("language_modeling", model=model))
