"""Answers to a list of texts, in batches of like length, in the order they were given."""

from collections.abc import Sequence

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import GenerationConfig, PreTrainedModel

from pipeline.data.rows import BadRow, Columns, separate
from pipeline.errors import ConfigError, DataError
from pipeline.inference.batches import batches_by_length
from pipeline.tasks.base import Task


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    task: Task,
    texts: Sequence[str],
    generation: GenerationConfig | None = None,
    batch_size: int | None = None,
    *,
    source_lang: str | None = None,
    target_lang: str | None = None,
) -> list[str]:
    """Generate one text for each, by the model's own generation config unless another is given.

    Several processes share the texts; each must call this, and gets all answers. An empty or blank text is answered by
    an empty one where there is nothing to read in it.

    Args:
        batch_size: texts at a time; None for as many as their lengths allow, see `batches_by_length`.
        source_lang, target_lang: of all texts, where the model is told languages; its default ones if left out.

    Raises:
        ConfigError: for a blank prompt that a text is to go on from, a task without texts, or a language that the model
            does not know, or must be told.
        DataError: for a text that is longer than the model has positions for.
    """
    if not task.text_columns:
        raise ConfigError("this model takes no texts; call it from Python, as its card shows")
    for number, text in enumerate(texts, start=1):
        if not text.strip() and not task.answers_empty:
            raise ConfigError(f"prompt {number} is empty: give a word at least to go on from")
    numbers = [number for number, text in enumerate(texts) if text.strip()]
    columns: Columns = {"source": [texts[number] for number in numbers], "row": numbers}
    encoded = task.encode(task.with_languages(columns, source_lang, target_lang))
    for number, row in zip(numbers, encoded, strict=True):
        if isinstance(row, BadRow):
            raise DataError(f"text {number + 1}: {row.reason}; shorten it")
    features, _ = separate(encoded)
    state = PartialState()
    predicted: dict[int, str] = {}
    for samples, batch in batches_by_length(
        model, task, features, batch_size, state.process_index, state.num_processes
    ):
        predictions = task.predict(model, batch, generation or getattr(model, "generation_config", None))
        predicted |= zip([sample["sample_id"] for sample in samples], predictions, strict=True)
    everywhere = dict(gather_object([*predicted.items()]))
    return [everywhere.get(number, "") for number in range(len(texts))]
