import typing
from typing import Any

import pytest
import sacrebleu

from pipeline.config import EvaluationConfig, SacrebleuConfig
from pipeline.errors import ConfigError
from pipeline.inference.metrics import (
    METRICS,
    Reference,
    alike,
    bleu,
    chrf,
    exact_match,
    load_metric,
    load_metrics,
    macro_f1,
    perplexity,
    score_names,
)

METRIC_MODULE = """
import datasets
import evaluate


class Length(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        if "" in references:
            raise KeyError("an empty reference")
        return {"length_ratio": sum(map(len, predictions)) / sum(map(len, references))}
"""


def test_exact_match():
    assert exact_match(["a b", "c", " d"], ["a b", "C", "d"]) == {"exact_match": 1 / 3}


def test_macro_f1():
    """By hand: F1 of a is 2/3 (precision 1, recall 1/2), of b 1/2, of c 0, which only ever is predicted."""
    predictions, references = ["a", "b", "c", "b"], ["a", "a", "b", "b"]
    assert macro_f1(predictions, references)["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_perplexity():
    assert perplexity(0) == 1 and perplexity(2) == pytest.approx(7.389, abs=1e-3) and perplexity(1e4) == float("inf")


def test_a_path_goes_to_evaluate(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "length").mkdir()
    (tmp_path / "length" / "length.py").write_text(METRIC_MODULE)
    metric = load_metric(str(tmp_path / "length"))
    assert metric(["ab", "c"], ["abcd", "ef"]) == {"length_ratio": 0.5}
    assert score_names([metric, bleu]) == ["length_ratio", "sacrebleu"]
    with pytest.raises(ConfigError, match=r"length' could not score texts: KeyError: 'an empty reference'; choose"):
        metric(["a"], [""])


def test_an_unknown_name_is_named():
    with pytest.raises(ConfigError, match=r"'blue' is not built in \(exact_match, sacrebleu, chrf, macro_f1\)"):
        load_metric("blue")


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_gives_a_score_of_its_name_and_the_better_value_is_that_of_the_reference(name):
    texts = ["a plain line of text", "another line of text"]
    right, wrong = (float(METRICS[name].compute(predictions, texts)[name]) for predictions in (texts, ["no"] * 2))
    assert (right > wrong) == (METRICS[name].better == "higher") and right != wrong


def test_any_of_several_references_is_right():
    """They may be of different number; sacreBLEU takes the first of all rows, the second of all, and so on."""
    predictions = ["un chien blanc court vite", "la maison", "non"]
    references: list[Reference] = [
        ["le chien blanc", "un chien blanc court vite"],
        ["la maison rouge"],
        ["oui", "si", "non"],
    ]
    streams: list[list[Any]] = [
        [row[0] for row in references],
        ["un chien blanc court vite", None, "si"],
        [None, None, "non"],
    ]
    assert exact_match(predictions, references) == {"exact_match": 2 / 3}
    scores = bleu(predictions, references)
    assert scores["sacrebleu"] == sacrebleu.BLEU().corpus_score(predictions, streams).score
    assert str(scores["sacrebleu_signature"]).startswith("nrefs:var|")
    assert chrf(predictions, references)["chrf"] == sacrebleu.CHRF().corpus_score(predictions, streams).score
    assert macro_f1(["b", "b"], [["a", "b"], ["c", "d"]]) == {"macro_f1": (2 / 3 + 0) / 2}
    assert alike(["a", ["b", "c"]]) == [["a"], ["b", "c"]] and alike(["a", "b"]) == ["a", "b"]


def test_settings_of_sacrebleu():
    """The example: 0.0 by the default for a Chinese sentence that differs in one character."""
    predictions, references = ["我们昨天在河边看到了一只白色的小狗。"], ["我们昨天在河边看见了一只白色的小狗。"]
    default, settled = (
        load_metrics(EvaluationConfig(metrics=["sacrebleu"], sacrebleu=settings))[0](predictions, [*references])
        for settings in (SacrebleuConfig(), SacrebleuConfig(tokenize="zh", lowercase=True))
    )
    assert default["sacrebleu"] == 0 and "|case:mixed|eff:no|tok:13a|" in str(default["sacrebleu_signature"])
    expected = sacrebleu.corpus_bleu(predictions, [references], tokenize="zh").score
    assert (
        settled["sacrebleu"] == expected
        and expected > 70
        and "|case:lc|eff:no|tok:zh|" in str(settled["sacrebleu_signature"])
    )


def test_only_texts_that_are_cut_into_words_twice_are_warned_of(caplog):
    texts = ["a dog runs ."] * 100
    bleu(texts, texts, tokenize="none")
    assert not caplog.records
    bleu(texts, texts)
    assert "forgot to detokenize" in caplog.text


def test_every_tokenizer_of_sacrebleu_can_be_chosen():
    choices = typing.get_args(SacrebleuConfig.model_fields["tokenize"].annotation)
    assert {*choices} == {*sacrebleu.BLEU.TOKENIZERS}


@pytest.mark.parametrize(
    "tokenize, error",
    [
        ("ja-mecab", RuntimeError("\nJapanese needs more.\n\n    pip install sacrebleu[ja]\n")),
        ("flores200", OSError("<urlopen error>")),
        ("flores101", ImportError("\n\nPlease install the sentencepiece library")),
    ],
)
def test_a_tokenizer_that_is_not_there_is_an_error_now(monkeypatch, tokenize, error):
    def make(**settings):
        raise error

    monkeypatch.setattr(sacrebleu, "BLEU", make)
    settings = SacrebleuConfig(tokenize=tokenize)
    with pytest.raises(ConfigError) as raised:
        load_metrics(EvaluationConfig(metrics=["sacrebleu"], sacrebleu=settings))
    message = str(raised.value)
    assert message.startswith(f"evaluation.sacrebleu.tokenize: {tokenize} cannot be used: ") and "\n" not in message
    assert " ".join(str(error).split()) in message
    assert load_metrics(EvaluationConfig(metrics=["chrf"], sacrebleu=settings)), "where it is not asked for"
