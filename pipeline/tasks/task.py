"""What a task is to the training: how rows become batches, and how outputs become losses and predictions.

Shapes: B batch, S source length, T target length.
"""

from typing import Any, Protocol

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

Columns = dict[str, list]
Feature = dict[str, Any]
Batch = dict[str, Tensor]


class Task(Protocol):
    """One instance serves a run; `training.py` and `evaluation.py` know a task by these members alone."""

    tokenizer: PreTrainedTokenizerBase

    def encode(self, columns: Columns) -> list[Feature | str]:
        """Rows, with their numbers as column "row", to one feature each; for a bad row, to what is wrong with it."""
        ...

    def lengths(self, feature: Feature) -> tuple[int, ...]:
        """Tokens on each side that is padded by itself."""
        ...

    def collate(self, features: list[Feature]) -> Batch:
        """Features to a batch whose keys are arguments of the model's `forward`."""
        ...

    def losses(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        """The loss of each sample (B), summed over its items, without smoothing."""
        ...

    def count(self, outputs: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """For each sample (B): the number of its items, and of those predicted right."""
        ...

    def predict(self, model: PreTrainedModel, batch: Batch, generation: GenerationConfig) -> list[str]:
        """The model's own answer to each sample."""
        ...


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], is_target: bool = False) -> list[list[int]]:
    """Token ids of each text, as `tokenizer(texts)` gives them, which takes twice as long for what else it makes."""
    if not texts:
        return []
    if type(tokenizer) is PreTrainedTokenizerFast:
        tokenizer("")  # sets up the backend: nothing cut, nothing padded, special tokens in a text taken as text
        return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts)]
    given = {"text_target" if is_target else "text": texts}  # some have a target language
    return tokenizer(**given, return_attention_mask=False, verbose=False)["input_ids"]  # verbose: about long ones
