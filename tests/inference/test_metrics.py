import pytest

from pipeline.errors import ConfigError
from pipeline.inference.metrics import exact_match, load_metric, macro_f1, perplexity

METRIC_MODULE = """
import datasets
import evaluate


class Length(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
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


def test_an_unknown_name_is_named():
    with pytest.raises(ConfigError, match=r"'blue' is not built in \(exact_match, sacrebleu, chrf, macro_f1\)"):
        load_metric("blue")
