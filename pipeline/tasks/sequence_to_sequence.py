"""Text to text: reversal, translation, summarisation, and whatever else is a pair of sequences."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import Seq2SeqLMOutput

from pipeline.config import DataError
from pipeline.models.modeling_seq2seq import IGNORED
from pipeline.tasks.task import Batch, Columns, Feature


@dataclass
class SequenceToSequence:
    """Pairs of texts over one vocabulary; the columns are `source` and `target`.

    Args:
        max_source_length, max_target_length: in tokens, `</s>` included. Rows over it are left out; None keeps all.
    """

    tokenizer: PreTrainedTokenizerBase
    max_source_length: int | None = None
    max_target_length: int | None = None

    def encode(self, columns: Columns) -> list[Feature | None]:
        """Texts to ids, each ending in `</s>`.

        Raises:
            DataError: for a value that is not text, naming row and column.
        """
        for name in ("source", "target"):
            for row, text in zip(columns["row"], columns[name], strict=True):
                if not isinstance(text, str):
                    raise DataError(f"row {row}: {name} is {text!r}, where a text is needed; mend or remove the row")
        sources = self.tokenizer(columns["source"], return_attention_mask=False)["input_ids"]
        targets = self.tokenizer(text_target=columns["target"], return_attention_mask=False)["input_ids"]
        return [
            {"sample_id": row, "source": source, "target": target, "input_ids": input_ids, "labels": labels}
            if self._fits(input_ids, labels)
            else None
            for row, source, target, input_ids, labels in zip(
                columns["row"], columns["source"], columns["target"], sources, targets, strict=True
            )
        ]

    def _fits(self, input_ids: list[int], labels: list[int]) -> bool:
        bounds = (self.max_source_length, self.max_target_length)
        return all(bound is None or len(ids) <= bound for bound, ids in zip(bounds, (input_ids, labels), strict=True))

    def lengths(self, feature: Feature) -> tuple[int, int]:
        return len(feature["input_ids"]), len(feature["labels"])

    def collate(self, features: list[Feature]) -> Batch:
        """Right-pads each side to its longest row.

        Two pairs, ([7, 8, 2], [9, 2]) and ([7, 2], [8, 9, 2]), with padding 0 and `</s>` 2, become

            input_ids      [[7, 8, 2], [7, 2, 0]]
            attention_mask [[1, 1, 1], [1, 1, 0]]
            labels         [[9, 2, -100], [8, 9, 2]]
        """
        sources = [torch.tensor(feature["input_ids"]) for feature in features]
        targets = [torch.tensor(feature["labels"]) for feature in features]
        masks = [torch.ones_like(source) for source in sources]
        pad = nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(sources, batch_first=True, padding_value=self.tokenizer.pad_token_id),  # (B, S)
            "attention_mask": pad(masks, batch_first=True),  # (B, S)
            "labels": pad(targets, batch_first=True, padding_value=IGNORED),  # (B, T)
        }

    def losses(self, outputs: Seq2SeqLMOutput, batch: Batch) -> Tensor:
        """Cross-entropy in nats."""
        labels, logits = batch["labels"], outputs.logits  # (B, T), (B, T, V)
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return losses.view_as(labels).sum(-1)

    def count(self, outputs: Seq2SeqLMOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Target tokens, and those whose most probable token is the right one."""
        correct = outputs.logits.argmax(-1).eq(batch["labels"])  # (B, T); an ignored label equals no token
        return batch["labels"].ne(IGNORED).sum(-1), correct.sum(-1)

    def predict(self, model: PreTrainedModel, batch: Batch, generation: GenerationConfig) -> list[str]:
        ids = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], generation_config=generation)
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)
