"""Evaluation: every sample counted once, every token weighing the same, on any number of ranks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedModel

from pipeline.errors import DataError, nearest
from pipeline.inference.batches import batches_by_length
from pipeline.inference.metrics import Metric, Reference, alike, answers, load_metric, perplexity
from pipeline.tasks.base import Feature, Task
from pipeline.tasks.encoding import encode_rows

Result = tuple[dict[str, float], str | None]  # of one sample: its numbers, and its prediction


@dataclass(frozen=True)
class Prediction:
    """One sample's part of an evaluation; `prediction` is None where nothing was generated.

    `reference` is as in the data: a text, or a list of texts, each of which is right.
    """

    source: str
    reference: Reference
    prediction: str | None

    @property
    def is_right(self) -> bool:
        return self.prediction in answers(self.reference)

    def __str__(self) -> str:
        mark = "right" if self.is_right else "wrong"
        references = "".join(f"  reference  {text}\n" for text in answers(self.reference))
        return f"  source     {self.source}\n{references}  {mark:<9}  {self.prediction}\n"


@dataclass(frozen=True)
class Evaluation:
    """Scores by name (numbers, and the signatures that explain them), and one prediction a sample, in data order."""

    scores: dict[str, float | str]
    predictions: list[Prediction]

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
    batch_size: int = 32,
) -> Evaluation:
    """Score a trained model on rows, such as `{"source": "1 2 3", "target": "3 2 1"}`.

    A target may be a list of texts, each of which is right; metrics then get lists of references.

    Args:
        rows: with the columns of the task: `source` and `target`, only `source` for a language model, and the series by
            their names for a forecaster.
        metrics: names as in `evaluation.metrics`, or functions; without any, no predictions are made.
        generation: how a model that generates makes its predictions; its own generation config where left out.

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
    batch_size: int,
    generation: GenerationConfig | None = None,
    metrics: Sequence[Metric] = (),
    description: str | None = "evaluating",
) -> Evaluation:
    """Score a model on all features, each on exactly one rank; every rank gets the whole result.

    Results are kept by sample, so nothing counts twice, however the ranks share the work (see `batches_by_length`).

    Args:
        features: of `task.encode`, with `sample_id`, `source` and `target`.
        generation: how a model that generates makes its predictions.
        metrics: scores of predictions; without any, none are made.
        description: of the progress bar; None shows none.

    Returns:
        means over all items of what `task.scores` names, and what the metrics give.
    """
    state = PartialState()
    results: dict[int, Result] = {}
    for samples, batch in batches_by_length(
        model, task, features, batch_size, state.process_index, state.num_processes, description
    ):
        numbers = task.score(model, batch)
        predictions = task.predict(model, batch, generation) if metrics else [None] * len(samples)
        results |= zip([sample["sample_id"] for sample in samples], zip(numbers, predictions, strict=True), strict=True)
    for sample_id, result in gather_object(list(results.items())):
        results[sample_id] = result
    return _summarise(task, features, results, metrics)


def _summarise(
    task: Task, features: Sequence[Feature], results: dict[int, Result], metrics: Sequence[Metric]
) -> Evaluation:
    ordered = [results[feature["sample_id"]] for feature in features]
    items = sum(numbers["items"] for numbers, _ in ordered)
    given = ordered[0][0].keys()  # an engine may not give all
    means = {name: sum(numbers[name] for numbers, _ in ordered) / items for name in task.scores if name in given}
    if "perplexity" in task.scores and "loss" in means:
        means["perplexity"] = perplexity(means["loss"])
    scores: dict[str, float | str] = {name: means[name] for name in task.scores if name in means}
    predictions = [
        Prediction(feature["source"], feature["target"], prediction)
        for feature, (_, prediction) in zip(features, ordered, strict=True)
    ]
    texts = [prediction.prediction or "" for prediction in predictions]
    references = alike([prediction.reference for prediction in predictions])
    for metric in metrics:
        scores |= metric(texts, references)
    return Evaluation(scores, predictions)
