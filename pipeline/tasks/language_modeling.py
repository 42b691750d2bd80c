"""Running text to the next token of it; the column is `source`, and its rows follow one another.

Shapes: S streams, B rows of a batch, T tokens of a chunk.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from pipeline.config import Config, DataConfig, Section
from pipeline.data.rows import BadRow, Columns, Feature, encode_rows, find_text_problem
from pipeline.data_config import ColumnNames
from pipeline.models.modeling_lstm import LSTMState
from pipeline.models.modeling_seq2seq import IGNORED
from pipeline.tasks.base import Batch, CardText, RowScore, Task, tokenize

HELD_OUT_STREAMS = 16  # into which the text of an evaluation is cut, so that it takes no step for every token
HELD_OUT_CHUNK = 256  # tokens of each that are scored at a time
EXAMPLE = 8  # tokens
PARTS = ("hidden", "cell")


class LanguageModelingSettings(Section):
    bptt: int = Field(
        64,
        ge=1,
        description="tokens through which the gradient goes back",
        json_schema_extra={"formerly": "data.bptt"},
    )


@dataclass
class LanguageModeling(Task):
    """One text, of which every row of a batch reads a part from beginning to end, carrying its state along.

    The rows of a window are joined, each after the token `</s>`, and cut into as many streams of one length as a step
    has rows. A batch holds the next `bptt` tokens of each: truncated back-propagation through time, as in Zaremba et
    al. 2014 (https://arxiv.org/abs/1409.2329). The state begins at zero with each window.

    Args:
        bptt: tokens through which a gradient goes back.
    """

    card: ClassVar[CardText] = CardText(
        pipeline_tag="text-generation",
        model="An LSTM language model",
        data="the running text of column `{source}`",
        use="""from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
prompt = tokenizer("{example}", return_tensors="pt")
ids = model.generate(**prompt, do_sample=True, top_k=10, temperature=0.6, max_new_tokens=100)
print(tokenizer.decode(ids[0], skip_special_tokens=True))""",
    )
    tokenizer: PreTrainedTokenizerBase
    bptt: int = HELD_OUT_CHUNK
    carried: LSTMState | None = field(default=None, repr=False)

    settings: ClassVar[type[Section]] = LanguageModelingSettings
    auto_class: ClassVar[Any] = AutoModelForCausalLM
    text_columns: ClassVar[tuple[str, ...]] = ("source",)
    eos_position: ClassVar[str] = "start"
    has_log_probabilities: ClassVar[bool] = True
    has_metrics: ClassVar[bool] = False
    answers_empty: ClassVar[bool] = False
    has_independent_rows: ClassVar[bool] = False

    @classmethod
    def from_model(
        cls, tokenizer: PreTrainedTokenizerBase, model: PreTrainedConfig, config: Config | None = None
    ) -> "LanguageModeling":
        return cls(tokenizer, config.task_settings.bptt) if config else cls(tokenizer)

    @property
    def required_columns(self) -> tuple[str, ...]:
        return ("source",)

    @classmethod
    def columns(cls, config: Config) -> ColumnNames:
        return {"source": config.data.source}

    def encode(self, columns: Columns, limits: DataConfig | None = None) -> list[Feature | BadRow]:
        return encode_rows(columns, lambda row: find_text_problem("source", row["source"]), self._make_features)

    def _make_features(self, columns: Columns) -> list[Feature]:
        rows = zip(columns["row"], columns["source"], tokenize(self.tokenizer, columns["source"]), strict=True)
        return [{"sample_id": row, "source": source, "target": "", "input_ids": ids} for row, source, ids in rows]

    def make_batches(self, rows: int, world_size: int) -> Callable[[list[Feature], np.random.Generator], list]:
        """Make batches that are continued `world_size` batches later, so each rank carries the state of its streams."""

        def cut(features: list[Feature], generator: np.random.Generator) -> list[list[Feature]]:
            inputs, labels = self._streams(features, rows * world_size)
            return [
                [
                    {
                        "input_ids": inputs[stream, start : start + self.bptt],
                        "labels": labels[stream, start : start + self.bptt],
                        "is_first": start == 0,
                    }
                    for stream in range(rank * rows, (rank + 1) * rows)
                ]
                for start in range(0, inputs.shape[1], self.bptt)
                for rank in range(world_size)
            ]

        return cut

    def to_evaluation(self, features: list[Feature]) -> list[Feature]:
        """Cut the whole text into a few long streams."""
        if not features:
            return []
        inputs, labels = self._streams(features, HELD_OUT_STREAMS)
        # A token belongs to the text of the one before it: the `</s>` that begins a text ends that before it.
        rows = np.repeat([row["sample_id"] for row in features], [len(row["input_ids"]) for row in features])
        rows.resize(inputs.shape)
        return [
            {
                "sample_id": stream,
                "source": self.tokenizer.decode(inputs[stream, :EXAMPLE], skip_special_tokens=True),
                "target": "",
                "input_ids": inputs[stream],
                "labels": labels[stream],
                "rows": rows[stream],
            }
            for stream in range(HELD_OUT_STREAMS)
        ]

    def join(self, streams: list[Feature]) -> list[int]:
        """Join what `to_evaluation` cut: the tokens of the whole text, of which only the first is not predicted."""
        labels = np.concatenate([stream["labels"] for stream in streams])
        return [int(streams[0]["input_ids"][0]), *labels[labels != IGNORED].tolist()]

    def _streams(self, features: Iterable[Feature], count: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut a text into `count` streams: inputs and, one place on, labels, (S, L) each; the last one is padded."""
        ids = [token_id for feature in features for token_id in feature["input_ids"]] + [self.tokenizer.eos_token_id]
        length = math.ceil((len(ids) - 1) / count)
        inputs = np.full(count * length, self.tokenizer.pad_token_id)
        labels = np.full(count * length, IGNORED)
        inputs[: len(ids) - 1], labels[: len(ids) - 1] = ids[:-1], ids[1:]
        return inputs.reshape(count, length), labels.reshape(count, length)

    def lengths(self, feature: Feature) -> tuple[int, ...]:
        return (len(feature["input_ids"]),)

    def collate(self, features: list[Feature]) -> Batch:
        """Stack `input_ids`, `labels` and `shift_labels` (B, T); for prompts, left-pad `input_ids` and their mask."""
        inputs = [torch.as_tensor(feature["input_ids"]) for feature in features]
        if "labels" not in features[0]:
            pad = nn.utils.rnn.pad_sequence
            return {
                "input_ids": pad(
                    inputs, batch_first=True, padding_value=self.tokenizer.pad_token_id, padding_side="left"
                ),
                "attention_mask": pad([torch.ones_like(ids) for ids in inputs], True, padding_side="left"),
            }
        labels = torch.stack([torch.as_tensor(feature["labels"]) for feature in features])
        # Trainer counts the targets of "labels"; the model takes those that are shifted already by another name.
        batch = {"input_ids": torch.stack(inputs), "labels": labels, "shift_labels": labels}
        if "is_first" in features[0]:
            batch["is_first"] = torch.tensor([feature["is_first"] for feature in features])
        return batch

    def with_state(self, batch: Batch) -> dict[str, Any]:
        inputs: dict[str, Any] = dict(batch)
        if inputs.pop("is_first").any():
            self.carried = None
        return inputs | {"past_key_values": self.carried, "use_cache": True}

    def keep_state(self, outputs: CausalLMOutputWithPast) -> None:
        self.carried = outputs.past_key_values.detach()

    def state_dict(self) -> dict[str, Tensor]:
        if self.carried is None:
            return {}
        layers = zip(self.carried.hidden, self.carried.cell, strict=True)
        return {
            f"{name}.{number}": tensor
            for number, pair in enumerate(layers)
            for name, tensor in zip(PARTS, pair, strict=True)
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        hidden, cell = ([state[f"{name}.{n}"] for n in range(len(state) // len(PARTS))] for name in PARTS)
        self.carried = LSTMState(hidden, cell)

    def losses(self, outputs: CausalLMOutputWithPast, batch: Batch) -> Tensor:
        return self._token_losses(outputs, batch).sum(-1)

    def _token_losses(self, outputs: CausalLMOutputWithPast, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(
            outputs.logits.float().transpose(1, 2), batch["labels"], ignore_index=IGNORED, reduction="none"
        )

    def count_items(self, outputs: CausalLMOutputWithPast, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]
        return labels.ne(IGNORED).sum(-1), outputs.logits.argmax(-1).eq(labels).sum(-1)

    def score(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, Any]]:
        """Score chunk by chunk, carrying the state on: each token is predicted from all before it in its stream.

        Beside the sums there are "token_losses", which belong to several rows of the data.
        """
        rows, length = batch["input_ids"].shape
        sums = torch.zeros(3, rows, dtype=torch.float64)
        token_losses = []
        state = None
        for start in range(0, length, HELD_OUT_CHUNK):
            chunk = {name: tensor[:, start : start + HELD_OUT_CHUNK] for name, tensor in batch.items()}
            outputs = model(input_ids=chunk["input_ids"], past_key_values=state, use_cache=True)
            state = outputs.past_key_values
            losses = self._token_losses(outputs, chunk)
            token_losses.append(losses.cpu())
            counts = self.count_items(outputs, chunk)
            sums += torch.stack([numbers.double().cpu() for numbers in (losses.sum(-1), *counts)])
        return [
            {"loss": loss, "items": items, "token_accuracy": right, "token_losses": losses}
            for (loss, items, right), losses in zip(sums.T.tolist(), torch.cat(token_losses, 1).numpy(), strict=True)
        ]

    def score_rows(self, samples: list[Feature], sums: list[dict[str, Any]]) -> list[RowScore]:
        """Return the log-probability of each text and its end, after the texts before it in its stream."""
        is_label = np.concatenate([sample["labels"] for sample in samples]) != IGNORED
        rows = np.concatenate([sample["rows"] for sample in samples])[is_label]
        losses = np.concatenate([numbers["token_losses"] for numbers in sums])[is_label]
        numbers, index = np.unique(rows, return_inverse=True)
        totals, counts = np.bincount(index, losses), np.bincount(index)
        return [RowScore(*row) for row in zip(numbers.tolist(), (-totals).tolist(), counts.tolist(), strict=True)]

    def predict(self, model: PreTrainedModel, batch: Batch, generation: GenerationConfig | None) -> list[str]:
        """Return each prompt with its continuation."""
        return self.tokenizer.batch_decode(self.generate(model, batch, generation), skip_special_tokens=True)
