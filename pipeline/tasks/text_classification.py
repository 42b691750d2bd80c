"""Text to one of several classes; the columns are `source`, the text, and `target`, the class."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from pipeline.config import Config, DataConfig, Section, check_distinct
from pipeline.data.rows import (
    BadRow,
    ClassName,
    Columns,
    Feature,
    encode_rows,
    find_excess_length,
    find_text_problem,
    shorten,
)
from pipeline.errors import ConfigError, nearest
from pipeline.tasks.base import Batch, Better, CardText, Task, repeat_to, sums_by_sample, tokenize

NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")


class TextClassificationSettings(Section):
    labels: list[str] | None = Field(
        None,
        min_length=2,
        description="names of the classes, in the order of their numbers; null: those of the training split, sorted",
        json_schema_extra={"formerly": "data.labels"},
    )

    _check_labels = field_validator("labels")(check_distinct)


@dataclass
class TextClassification(Task):
    """Texts and their classes.

    Args:
        labels: names of the classes, in the order of the model's outputs.
    """

    card: ClassVar[CardText] = CardText(
        pipeline_tag="text-classification",
        model="A Transformer encoder with a linear head",
        data="class in column `{target}` of the text in column `{source}`",
        use="""from transformers import pipeline

classify = pipeline("text-classification", model="{name}"{trust})
print(classify("{example}"))""",
        limits="Texts in training had up to {max_source_length} tokens.",
    )
    drawn_score: ClassVar[str | None] = "accuracy"
    tokenizer: PreTrainedTokenizerBase
    labels: list[str]

    settings: ClassVar[type[Section]] = TextClassificationSettings
    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    trains_other_models: ClassVar[bool] = True
    has_log_probabilities: ClassVar[bool] = True
    default_metrics: ClassVar[tuple[str, ...]] = ("exact_match",)
    text_columns: ClassVar[tuple[str, ...]] = ("source",)
    scores: ClassVar[dict[str, Better]] = {"loss": "lower", "accuracy": "higher"}
    accuracy: ClassVar[str | None] = "accuracy"

    @classmethod
    def from_model(
        cls, tokenizer: PreTrainedTokenizerBase, model: PreTrainedConfig, config: Config | None = None
    ) -> "TextClassification":
        return cls(tokenizer, [model.id2label[index] for index in range(len(model.id2label))])

    @classmethod
    def model_settings(cls, config: Config, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Return the names of the classes: those of `text_classification.labels`, or all in the training split.

        Raises:
            ConfigError: for fewer than two, or a stream, which would have to be read to its end.
        """
        labels = config.task_settings.labels
        if labels is None and any(corpus.streaming for corpus in config.data.corpora.values()):
            raise ConfigError(
                "text_classification.labels: name the classes, as a stream is not read to its end to find them"
            )
        names = labels or _class_names((row["target"] for row in rows), config.data.mix is not None)
        if len({*names}) < 2:
            raise ConfigError(
                f"data.target: there must be at least two classes; found: {', '.join(names) or 'none'}; is "
                f"{config.data.target} the column of the classes, with a name or number in each row?"
            )
        return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}

    def encode(self, columns: Columns, limits: DataConfig | None = None) -> list[Feature | BadRow]:
        """Encode texts as ids, classes as numbers.

        Without a target column, as for prediction, any text goes, and the label is 0.
        """
        find_fault = partial(self._find_excess_length, limits)
        return encode_rows(columns, self._find_problem, self._make_features, find_fault)

    def _find_problem(self, row: dict[str, Any]) -> str | None:
        if "target" not in row:
            return None
        return find_text_problem("source", row["source"]) or self._find_class_problem(row["target"])

    def _find_class_problem(self, target: object) -> str | None:
        if (name := _name(target)) is None:
            return f"target is {shorten(target)}, where the name or number of a class is needed"
        if self._number(target) is None:
            return f"target {name!r} is not a class of the training split{nearest(name, self.labels)}"
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

    def _find_excess_length(self, limits: DataConfig | None, feature: Feature) -> str | None:
        if limits is None:
            return None
        return find_excess_length("source", len(feature["input_ids"]), limits.max_source_length)

    def _number(self, target: object) -> int | None:
        """Return the number of the class with this name, or else with this number, which some data sets store."""
        name = _name(target)
        if name in self.labels:
            return self.labels.index(name)
        if name is None or any(map(NUMBER.fullmatch, self.labels)):  # numbers that are names mean no other
            return None
        number = target.number if isinstance(target, ClassName) else int(target) if isinstance(target, bool) else name
        return next((index for index in range(len(self.labels)) if str(number) in (str(index), f"{index}.0")), None)

    def lengths(self, feature: Feature) -> tuple[int, ...]:
        return (len(feature["input_ids"]),)

    def stretch(self, feature: Feature, limits: DataConfig) -> Feature:
        return feature | {"input_ids": repeat_to(limits.max_source_length, feature["input_ids"])}

    def collate(self, features: list[Feature]) -> Batch:
        """Right-pad `input_ids` and `attention_mask` to (B, S), and stack `labels` (B,)."""
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
        """Compute the training loss for models that divide theirs by the texts of one micro-batch."""
        return (
            nn.functional.cross_entropy(
                outputs.logits.float(), labels, label_smoothing=label_smoothing, reduction="sum"
            )
            / num_items_in_batch
        )

    def losses(self, outputs: SequenceClassifierOutput, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(outputs.logits.float(), batch["labels"], reduction="none")

    def count_items(self, outputs: SequenceClassifierOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Count one for each text, and one where the most probable class is the right one."""
        return torch.ones_like(batch["labels"]), outputs.logits.argmax(-1).eq(batch["labels"]).long()

    def score(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, float]]:
        outputs = model(**batch)
        return sums_by_sample(self.losses(outputs, batch), *self.count_items(outputs, batch), "accuracy")

    def predict(self, model: PreTrainedModel, batch: Batch, generation: GenerationConfig | None) -> list[str]:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return [self.labels[number] for number in logits.argmax(-1).tolist()]


def _class_names(targets: Iterable[object], is_mix: bool = False) -> list[str]:
    """Return the names of all classes, those of a data set that numbers them in the order of their numbers.

    Args:
        is_mix: whether a data set that numbers its classes may be one of several, so that there may be others.
    """
    numbered: dict[str, None] = {}
    others: set[str] = set()
    for target in targets:
        if isinstance(target, ClassName):
            names = [name.strip() for name in target.names]
            if not is_mix:
                return names
            numbered |= dict.fromkeys(names)
        elif (name := _name(target)) is not None:
            others.add(name)
    if numbered:  # beside which a number is the place of a class, see `TextClassification._number`
        others = {name for name in others if name not in numbered and not NUMBER.fullmatch(name)}
    return [*numbered, *sorted(others, key=_in_order)]


def _name(target: object) -> str | None:
    """Return the name of a class as text, as a number or a bool is written; None for what cannot be a name."""
    if not isinstance(target, int | float | str) or (isinstance(target, float) and not math.isfinite(target)):
        return None
    try:
        return str(target).strip() or None
    except ValueError:  # a whole number with thousands of digits
        return None


def _in_order(name: str) -> tuple[int, float, str]:
    """Return a key that sorts numbers by their value, before names."""
    return (0, float(name), name) if NUMBER.fullmatch(name) else (1, 0, name)
