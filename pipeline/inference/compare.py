"""Compare what several systems answered to the same rows: scores with tests, groups of rows, and differing sentences.

The first system is the baseline, with which each other is paired. The numbers are those of sacreBLEU's command line for
the same files and SACREBLEU_SEED (Post 2018, https://aclanthology.org/W18-6319): `--paired-bs` for the paired bootstrap
(Koehn 2004, https://aclanthology.org/W04-3250), `--paired-ar` for approximate randomisation (Riezler and Maxwell 2005,
https://aclanthology.org/W05-0908).
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.config import SacrebleuConfig
from pipeline.errors import ConfigError, nearest
from pipeline.inference.metrics import Reference, answers, by_number, make_bleu
from pipeline.inference.words import Piece, is_word, mark_differences, split_words
from pipeline.tasks.base import Better

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

BOOTSTRAP, RANDOMISATION, MCNEMAR = "paired bootstrap", "approximate randomisation", "McNemar's exact test"
FEWEST_DIFFERENT = 6  # rows: with fewer, even if all favour one system, a fair coin does so in over 5 % of cases
LENGTH_QUANTILES = (0.25, 0.5, 0.75, 0.95)  # the last group is the long tail, where models fail first
FREQUENCIES = ((1, 1), (2, 4), (5, 9), (10, 99), (100, None))  # from, to: of a word in the references
NUM_DIFFERENCES = 10  # sentences of a pair that are shown each way


# ---- what is compared


@dataclass(frozen=True)
class EvaluationSet:
    """The rows that all systems answered.

    Attributes:
        references: a text, or a list of texts each of which is right, a row.
        sources: None where nobody gave them.
        corpora: the name of the corpus of each row; None where rows have none.
    """

    references: Sequence[Reference]
    sources: Sequence[str] | None = None
    corpora: Sequence[str] | None = None


@dataclass(frozen=True)
class System:
    """A name, and an answer to each row."""

    name: str
    predictions: Sequence[str]


# ---- the result


@dataclass(frozen=True)
class SystemScore:
    """The score of a system on all rows.

    Attributes:
        mean: of the bootstrap's resamples.
        ci: half of the 95 % confidence interval around it.
        p_values: test -> p of the difference to the baseline; None where too few rows differ for a test.
    """

    score: float
    mean: float
    ci: float
    p_values: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricResult:
    """One metric: its title, which value is better, test -> signature, and a score for each system."""

    name: str
    title: str
    better: Better
    signatures: dict[str, str]
    scores: list[SystemScore]


@dataclass(frozen=True)
class Group:
    """Some of the rows, or of the references' words: how many, and title of a metric -> a score for each system."""

    name: str
    size: int
    scores: dict[str, list[float]]


@dataclass(frozen=True)
class Breakdown:
    """The same numbers by groups; `unit` is what a group counts."""

    title: str
    unit: str
    groups: list[Group]


@dataclass(frozen=True)
class Answer:
    """What a system said: the pieces, joined, are the text."""

    system: str
    score: float
    pieces: list[Piece]


@dataclass(frozen=True)
class Difference:
    """A row, counted from 1, that the baseline and another system answered differently."""

    row: int
    source: str | None
    references: list[str]
    baseline: Answer
    other: Answer


@dataclass(frozen=True)
class Pair:
    """The baseline and another system, row by row.

    Attributes:
        num_different: rows with different answers.
        num_better: rows that the other system answers better, by the sentence score.
        num_worse: rows that it answers worse.
        gains: rows where it is better by most, and `losses` worse by most; the largest difference first.
    """

    baseline: str
    other: str
    num_different: int
    num_better: int
    num_worse: int
    gains: list[Difference]
    losses: list[Difference]


@dataclass(frozen=True)
class Comparison:
    """All numbers of a comparison; `sentence_scores` has a list for each system."""

    systems: list[str]
    num_rows: int
    metrics: list[MetricResult]
    breakdowns: list[Breakdown]
    pairs: list[Pair]
    sentence_metric: str
    sentence_scores: dict[str, list[float]]


# ---- the metrics

Scorer: TypeAlias = Callable[[Sequence[str], Sequence[Reference]], float]
References: TypeAlias = list[list[Any]]  # all first references, all second ones, ...; None where a row has fewer


@dataclass(frozen=True)
class MetricSpec:
    """A line of the table of metrics: its title, and how sacreBLEU's metric is made, where it is one."""

    title: str
    better: Better
    make: "Callable[[SacrebleuConfig, References], Metric] | None" = None


def _make_bleu(settings: SacrebleuConfig, references: References) -> "Metric":
    return make_bleu(settings, references)


def _make_chrf(settings: SacrebleuConfig, references: References) -> "Metric":
    import sacrebleu

    return sacrebleu.CHRF(references=references)


def _make_chrf_with_words(settings: SacrebleuConfig, references: References) -> "Metric":
    import sacrebleu

    return sacrebleu.CHRF(word_order=2, references=references)


def _make_ter(settings: SacrebleuConfig, references: References) -> "Metric":
    """Make TER; languages that BLEU's tokenizer cuts because they have no spaces are cut by TER's own rules as well."""
    import sacrebleu

    is_unspaced = settings.tokenize in ("zh", "ja-mecab")
    return sacrebleu.TER(normalized=is_unspaced, asian_support=is_unspaced, references=references)


EXACT = "exact_match"
METRICS: dict[str, MetricSpec] = {
    "bleu": MetricSpec("BLEU", "higher", _make_bleu),
    "chrf": MetricSpec("chrF2", "higher", _make_chrf),
    "chrf++": MetricSpec("chrF2++", "higher", _make_chrf_with_words),
    "ter": MetricSpec("TER", "lower", _make_ter),
    EXACT: MetricSpec("exact match", "higher"),
}
DEFAULT_METRICS = ("bleu", "chrf", "chrf++", "ter")


def compare(
    rows: EvaluationSet,
    systems: Sequence[System],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    settings: SacrebleuConfig | None = None,
    num_resamples: int = 0,
    num_trials: int = 0,
) -> Comparison:
    """Compare systems, the first of which is the baseline; each has one prediction for each row.

    Args:
        metrics: names of the table above. With exact_match as the only one, as for the classes of a classifier,
            sentences are right or wrong, and words are not looked at.
        settings: how BLEU cuts words; TER follows it for Chinese and Japanese.
        num_resamples: of the bootstrap; 0 takes sacreBLEU's number.
        num_trials: of the approximate randomisation; 0 takes sacreBLEU's number.

    Raises:
        ConfigError: for an unknown metric, a tokenizer that is not installed, or a seed that is not a number.
    """
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"--metrics: {name!r} is unknown{nearest(name, METRICS)}")
    seed = _read_seed()
    references = by_number(rows.references)
    makers = {name: METRICS[name].make for name in metrics}
    made = {name: make(settings or SacrebleuConfig(), references) for name, make in makers.items() if make}
    are_classes = tuple(metrics) == (EXACT,)
    sentence_scores = [_score_sentences(system, rows.references, are_classes) for system in systems]
    num_different = [_count_different(systems[0], system) for system in systems]
    results = _test_pairs(systems, made, num_different, num_resamples, num_trials)
    if EXACT in metrics:
        results[EXACT] = _test_exact(systems, rows.references, num_resamples, seed)
    scorers = {METRICS[name].title: _make_scorer(made.get(name)) for name in metrics}
    breakdowns = [_by_length(rows, systems, scorers)]
    if rows.corpora is not None:
        breakdowns.append(_by_corpus(rows, rows.corpora, systems, scorers))
    if not are_classes:
        breakdowns.append(_by_frequency(rows, systems))
    return Comparison(
        systems=[system.name for system in systems],
        num_rows=len(rows.references),
        metrics=[results[name] for name in metrics],
        breakdowns=[breakdown for breakdown in breakdowns if len(breakdown.groups) > 1],
        pairs=[
            _pair(rows, systems[0], systems[number], sentence_scores[0], sentence_scores[number], num_different[number])
            for number in range(1, len(systems))
        ],
        sentence_metric=METRICS[EXACT].title if are_classes else "sentence chrF2",
        sentence_scores={system.name: scores for system, scores in zip(systems, sentence_scores, strict=True)},
    )


def _read_seed() -> int | None:
    """Return the seed that sacreBLEU will take, or None for a new one each time.

    Raises:
        ConfigError: for one that sacreBLEU cannot read.
    """
    value = os.environ.get("SACREBLEU_SEED", "12345")
    if value.lower() == "none":
        return None
    if not (value.isascii() and value.isdecimal()):
        raise ConfigError(f"SACREBLEU_SEED: {value!r} is not a whole number; set one, such as 12345, or none")
    return int(value)


# ---- scores and tests


def _test_pairs(
    systems: Sequence[System],
    metrics: "Mapping[str, Metric]",
    num_different: Sequence[int],
    num_resamples: int,
    num_trials: int,
) -> dict[str, MetricResult]:
    """Run sacreBLEU's paired tests of all systems with the first.

    SacreBLEU counts the resamples whose difference is larger than the one that was seen. Where few rows differ, most
    are equal to it, so its p is tiny: 1 / (resamples + 1) for equal systems. Such a p is left out.
    """
    from sacrebleu.significance import PairedTest

    if not metrics:
        return {}
    named = [(system.name, system.predictions) for system in systems]
    bootstrap = PairedTest(named, metrics, None, test_type="bs", n_samples=num_resamples)
    tests: dict[str, Any] = {BOOTSTRAP: bootstrap()}  # signatures, and results by title of metric
    if len(systems) > 1:
        tests[RANDOMISATION] = PairedTest(named, metrics, None, test_type="ar", n_samples=num_trials)()
    results = {}
    for name in metrics:
        spec = METRICS[name]
        scores = []
        for number, resampled in enumerate(tests[BOOTSTRAP][1][spec.title]):
            can_test = num_different[number] >= FEWEST_DIFFERENT
            p_values = {test: values[spec.title][number].p_value for test, (_, values) in tests.items() if number > 0}
            scores.append(
                SystemScore(
                    float(resampled.score),
                    float(resampled.mean),
                    float(resampled.ci),
                    {test: p if can_test else None for test, p in p_values.items()},
                )
            )
        signatures = {test: str(signature[spec.title]) for test, (signature, _) in tests.items()}
        results[name] = MetricResult(name, spec.title, spec.better, signatures, scores)
    return results


def _test_exact(
    systems: Sequence[System], references: Sequence[Reference], num_resamples: int, seed: int | None
) -> MetricResult:
    """Score the share of answers that equal a reference, with McNemar's exact test.

    A share has few values, so that many resamples are equal to what was seen, which sacreBLEU's tests do not count.
    """
    import numpy as np
    from sacrebleu.significance import estimate_ci

    right = [_mark_right(system.predictions, references) for system in systems]
    scores = []
    for number, marks in enumerate(right):
        share = fmean(marks)
        resampled = np.random.default_rng(seed).binomial(len(marks), share, num_resamples or 1000) / len(marks)
        mean, ci = estimate_ci(resampled)
        p_values = {MCNEMAR: mcnemar(right[0], marks)} if number > 0 else {}
        scores.append(SystemScore(share, float(mean), float(ci), p_values))
    spec = METRICS[EXACT]
    return MetricResult(EXACT, spec.title, spec.better, {}, scores)


def mcnemar(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the p of McNemar's exact two-sided test on rows that are right (1) or wrong (0); None if none differ.

    The rows that only one of two systems has right are like throws of a fair coin if the systems are equally good
    (McNemar 1947, https://doi.org/10.1007/BF02295996).
    """
    only_first = sum(a > b for a, b in zip(first, second, strict=True))
    only_second = sum(b > a for a, b in zip(first, second, strict=True))
    throws = only_first + only_second
    if throws == 0:
        return None
    ways = total = 1  # whole numbers, so that nothing underflows
    for number in range(min(only_first, only_second)):
        ways = ways * (throws - number) // (number + 1)
        total += ways
    return min(1.0, math.exp(math.log(2 * total) - throws * math.log(2)))


def _score_sentences(system: System, references: Sequence[Reference], are_classes: bool) -> list[float]:
    """Return for each row the chrF2 of the answer, or 1 or 0 where it can only be right or wrong."""
    if are_classes:
        return _mark_right(system.predictions, references)
    import sacrebleu

    metric = sacrebleu.CHRF()
    pairs = zip(system.predictions, references, strict=True)
    return [metric.sentence_score(prediction, answers(reference)).score for prediction, reference in pairs]


def _mark_right(predictions: Sequence[str], references: Sequence[Reference]) -> list[float]:
    """Return 1 for each answer that equals a reference, and 0 for the others."""
    pairs = zip(predictions, references, strict=True)
    return [float(prediction in answers(reference)) for prediction, reference in pairs]


def _count_different(baseline: System, system: System) -> int:
    return sum(a != b for a, b in zip(baseline.predictions, system.predictions, strict=True))


# ---- groups


def _make_scorer(metric: "Metric | None") -> Scorer:
    """Return a function from answers and references to a score; without a metric it is the share of right answers."""
    if metric is None:
        return lambda predictions, references: fmean(_mark_right(predictions, references))
    return lambda predictions, references: float(metric.corpus_score(predictions, by_number(references)).score)


def _by_length(rows: EvaluationSet, systems: Sequence[System], scorers: Mapping[str, Scorer]) -> Breakdown:
    """Score groups of rows by the number of words, each of about as many rows, and the longest 5 % by themselves."""
    texts = [answers(reference)[0] for reference in rows.references] if rows.sources is None else rows.sources
    lengths = [sum(map(is_word, split_words(text))) for text in texts]
    ordered = sorted(lengths)
    limits = sorted({ordered[int(quantile * len(ordered))] for quantile in LENGTH_QUANTILES} | {ordered[-1]})
    lows = [ordered[0], *(limit + 1 for limit in limits[:-1])]
    names = [f"{low}" if low == limit else f"{low}–{limit}" for low, limit in zip(lows, limits, strict=True)]
    places = [next(name for name, limit in zip(names, limits, strict=True) if length <= limit) for length in lengths]
    title = f"By words in the {'reference' if rows.sources is None else 'source'}"
    return Breakdown(title, "rows", _score_groups(rows, systems, scorers, places, names))


def _by_corpus(
    rows: EvaluationSet, corpora: Sequence[str], systems: Sequence[System], scorers: Mapping[str, Scorer]
) -> Breakdown:
    names = [*dict.fromkeys(corpora)]
    return Breakdown("By corpus", "rows", _score_groups(rows, systems, scorers, corpora, names))


def _score_groups(
    rows: EvaluationSet,
    systems: Sequence[System],
    scorers: Mapping[str, Scorer],
    places: Sequence[str],
    names: Sequence[str],
) -> list[Group]:
    """Score the rows of each group; `places` has the group of each row, and `names` the groups in order."""
    groups = []
    for name in names:
        members = [row for row, place in enumerate(places) if place == name]
        references = [rows.references[row] for row in members]
        predictions = [[system.predictions[row] for row in members] for system in systems]
        scores = {title: [scorer(texts, references) for texts in predictions] for title, scorer in scorers.items()}
        groups.append(Group(name, len(members), scores))
    return groups


def _by_frequency(rows: EvaluationSet, systems: Sequence[System]) -> Breakdown:
    """Score how well words are found that are rare in the references: the F1 of each bucket of frequencies.

    A word of an answer is found as often as the row's first reference has it: the word accuracy of compare-mt (Neubig
    et al. 2019, https://aclanthology.org/N19-4007), which by default counts frequencies in the references as well.
    """
    references = [_count_words(answers(reference)[0]) for reference in rows.references]
    frequency: Counter[str] = Counter()
    for counts in references:
        frequency.update(counts)
    sizes = [0] * len(FREQUENCIES)
    bucket = {word: _bucket(count) for word, count in frequency.items()}
    for word, count in frequency.items():
        sizes[bucket[word]] += count
    scores = [_score_buckets(references, system, bucket, sizes) for system in systems]
    names = ["once", *(f"{low}–{high}" if high else f"{low} or more" for low, high in FREQUENCIES[1:])]
    return Breakdown(
        "By frequency in the references",
        "words",
        [
            Group(name, size, {"F1 of words": [numbers[place] for numbers in scores]})
            for place, (name, size) in enumerate(zip(names, sizes, strict=True))
            if size
        ],
    )


def _count_words(text: str) -> Counter[str]:
    return Counter(filter(is_word, split_words(text)))


def _bucket(frequency: int) -> int:
    return next(number for number, (_, high) in enumerate(FREQUENCIES) if high is None or frequency <= high)


def _score_buckets(
    references: Sequence[Counter[str]], system: System, bucket: Mapping[str, int], sizes: Sequence[int]
) -> list[float]:
    """Return the F1 of each bucket, 0 to 100: found words / mean of the words in references and in answers."""
    found, said = [0] * len(sizes), [0] * len(sizes)
    for reference, prediction in zip(references, system.predictions, strict=True):
        for word, count in _count_words(prediction).items():
            if word in bucket:
                said[bucket[word]] += count
                found[bucket[word]] += min(count, reference[word])
    return [200 * both / (size + count) if both else 0.0 for both, size, count in zip(found, sizes, said, strict=True)]


# ---- sentences


def _pair(
    rows: EvaluationSet,
    baseline: System,
    other: System,
    baseline_scores: Sequence[float],
    other_scores: Sequence[float],
    num_different: int,
) -> Pair:
    gains = [second - first for first, second in zip(baseline_scores, other_scores, strict=True)]
    order = sorted(range(len(gains)), key=lambda row: -abs(gains[row]))  # equal ones in the order of the rows

    def show(row: int) -> Difference:
        first, second = mark_differences(baseline.predictions[row], other.predictions[row])
        return Difference(
            row + 1,
            None if rows.sources is None else rows.sources[row],
            answers(rows.references[row]),
            Answer(baseline.name, baseline_scores[row], first),
            Answer(other.name, other_scores[row], second),
        )

    better = [row for row in order if gains[row] > 0]
    worse = [row for row in order if gains[row] < 0]
    return Pair(
        baseline.name,
        other.name,
        num_different,
        len(better),
        len(worse),
        [show(row) for row in better[:NUM_DIFFERENCES]],
        [show(row) for row in worse[:NUM_DIFFERENCES]],
    )
