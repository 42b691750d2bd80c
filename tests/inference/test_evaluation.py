import math

import pytest
import torch
from transformers import GenerationConfig

from pipeline.inference.evaluation import evaluate_features
from pipeline.inference.generation import generate
from pipeline.inference.metrics import exact_match
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


def test_predictions_come_back_in_order(make_model, task, features):
    model = make_model(vocab_size=len(task.tokenizer))
    generation = GenerationConfig(max_new_tokens=5, pad_token_id=0, eos_token_id=2, decoder_start_token_id=1)
    result = evaluate_features(model, task, features, batch_size=2, generation=generation, metrics=[exact_match])
    assert [answer.source for answer in result.predictions] == TEXTS
    one_by_one = [generate(model, task, [text], generation)[0] for text in TEXTS]
    assert [answer.prediction for answer in result.predictions] == one_by_one
    assert result.scores["exact_match"] == sum(answer.is_right for answer in result.predictions) / len(TEXTS)
