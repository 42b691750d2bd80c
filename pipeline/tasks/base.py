"""What a task is to the training: how rows become batches, and how outputs become losses and predictions.

Shapes: B batch, S source length, T target length.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import ModelOutput

from pipeline.config import DataConfig
from pipeline.data.rows import BadRow, Columns, Feature
from pipeline.data.splits import Rows

Batch = dict[str, Tensor]


class Task(ABC):
    """One instance serves a run; `training.py` and `evaluation.py` know a task by these members alone.

    Attributes:
        tokenizer: None where the data are no text.
        text_columns: agreed columns whose texts a tokenizer is trained on.
        scores: what every evaluation gives, by name.
        accuracy: the one among them that is the share of items predicted right, where there is one.
        has_metrics: whether there are predictions to score beyond that.
        answers_empty: whether an empty source has an answer, the empty one.
        can_pack: whether many rows can be one sequence, in training.
        boundary: whether `</s>` stands at the "end" or the "start" of a text.
    """

    tokenizer: PreTrainedTokenizerBase | None
    text_columns: ClassVar[tuple[str, ...]] = ("source", "target")
    scores: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "token_accuracy")
    accuracy: ClassVar[str | None] = "token_accuracy"
    has_metrics: ClassVar[bool] = True
    answers_empty: ClassVar[bool] = True
    can_pack: ClassVar[bool] = False
    boundary: ClassVar[str] = "end"

    @classmethod
    @abstractmethod
    def of(cls, tokenizer: Any, model: PreTrainedConfig, data: DataConfig | None = None) -> "Task":
        """The task of a model; with `data`, under the bounds of length that training rows have."""

    @classmethod
    def columns(cls, data: DataConfig) -> dict[str, str]:
        """Agreed name -> name in the data, of what a row must have."""
        return data.columns

    @classmethod
    def sizes(cls, data: DataConfig, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """What the model's config takes from the training rows, such as the names of classes."""
        return {}

    def samples(self, rows: Rows) -> Rows:
        """What is encoded and trained on, where that is not the row as it was read."""
        return rows

    def arrange(self, rows: int, world_size: int) -> Callable[[list[Feature], np.random.Generator], list] | None:
        """How features become batches of `rows`; None groups them by `lengths`, in random order."""
        return None

    @abstractmethod
    def encode(self, columns: Columns) -> list[Feature | BadRow]:
        """Make of each row its feature, or a `BadRow` that says why it cannot be used; `data.rows` has the columns."""

    def held_out(self, features: list[Feature]) -> list[Feature]:
        """What is evaluated of a split, where that is not the feature of each row."""
        return features

    @abstractmethod
    def lengths(self, feature: Feature) -> tuple[int, ...]:
        """Tokens on each side that is padded by itself."""

    @abstractmethod
    def collate(self, features: list[Feature]) -> Batch:
        """Features to a batch whose keys are arguments of the model's `forward`."""

    def pack(self, features: list[Feature]) -> Batch:
        """As `collate`, in one sequence without padding between the rows."""
        raise NotImplementedError

    def targets(self, batch: Batch) -> Batch:
        """The batch with its items as "labels", where Trainer counts them."""
        return batch

    def with_state(self, batch: Batch) -> dict[str, Any]:
        """The arguments of `forward` in training: a batch, and what is carried to it from the one before."""
        return dict(batch)

    def keep_state(self, outputs: ModelOutput) -> None:
        """Keeps what is carried to the next batch in training."""
        return

    def state_dict(self) -> dict[str, Tensor]:
        """What is carried, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes up what a checkpoint has."""
        return

    def loss(
        self, outputs: ModelOutput, labels: Tensor, num_items_in_batch: Tensor | int, label_smoothing: float = 0.0
    ) -> Tensor:
        """The loss of training for models of others, which divide theirs by the items of one micro-batch."""
        raise NotImplementedError(f"{type(self).__name__} trains this project's own models only")

    def losses(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        """The loss of each sample (B), summed over its items, without smoothing."""
        raise NotImplementedError

    @abstractmethod
    def count(self, outputs: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """For each sample (B): the number of its items, and of those predicted right."""

    def score(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, float]]:
        """For each sample: the number of its "items", and sums over them by the names of `scores`."""
        outputs = model(**batch)
        counts, correct = self.count(outputs, batch)
        numbers = zip(self.losses(outputs, batch).tolist(), counts.tolist(), correct.tolist(), strict=True)
        return [{"items": items, "loss": loss, str(self.accuracy): right} for loss, items, right in numbers]

    def draw(self, model: PreTrainedModel, features: list[Feature], folder: Path) -> None:
        """Pictures of what a finished model predicts, where a picture says something."""
        return

    def predict(self, model: PreTrainedModel, batch: Batch, generation: GenerationConfig | None) -> list[Any]:
        """The model's own answer to each sample."""
        raise NotImplementedError


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], is_target: bool = False) -> list[list[int]]:
    """Give the token ids of each text, as `tokenizer(texts)` does, in half the time.

    Args:
        is_target: whether the texts are targets; some tokenizers encode those otherwise.
    """
    if not texts:
        return []
    if type(tokenizer) is PreTrainedTokenizerFast:
        tokenizer("")  # sets up the backend: nothing cut, nothing padded, special tokens in a text taken as text
        return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts)]
    argument = "text_target" if is_target else "text"  # some have a target language
    # verbose would warn of long texts, which are bad rows here.
    return tokenizer(**{argument: texts}, return_attention_mask=False, verbose=False)["input_ids"]
