"""Scores of generated texts: pure functions from predictions and references to named numbers.

References are texts; where the data hold lists of answers, each of which is right, all references are lists of texts.
A value that is not a number (a signature) explains the number of the same name.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.config import EvaluationConfig, SacrebleuConfig
from pipeline.errors import ConfigError
from pipeline.tasks.base import Better

if TYPE_CHECKING:
    from sacrebleu import BLEU

Reference: TypeAlias = str | list[str]
Scores: TypeAlias = dict[str, float | str]
Metric: TypeAlias = Callable[[Sequence[str], Sequence[Reference]], Scores]

# sacreBLEU's tokenizer for texts that are cut into words already; `force` is silence about such texts.
UNCUT = "none"


def exact_match(predictions: Sequence[str], references: Sequence[Reference]) -> Scores:
    """Return the share of predictions that equal a reference exactly, from 0 to 1."""
    pairs = zip(predictions, references, strict=True)
    return {"exact_match": sum(prediction in answers(reference) for prediction, reference in pairs) / len(references)}


def bleu(
    predictions: Sequence[str], references: Sequence[Reference], tokenize: str = "13a", lowercase: bool = False
) -> Scores:
    """Compute sacreBLEU's corpus BLEU, 0 to 100, with its signature (Post 2018, https://aclanthology.org/W18-6319)."""
    import sacrebleu

    metric = sacrebleu.BLEU(tokenize=tokenize, lowercase=lowercase, force=tokenize == UNCUT)
    score = metric.corpus_score(list(predictions), by_number(references)).score
    return {"sacrebleu": score, "sacrebleu_signature": str(metric.get_signature())}


def chrf(predictions: Sequence[str], references: Sequence[Reference]) -> Scores:
    """Compute sacreBLEU's chrF2, 0 to 100, with its signature (Popovic 2015, https://aclanthology.org/W15-3049)."""
    import sacrebleu

    metric = sacrebleu.CHRF()
    score = metric.corpus_score(list(predictions), by_number(references)).score
    return {"chrf": score, "chrf_signature": str(metric.get_signature())}


def macro_f1(predictions: Sequence[str], references: Sequence[Reference]) -> Scores:
    """Average F1, the harmonic mean of precision and recall, over the classes that occur; from 0 to 1.

    Of several references, the one that was predicted counts, else the first.
    """
    pairs = [
        (prediction, prediction if prediction in answers(reference) else answers(reference)[0])
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    scores = []
    for name in {name for pair in pairs for name in pair}:
        right = sum(prediction == reference == name for prediction, reference in pairs)
        wrong = sum((prediction == name) != (reference == name) for prediction, reference in pairs)
        scores.append(2 * right / (2 * right + wrong))
    return {"macro_f1": sum(scores) / len(scores)}


def answers(reference: Reference) -> list[str]:
    """Return all texts of a reference, the first of which is the one that training takes."""
    return [reference] if isinstance(reference, str) else reference


def alike(references: Sequence[Reference]) -> list[Reference]:
    """Return texts, or, where one reference is a list of texts, lists only, as `evaluate` wants them."""
    has_lists = any(isinstance(reference, list) for reference in references)
    return [answers(reference) for reference in references] if has_lists else [*references]


def by_number(references: Sequence[Reference]) -> list[list[Any]]:
    """Return all first answers, all second ones, and so on, as sacreBLEU takes them: None where a row has fewer."""
    rows = [answers(reference) for reference in references]
    count = max(map(len, rows))
    return [[row[number] if number < len(row) else None for row in rows] for number in range(count)]


@dataclass(frozen=True)
class MetricSpec:
    """A line of the table of metrics.

    Attributes:
        compute: scores predictions; the score has the name of the line.
        better: which value of the score is the better one.
    """

    compute: Metric
    better: Better


METRICS: dict[str, MetricSpec] = {
    "exact_match": MetricSpec(exact_match, "higher"),
    "sacrebleu": MetricSpec(bleu, "higher"),
    "chrf": MetricSpec(chrf, "higher"),
    "macro_f1": MetricSpec(macro_f1, "higher"),
}


def load_metrics(evaluation: EvaluationConfig) -> list[Metric]:
    """Return the metrics of a config, with their settings.

    Raises:
        ConfigError: for a name that is not known, or a tokenizer of sacreBLEU that is not installed.
    """
    return [
        _configured_bleu(evaluation.sacrebleu) if name == "sacrebleu" else load_metric(name)
        for name in evaluation.metrics
    ]


def load_metric(name: str) -> Metric:
    """Return a metric of the table above, or else one that `evaluate.load` finds by name or path.

    Raises:
        ConfigError: when neither knows the name.
    """
    if name in METRICS:
        return METRICS[name].compute
    import evaluate  # slow to import, and the built-in metrics do not need it

    try:
        module = evaluate.load(name)
    except Exception as error:  # evaluate raises FileNotFoundError, ConnectionError, ImportError, ... alike
        raise ConfigError(
            f"evaluation.metrics: {name!r} is not built in ({', '.join(METRICS)}) and evaluate.load failed: {error}"
        ) from error

    def compute(predictions: Sequence[str], references: Sequence[Reference]) -> Scores:
        try:
            result = module.compute(predictions=list(predictions), references=list(references))
        except Exception as error:  # code of others, which may raise anything
            raise ConfigError(
                f"evaluation.metrics: {name!r} could not score texts: {type(error).__name__}: {error}; choose another"
            ) from error
        return {key: value for key, value in result.items() if isinstance(value, int | float | str)}

    return compute


def _configured_bleu(settings: SacrebleuConfig) -> Metric:
    """Return BLEU with a tokenizer, which is made once now: its package may be missing, or its model not be there."""
    make_bleu(settings)
    return partial(bleu, tokenize=settings.tokenize, lowercase=settings.lowercase)


def make_bleu(settings: SacrebleuConfig, references: list[list[Any]] | None = None) -> "BLEU":
    """Make sacreBLEU's metric, with references as `by_number` gives them, or none yet.

    Raises:
        ConfigError: for a tokenizer that is not installed.
    """
    import sacrebleu

    try:
        return sacrebleu.BLEU(
            tokenize=settings.tokenize,
            lowercase=settings.lowercase,
            force=settings.tokenize == UNCUT,
            references=references,
        )
    except (RuntimeError, ImportError, OSError) as error:  # of MeCab, of sentencepiece, of a download
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"evaluation.sacrebleu.tokenize: {settings.tokenize} cannot be used: {reason}; install what it needs, or "
            "choose char, which needs nothing"
        ) from error


def score_names(metrics: Sequence[Metric]) -> list[str]:
    """Return the names of the numbers that metrics give, by scoring one text with each."""
    texts = ["a text of some words"]
    return [name for metric in metrics for name, value in metric(texts, texts).items() if not isinstance(value, str)]


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
