"""Evaluation: every sample counted once, every token weighing the same, on any number of ranks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pyarrow
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedModel

from pipeline.errors import ConfigError, DataError, nearest
from pipeline.inference.batches import batches_by_length
from pipeline.inference.metrics import Metric, Reference, alike, answers, load_metric, perplexity
from pipeline.inference.sampling import MinimumBayesRisk
from pipeline.tasks.base import Feature, Task
from pipeline.tasks.encoding import SET, encode_rows

Result = tuple[dict[str, Any], str | None]  # of one sample: its numbers, and its prediction


@dataclass(frozen=True)
class Prediction:
    """One sample's part of an evaluation; `prediction` is None where nothing was generated.

    `reference` is as in the data: a text, or a list of texts, each of which is right. `corpus` is the narrowest of
    `groups_of` that the sample is in, where there are any.
    """

    source: str
    reference: Reference
    prediction: str | None
    corpus: str | None = None

    @property
    def is_right(self) -> bool:
        return self.prediction in answers(self.reference)

    def __str__(self) -> str:
        mark = "right" if self.is_right else "wrong"
        references = "".join(f"  reference  {text}\n" for text in answers(self.reference))
        return f"  source     {self.source}\n{references}  {mark:<9}  {self.prediction}\n"


@dataclass(frozen=True)
class Evaluation:
    """Scores by name (numbers, and the signatures that explain them); of each sample, in data order, its prediction.

    `sums` are what `task.score` returned for each sample.
    """

    scores: dict[str, float | str]
    predictions: list[Prediction]
    sums: list[dict[str, Any]]

    @property
    def numbers(self) -> dict[str, float]:
        return {name: value for name, value in self.scores.items() if not isinstance(value, str)}


def evaluate(
    model: PreTrainedModel,
    task: Task,
    rows: Dataset | Iterable[dict[str, Any]],
    *,
    metrics: Sequence[str | Metric] = (),
    generation: GenerationConfig | None = None,
    batch_size: int | None = None,
) -> Evaluation:
    """Score a trained model on rows, such as `{"source": "1 2 3", "target": "3 2 1"}`.

    A target may be a list of texts, each of which is right; metrics then get lists of references.

    Args:
        rows: with the columns of the task: `source` and `target`, only `source` for a language model, and the series by
            their names for a forecaster.
        metrics: names as in `evaluation.metrics`, or functions; without any, no predictions are made.
        generation: how a model that generates makes its predictions; its own generation config where left out.
        batch_size: rows at a time; None for as many as their lengths allow, see `batches_by_length`.

    Raises:
        DataError: for a row that cannot be used, a column that is missing, or no rows at all.
        ConfigError: for the name of a metric that is not known.
    """
    try:
        data = rows if isinstance(rows, Dataset) else Dataset.from_list(list(rows))
    except pyarrow.ArrowException as error:
        raise DataError(f"rows: the values of a column must have one type, such as text: {error}") from error
    missing = [name for name in task.required_columns if len(data) and name not in data.column_names]
    if missing:
        raise DataError(f"rows: there is no column {missing[0]!r}{nearest(missing[0], data.column_names)}")
    if generation is None and model.can_generate():
        generation = model.generation_config
    return evaluate_features(
        model,
        task,
        task.to_evaluation(encode_rows(task, data)),
        batch_size=batch_size,
        generation=generation,
        metrics=[load_metric(metric) if isinstance(metric, str) else metric for metric in metrics],
    )


@torch.no_grad()
def evaluate_features(
    model: PreTrainedModel,
    task: Task,
    features: Sequence[Feature],
    *,
    batch_size: int | None,
    generation: GenerationConfig | None = None,
    metrics: Sequence[Metric] = (),
    mbr: MinimumBayesRisk | None = None,
    description: str | None = "evaluating",
) -> Evaluation:
    """Score a model on all features, each on exactly one rank; every rank gets the whole result.

    Results are kept by sample, so nothing counts twice, however the ranks share the work (see `batches_by_length`).

    Args:
        features: of `task.encode`, with `sample_id`, `source` and `target`.
        generation: how a model that generates makes its predictions.
        metrics: scores of predictions; without any, none are made.
        mbr: how they are chosen among samples, in place of the task's `predict`.
        description: of the progress bar; None shows none.

    Returns:
        means over all items of what `task.scores` names, and what the metrics give; likewise for each of `groups_of`,
        with its name before those of the scores. Of several sets, the scores without a name are the means of theirs.
    """
    state = PartialState()
    results: dict[int, Result] = {}
    for samples, batch in batches_by_length(
        model, task, features, batch_size, state.process_index, state.num_processes, description
    ):
        numbers = task.score(model, batch)
        predictions: Sequence[str | None] = [None] * len(samples)
        if metrics and mbr is not None:
            predictions = mbr.predict(model, task, samples, batch, generation)
        elif metrics:
            predictions = task.predict(model, batch, generation)
        results |= zip([sample["sample_id"] for sample in samples], zip(numbers, predictions, strict=True), strict=True)
    for sample_id, result in gather_object(list(results.items())):
        results[sample_id] = result
    return _summarise(task, features, results, metrics)


def _summarise(
    task: Task, features: Sequence[Feature], results: dict[int, Result], metrics: Sequence[Metric]
) -> Evaluation:
    ordered = [results[feature["sample_id"]] for feature in features]
    corpora = {member: group for group, members in groups_of(features).items() for member in members}
    predictions = [
        Prediction(feature["source"], feature["target"], prediction, corpora.get(number))
        for number, (feature, (_, prediction)) in enumerate(zip(features, ordered, strict=True))
    ]
    numbers = [numbers for numbers, _ in ordered]
    whole = [*range(len(features))]
    if not any(SET in feature for feature in features):
        scores = _score(task, whole, numbers, predictions, metrics)
        return Evaluation(scores | _score_groups(task, features, numbers, predictions, metrics), predictions, numbers)
    of_groups = _score_groups(task, features, numbers, predictions, metrics)
    sets = [*dict.fromkeys(feature[SET] for feature in features)]
    means: dict[str, float | str] = {}
    for name, value in _score(task, whole, numbers, predictions, metrics).items():
        means[name] = value if isinstance(value, str) else fmean(float(of_groups[f"{group}_{name}"]) for group in sets)
    return Evaluation(means | of_groups, predictions, numbers)


def groups_of(features: Sequence[Feature]) -> dict[str, list[int]]:
    """Return the parts of some features that have scores of their own: name -> the numbers of its features.

    They are the held-out sets that have a name, and the language pairs of each where it has several.

    Raises:
        ConfigError: for a set that is called like a pair of another.
    """
    sets: dict[str, list[int]] = {}
    for number, feature in enumerate(features):
        sets.setdefault(feature.get(SET, ""), []).append(number)
    groups: dict[str, list[int]] = {}
    for name, numbers in sets.items():
        pairs: dict[str, list[int]] = {}
        for number in numbers:
            languages = [features[number].get(side) for side in ("source_lang", "target_lang")]
            pairs.setdefault("-".join(filter(None, languages)), []).append(number)
        if name:
            groups[name] = numbers
        if len(pairs) > 1:
            of_pairs = {f"{name}_{pair}" if name else pair: members for pair, members in pairs.items() if pair}
            if both := of_pairs.keys() & sets.keys():
                raise ConfigError(
                    f"the set {min(both)!r} is called like a language pair of the set {name!r}; rename it"
                )
            groups |= of_pairs
    return groups


def _score_groups(
    task: Task,
    features: Sequence[Feature],
    numbers: Sequence[dict[str, Any]],
    predictions: Sequence[Prediction],
    metrics: Sequence[Metric],
) -> dict[str, float | str]:
    return {
        f"{group}_{name}": value
        for group, members in groups_of(features).items()
        for name, value in _score(task, members, numbers, predictions, metrics).items()
        if not isinstance(value, str)  # a signature, which is the same for all
    }


def _score(
    task: Task,
    members: Sequence[int],
    numbers: Sequence[dict[str, Any]],
    predictions: Sequence[Prediction],
    metrics: Sequence[Metric],
) -> dict[str, float | str]:
    """Return the means over all items of some samples, and what the metrics say of their predictions."""
    items = sum(numbers[member]["items"] for member in members)
    given = numbers[members[0]].keys()  # an engine may not give all
    means = {name: sum(numbers[member][name] for member in members) / items for name in task.scores if name in given}
    if "perplexity" in task.scores and "loss" in means:
        means["perplexity"] = perplexity(means["loss"])
    scores: dict[str, float | str] = {name: means[name] for name in task.scores if name in means}
    texts = [predictions[member].prediction or "" for member in members]
    references = alike([predictions[member].reference for member in members])
    for metric in metrics:
        scores |= metric(texts, references)
    return scores
