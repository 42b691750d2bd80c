"""Text to one of several classes; the columns are `source`, the text, and `target`, the class."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from pipeline.config import DataConfig
from pipeline.data.rows import BadRow, Columns, Feature, encode_rows, find_text_problem
from pipeline.errors import ConfigError, nearest
from pipeline.tasks.base import Batch, Task, tokenize


@dataclass
class TextClassification(Task):
    """Texts and their classes.

    Args:
        labels: names of the classes, in the order of the model's outputs.
        max_length: in tokens; longer texts are bad rows. None keeps all.
    """

    tokenizer: PreTrainedTokenizerBase
    labels: list[str]
    max_length: int | None = None

    text_columns: ClassVar[tuple[str, ...]] = ("source",)
    scores: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    accuracy: ClassVar[str | None] = "accuracy"

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, model: PreTrainedConfig, data: DataConfig | None = None
    ) -> "TextClassification":
        labels = [model.id2label[index] for index in range(len(model.id2label))]
        return cls(tokenizer, labels, data.max_source_length if data else None)

    @classmethod
    def sizes(cls, data: DataConfig, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Names of the classes: those of `data.labels`, or all that the training split has.

        Raises:
            ConfigError: for fewer than two, or a stream, which would have to be read to its end.
        """
        if data.labels is None and data.streaming:
            raise ConfigError("data.labels: name the classes, as a stream is not read to its end to find them")
        found = [_name(row["target"]) for row in rows] if data.labels is None else []
        names = data.labels or sorted({name for name in found if name is not None}, key=_in_order)
        if len({*names}) < 2:
            raise ConfigError(f"data.target: there must be two classes at least; found: {', '.join(names) or 'none'}")
        return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}

    def encode(self, columns: Columns) -> list[Feature | BadRow]:
        """Texts to ids, classes to numbers.

        Without a target column, as for prediction, any text goes, and the label is 0.
        """
        return encode_rows(columns, self._find_problem, self._make_features, self._find_excess_length)

    def _find_problem(self, row: dict[str, Any]) -> str | None:
        if "target" not in row:
            return None
        return find_text_problem("source", row["source"]) or self._find_class_problem(row["target"])

    def _find_class_problem(self, target: object) -> str | None:
        if (name := _name(target)) is None:
            return f"target is {target!r}, where the name or number of a class is needed"
        if self._number(target) is None:
            return f"target {name!r} is no class of the training{nearest(name, self.labels)}"
        return None

    def _make_features(self, columns: Columns) -> list[Feature]:
        sources = columns["source"]
        numbers = [self._number(target) for target in columns.get("target") or [None] * len(sources)]
        rows = zip(columns["row"], sources, numbers, tokenize(self.tokenizer, sources), strict=True)
        return [
            {
                "sample_id": row,
                "source": source,
                "target": "" if number is None else self.labels[number],
                "input_ids": ids,
                "labels": number or 0,
            }
            for row, source, number, ids in rows
        ]

    def _find_excess_length(self, feature: Feature) -> str | None:
        num_tokens = len(feature["input_ids"])
        if self.max_length is not None and num_tokens > self.max_length:
            return f"source has {num_tokens} tokens, where data.max_source_length={self.max_length}"
        return None

    def _number(self, target: object) -> int | None:
        """Of the class that has this name, or else this number, as data sets with names of classes store it."""
        name = _name(target)
        if name in self.labels:
            return self.labels.index(name)
        is_number = isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(self.labels)
        return int(str(target)) if is_number else None

    def lengths(self, feature: Feature) -> tuple[int, ...]:
        return (len(feature["input_ids"]),)

    def collate(self, features: list[Feature]) -> Batch:
        """Right-padded `input_ids` and `attention_mask` (B, S), and `labels` (B,)."""
        sources = [torch.tensor(feature["input_ids"]) for feature in features]
        pad = nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(sources, batch_first=True, padding_value=self.tokenizer.pad_token_id),
            "attention_mask": pad([torch.ones_like(source) for source in sources], batch_first=True),
            "labels": torch.tensor([feature["labels"] for feature in features]),
        }

    def loss(
        self,
        outputs: SequenceClassifierOutput,
        labels: Tensor,
        num_items_in_batch: Tensor | int,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """The loss of training for models that divide theirs by the texts of one micro-batch."""
        return (
            nn.functional.cross_entropy(
                outputs.logits.float(), labels, label_smoothing=label_smoothing, reduction="sum"
            )
            / num_items_in_batch
        )

    def losses(self, outputs: SequenceClassifierOutput, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(outputs.logits.float(), batch["labels"], reduction="none")

    def count(self, outputs: SequenceClassifierOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """One for each text, and one where the most probable class is the right one."""
        return torch.ones_like(batch["labels"]), outputs.logits.argmax(-1).eq(batch["labels"]).long()

    def predict(self, model: PreTrainedModel, batch: Batch, generation: GenerationConfig | None) -> list[str]:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return [self.labels[number] for number in logits.argmax(-1).tolist()]


def _name(target: object) -> str | None:
    """Class names are texts; numbers are taken as their digits."""
    if isinstance(target, bool) or not isinstance(target, int | str):
        return None
    return str(target).strip() or None


def _in_order(name: str) -> tuple[int, int, str]:
    """Numbers by their value, before names."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)
