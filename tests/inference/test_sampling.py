"""Samples by seed, and the choice of the one that is most like the others."""

from collections import Counter

import numpy as np
import pytest
import sacrebleu
import torch
from transformers import GenerationConfig

from pipeline.errors import ConfigError
from pipeline.inference import sampling
from pipeline.inference.evaluation import evaluate_features
from pipeline.inference.hypotheses import Wanted, find_hypotheses
from pipeline.inference.metrics import exact_match
from pipeline.inference.sampling import EPSILON, MinimumBayesRisk, most_like_all, pairwise_chrf
from pipeline.models.configuration_classifier import TransformerClassifierConfig
from pipeline.models.modeling_classifier import TransformerForSequenceClassification
from tests.conftest import TINY

SHORT = {"max_new_tokens": 6, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


@pytest.fixture
def model(make_model, task):
    """A random model that tells texts apart and is sure of little."""
    model = make_model(vocab_size=len(task.tokenizer), tie_word_embeddings=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.generation_config = GenerationConfig(**SHORT)
    return model


def choose(mbr, model, task, features, batch_size=7, generation=None) -> dict[int, str]:
    """The answer to each row."""
    answers: dict[int, str] = {}
    for first in range(0, len(features), batch_size):
        samples = features[first : first + batch_size]
        texts = mbr.predict(model, task, samples, task.collate(samples), generation)
        answers |= zip([sample["sample_id"] for sample in samples], texts, strict=True)
    return answers


def test_chrf_is_that_of_sacrebleu():
    texts = ["", " ", "a", "abc", "Un chien  court.", "Un chien courait.", "aaaaaaaa", "aaaa", "中文 é", "the cat " * 9]
    metric = sacrebleu.CHRF()
    expected = [[metric.sentence_score(text, [reference]).score for reference in texts] for text in texts]
    np.testing.assert_allclose(pairwise_chrf(texts), expected, atol=1e-10)


def test_the_answer_is_most_like_all_samples():
    samples = ["a cat sat", "the cat sat", "the cat sits", "a dog", "the cat sat here"]
    metric = sacrebleu.CHRF()
    expected = max(samples, key=lambda text: sum(metric.sentence_score(text, [other]).score for other in samples))
    assert most_like_all(samples) == expected == "the cat sat here"
    assert most_like_all([*samples, *["a dog"] * 9]) == "a dog"  # each counts as often as it was drawn
    assert most_like_all(["x", "y"]) == "x"


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "top_k": 5, "temperature": 2.0}], ids=["epsilon", "own"])
def test_the_choice_is_among_samples_of_the_model(model, task, features, settings):
    """Those that the same seed gives as several answers."""
    mbr, generation = MinimumBayesRisk(6, seed=3), GenerationConfig(**SHORT, **settings)
    answers = choose(mbr, model, task, features, generation=generation)
    epsilon = {"do_sample": True, "top_k": 0, "epsilon_cutoff": EPSILON}
    drawn = find_hypotheses(
        model,
        task,
        features,
        task.collate(features),
        GenerationConfig(**SHORT, **(settings or epsilon)),
        Wanted(num_best=6, seed=3),
    )
    counts = [Counter(one.text for one in row) for row in drawn]
    metric = sacrebleu.CHRF()
    for feature, texts in zip(features, counts, strict=True):
        risks = {
            text: sum(metric.sentence_score(text, [other]).score * number for other, number in texts.items())
            for text in texts
        }
        assert risks[answers[feature["sample_id"]]] == pytest.approx(max(risks.values()))
    assert max(map(len, counts)) > 2
    assert choose(MinimumBayesRisk(6, seed=4), model, task, features, generation=generation) != answers


def test_a_row_has_the_same_answer_in_any_batch(model, task, features, monkeypatch):
    mbr = MinimumBayesRisk(5, seed=1)
    answers = choose(mbr, model, task, features)
    assert choose(mbr, model, task, features[::-1], batch_size=2) == answers
    monkeypatch.setattr(sampling, "SEQUENCES", 10)  # two rows at a time
    assert choose(mbr, model, task, features) == answers
    wanted = Wanted(mbr=5, seed=1)
    said = find_hypotheses(model, task, features, task.collate(features), None, wanted)
    assert [row[0].text for row in said] == [*answers.values()]
    result = evaluate_features(model, task, features, batch_size=3, metrics=[exact_match], mbr=mbr)
    assert [one.prediction for one in result.predictions] == [*answers.values()]


def test_beams_of_the_model_do_not_disturb_it(model, task, features, recwarn):
    answers = choose(MinimumBayesRisk(4), model, task, features)
    model.generation_config = GenerationConfig(**SHORT, num_beams=5, length_penalty=0.6, early_stopping=True)
    assert choose(MinimumBayesRisk(4), model, task, features) == answers
    assert model.generation_config.num_beams == 5 and not model.generation_config.do_sample
    assert not [warning for warning in recwarn if "length_penalty" in str(warning.message)]


def test_a_model_without_text_is_refused(task, features):
    model = TransformerForSequenceClassification(TransformerClassifierConfig(vocab_size=40, num_labels=2, **TINY))
    with pytest.raises(
        ConfigError, match="mbr: a TransformerForSequenceClassification generates no text; leave it out"
    ):
        MinimumBayesRisk(4).predict(model, task, features, task.collate(features), None)
