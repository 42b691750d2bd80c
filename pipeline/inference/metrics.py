"""Scores of generated texts: pure functions from predictions and references to named numbers.

A value that is not a number (a signature) explains the number of the same name.
"""

import math
from collections.abc import Callable, Sequence

from pipeline.errors import ConfigError

Scores = dict[str, float | str]
Metric = Callable[[Sequence[str], Sequence[str]], Scores]


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """Return the share of predictions that equal their reference exactly, from 0 to 1."""
    matches = sum(prediction == reference for prediction, reference in zip(predictions, references, strict=True))
    return {"exact_match": matches / len(references)}


def bleu(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """Compute sacreBLEU's corpus BLEU, 0 to 100, with its signature (Post 2018, https://aclanthology.org/W18-6319)."""
    import sacrebleu

    metric = sacrebleu.BLEU()
    score = metric.corpus_score(list(predictions), [list(references)]).score
    return {"sacrebleu": score, "sacrebleu_signature": str(metric.get_signature())}


def chrf(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """Compute sacreBLEU's chrF2, 0 to 100, with its signature (Popovic 2015, https://aclanthology.org/W15-3049)."""
    import sacrebleu

    metric = sacrebleu.CHRF()
    score = metric.corpus_score(list(predictions), [list(references)]).score
    return {"chrf": score, "chrf_signature": str(metric.get_signature())}


def macro_f1(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """Average F1, the harmonic mean of precision and recall, over the classes that occur; from 0 to 1."""
    pairs = list(zip(predictions, references, strict=True))
    scores = []
    for name in {*predictions, *references}:
        right = sum(prediction == reference == name for prediction, reference in pairs)
        wrong = sum((prediction == name) != (reference == name) for prediction, reference in pairs)
        scores.append(2 * right / (2 * right + wrong))
    return {"macro_f1": sum(scores) / len(scores)}


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "sacrebleu": bleu,
    "chrf": chrf,
    "macro_f1": macro_f1,
}


def load_metric(name: str) -> Metric:
    """Return a metric of the table above, or else one that `evaluate.load` finds by name or path.

    Raises:
        ConfigError: when neither knows the name.
    """
    if name in METRICS:
        return METRICS[name]
    import evaluate  # slow to import, and the built-in metrics do not need it

    try:
        module = evaluate.load(name)
    except Exception as error:  # evaluate raises FileNotFoundError, ConnectionError, ImportError, ... alike
        raise ConfigError(
            f"evaluation.metrics: {name!r} is not built in ({', '.join(METRICS)}) and evaluate.load failed: {error}"
        ) from error

    def compute(predictions: Sequence[str], references: Sequence[str]) -> Scores:
        result = module.compute(predictions=list(predictions), references=list(references))
        return {key: value for key, value in result.items() if isinstance(value, int | float | str)}

    return compute


def refuse_metric_code(names: Sequence[str]) -> None:
    """Refuse metrics that are code, which `load_metric` would fetch and run, where nobody here has chosen them.

    Raises:
        ConfigError: for the first that is not built in.
    """
    for name in names:
        if name not in METRICS:
            raise ConfigError(
                f"evaluation.metrics: {name!r} is not built in ({', '.join(METRICS)}), so it would run code; "
                "if you trust it, add --allow-metric-code, or name others: evaluation.metrics=[]"
            )


def perplexity(loss: float) -> float:
    """Return exp(cross-entropy per token in nats); infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
