import math

import pytest
import torch
from transformers import GenerationConfig

from pipeline.errors import ConfigError, DataError
from pipeline.inference.evaluation import evaluate, evaluate_features, groups_of
from pipeline.inference.generation import generate
from pipeline.inference.metrics import exact_match
from pipeline.tasks.encoding import SET
from tests.inference.conftest import TEXTS


def test_loss_weighs_every_token_alike(make_model, task, features):
    """At any batch size the same numbers, equal to a plain loop over single samples."""
    model = make_model(vocab_size=len(task.tokenizer), label_smoothing=0.1).train()
    total = correct = count = 0
    for feature in features:
        labels = torch.tensor([feature["labels"]])
        with torch.no_grad():
            logits = model.eval()(torch.tensor([feature["input_ids"]]), labels=labels).logits[0]
        total -= logits.log_softmax(-1).gather(-1, labels[0][:, None]).sum().item()
        correct += logits.argmax(-1).eq(labels[0]).sum().item()
        count += labels.numel()
    model.train()
    for batch_size in (1, 3, 7):
        scores = evaluate_features(model, task, features, batch_size=batch_size).scores
        assert scores["loss"] == pytest.approx(total / count, rel=1e-5)
        assert scores["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
        assert scores["token_accuracy"] == correct / count
    assert model.training  # as it was


def test_each_row_has_its_log_probability(make_model, task, features):
    """That of a pair alone, in data order; all together are the loss."""
    model = make_model(vocab_size=len(task.tokenizer))
    result = evaluate_features(model, task, features, batch_size=3)
    rows = task.score_rows(features, result.sums)
    for feature, row in zip(features, rows, strict=True):
        alone = evaluate_features(model, task, [feature], batch_size=1).numbers["loss"]
        assert (row.row, row.items) == (feature["sample_id"], len(feature["labels"]))
        assert row.log_probability == pytest.approx(-alone * row.items)
    mean = -sum(row.log_probability for row in rows) / sum(row.items for row in rows)
    assert result.scores["loss"] == pytest.approx(mean)


def test_several_references(make_model, task, features):
    """Metrics get lists of texts where one row has a list; the loss and the accuracy are those of the first text."""
    model, seen = make_model(vocab_size=len(task.tokenizer)), []
    generation = GenerationConfig(max_new_tokens=5, pad_token_id=0, eos_token_id=2, decoder_start_token_id=1)
    answer = generate(model, task, TEXTS[1:2], generation)[0]

    def metric(predictions, references):
        seen.extend(references)
        return exact_match(predictions, references)

    rows = [{"source": TEXTS[0], "target": ["b a", "c"]}, {"source": TEXTS[1], "target": ["a", answer, "x"]}]
    result = evaluate(model, task, rows, metrics=[metric], generation=generation)
    assert seen == [["b a", "c"], ["a", answer, "x"]]
    assert [prediction.is_right for prediction in result.predictions] == [False, True]
    assert "reference  c\n" in str(result.predictions[0]) and result.scores["exact_match"] == 0.5
    firsts = [{"source": row["source"], "target": row["target"][0]} for row in rows]
    plain = evaluate(model, task, firsts)
    assert {name: result.scores[name] for name in plain.scores} == plain.scores
    mixed = task.encode({"source": ["a", "b"], "target": ["c", ["d", "e"]], "row": [0, 1]})
    seen.clear()
    evaluate_features(model, task, mixed, batch_size=2, generation=generation, metrics=[metric])
    assert seen == [["c"], ["d", "e"]]
    with pytest.raises(DataError, match=r"rows: row 1: target is an empty list"):
        evaluate(model, task, [rows[0], {"source": "a", "target": []}])
    with pytest.raises(DataError, match=r"rows: the values of a column must have one type, such as text: "):
        evaluate(model, task, [{"source": "a", "target": ["b", 3]}])


def test_predictions_come_back_in_order(make_model, task, features):
    model = make_model(vocab_size=len(task.tokenizer))
    generation = GenerationConfig(max_new_tokens=5, pad_token_id=0, eos_token_id=2, decoder_start_token_id=1)
    result = evaluate_features(model, task, features, batch_size=2, generation=generation, metrics=[exact_match])
    assert [answer.source for answer in result.predictions] == TEXTS
    one_by_one = [generate(model, task, [text], generation)[0] for text in TEXTS]
    assert [answer.prediction for answer in result.predictions] == one_by_one
    assert result.scores["exact_match"] == sum(answer.is_right for answer in result.predictions) / len(TEXTS)


def test_parts_that_have_scores_of_their_own():
    """Sets that have a name, and the language pairs of a set where it has several."""
    rows = [
        ("news", "en", "de"),
        ("news", "en", "fr"),
        ("talks", "en", "de"),
        ("news", "en", "de"),
        ("talks", "en", "de"),
    ]
    features = [{SET: name, "source_lang": source, "target_lang": target} for name, source, target in rows]
    assert groups_of(features) == {"news": [0, 1, 3], "news_en-de": [0, 3], "news_en-fr": [1], "talks": [2, 4]}
    assert groups_of([{}, {}]) == groups_of([{"target_lang": "de"}] * 2) == {}
    assert groups_of([{"target_lang": "de"}, {"target_lang": "fr"}]) == {"de": [0], "fr": [1]}


def test_scores_of_sets_and_pairs(make_model, task, features):
    """Those of a part are what it has by itself; the mean of the sets stands for all."""
    model = make_model()
    parts = [
        {**feature, SET: "ab"[number % 2], "target_lang": "xy"[number // 2 % 2]}
        for number, feature in enumerate(features)
    ]
    result = evaluate_features(model, task, parts, batch_size=3, metrics=[exact_match])
    for name, members in groups_of(parts).items():
        alone = evaluate_features(model, task, [features[member] for member in members], batch_size=3)
        assert result.scores[f"{name}_loss"] == pytest.approx(alone.numbers["loss"], rel=1e-5)
    assert {"a_x_loss", "b_y_exact_match"} <= result.scores.keys()
    for name in ("loss", "token_accuracy", "exact_match"):
        means = [result.numbers[f"{part}_{name}"] for part in "ab"]
        assert result.scores[name] == pytest.approx(sum(means) / 2)


def test_groups_are_sets_and_their_pairs():
    rows = [{"set": "news", "target_lang": code, "source_lang": "en"} for code in ("de", "fr")]
    assert groups_of(rows) == {"news": [0, 1], "news_en-de": [0], "news_en-fr": [1]}
    assert groups_of([{"target_lang": "de"}, {}]) == {"de": [0]} and groups_of([{"target_lang": "de"}]) == {}
    with pytest.raises(ConfigError, match="set 'news_en-de' is called like a language pair of the set 'news'; rename"):
        groups_of([*rows, {"set": "news_en-de"}])
