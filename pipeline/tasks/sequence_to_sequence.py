"""Text to text: reversal, translation, summarisation, and whatever else is a pair of sequences."""

from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, zip_longest
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import Seq2SeqLMOutput

from pipeline.config import Config, DataConfig
from pipeline.data.augmentation import READ_LABELS
from pipeline.data.rows import (
    BadRow,
    Columns,
    Feature,
    encode_rows,
    find_excess_length,
    find_text_problem,
    first_text,
)
from pipeline.data_config import ColumnNames
from pipeline.errors import ConfigError
from pipeline.models.modeling_seq2seq import IGNORED
from pipeline.models.transformer_layers import BLOCK
from pipeline.tasks.base import Batch, CardText, Task, repeat_to, sums_by_sample, tokenize
from pipeline.tasks.row_languages import (
    TURN_THE_LAST_LABEL_TO_THE_FRONT,
    Languages,
    SourceMarks,
    TargetMarks,
    has_languages,
    languages_of_model,
    languages_of_tokenizer,
)

# Sinusoids that grow with the text, though `max_position_embeddings` stands in the config.
ENDLESS_POSITIONS = ("fsmt", "m2m_100", "nllb-moe", "pegasus_x", "seamless_m4t", "seamless_m4t_v2")
MARKS = {"source_lang", "target_lang", "source_tag"}  # columns
UNMARKED = SourceMarks((), ())
POSITIONS_BEHIND_PADDING = ("camembert", "prophetnet", "roberta", "xlm-roberta")


@dataclass
class SequenceToSequence(Task):
    """Pairs of texts over one vocabulary; the columns are `source` and `target`.

    A target may be a list of texts, each of which is right: all of them count in evaluation, the first is learned.
    Limits of length are in tokens, `</s>` included.
    """

    auto_class: ClassVar[Any] = AutoModelForSeq2SeqLM
    trains_other_models: ClassVar[bool] = True
    card: ClassVar[CardText] = CardText(
        pipeline_tag="translation",
        model="An encoder-decoder Transformer",
        data="column `{source}` to column `{target}`",
        use="""from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
model = AutoModelForSeq2SeqLM.from_pretrained("{name}"{trust})
inputs = tokenizer(["{mark}{example}"], padding=True, return_tensors="pt"{tokenizer_option})
ids = model.generate(**inputs{generate_option})
print(tokenizer.batch_decode(ids, skip_special_tokens=True))""",
        limits="Sources in training had up to {max_source_length} tokens, and targets up to {max_target_length}.",
        pipeline_use="""from transformers import pipeline

translate = pipeline("translation", model="{name}"{trust})
print(translate("{example}"{pipeline_option}))""",
    )
    answers_sentences: ClassVar[bool] = True
    can_pack: ClassVar[bool] = True
    has_log_probabilities: ClassVar[bool] = True
    default_metrics: ClassVar[tuple[str, ...]] = ("exact_match",)

    tokenizer: PreTrainedTokenizerBase
    max_positions: tuple[int | None, int | None] = (None, None)
    languages: Languages = field(default_factory=Languages)
    start_token_id: int | None = None

    @classmethod
    def from_model(
        cls, tokenizer: PreTrainedTokenizerBase, model: PreTrainedConfig, config: Config | None = None
    ) -> "SequenceToSequence":
        """Raise ConfigError where `data` allows longer texts than the model has positions for."""
        positions = count_positions(model)
        for name, bound in zip(("max_source_length", "max_target_length"), positions, strict=True):
            length = getattr(config.data, name) if config else 0
            if bound is not None and length > bound:
                raise ConfigError(f"data.{name}: {length} is more than the {bound} positions of model.from")
        own = languages_of_model(model)
        is_marked = has_languages(tokenizer) and not own.targets
        start = getattr(model, "decoder_start_token_id", None)
        return cls(
            tokenizer,
            positions,
            languages_of_tokenizer(tokenizer, model) if is_marked else own,
            None if model.model_type in TURN_THE_LAST_LABEL_TO_THE_FRONT else start,
        )

    @classmethod
    def columns(cls, config: Config) -> ColumnNames:
        return {**config.data.columns, **config.data.marks}

    def encode(self, columns: Columns, limits: DataConfig | None = None) -> list[Feature | BadRow]:
        """Encode texts as ids, each ending in `</s>`.

        Without a target column, as for prediction, any text goes, and labels are empty. A text that is longer than the
        model has positions for is a bad row, with or without limits.

        A row's `source_lang`, `target_lang` and `source_tag` become tokens, put in as ids: a text in which they are
        written stays text. Where the target's language is told to the decoder, features have `decoder_start`, what it
        reads before the target. For the target tag 9 and the source tag 8, `<s>` 1 and `</s>` 2,

            data.target_lang_in: source     input_ids [9, 8, 5, 6, 2]    labels [7, 2]
            data.target_lang_in: decoder    input_ids [8, 5, 6, 2]       labels [7, 2]    decoder_start [1, 9]
        """
        find_fault = partial(self._find_excess_length, limits)
        return encode_rows(columns, self._find_problem, self._make_features, find_fault)

    def _find_problem(self, row: dict[str, Any]) -> str | None:
        if problem := self.languages.find_problem(row) or self._find_tag_problem(row.get("source_tag")):
            return problem
        if "target" not in row:
            return None
        return find_text_problem("source", row["source"]) or _find_target_problem(row["target"])

    def _find_tag_problem(self, tag: str | None) -> str | None:
        if tag is None or tag in self._special_tokens:
            return None
        return f"source_tag is {tag}, which is not a special token of the tokenizer"

    @cached_property
    def _special_tokens(self) -> frozenset[str]:
        return frozenset(self.tokenizer.all_special_tokens)

    def _make_features(self, columns: Columns) -> list[Feature]:
        sources, targets = columns["source"], columns.get("target")
        is_bare = self.languages.replace_special_tokens
        inputs = tokenize(self.tokenizer, sources, is_bare=is_bare)
        learned = [first_text(target) for target in targets or []]
        labels = tokenize(self.tokenizer, learned, is_target=True, is_bare=is_bare) or [[] for _ in sources]
        rows = zip(columns["row"], sources, targets or [""] * len(sources), inputs, labels, strict=True)
        features: list[Feature] = [
            {"sample_id": row, "source": source, "target": target, "input_ids": input_ids, "labels": target_ids}
            for row, source, target, input_ids, target_ids in rows
        ]
        if not self.languages.targets and not MARKS & columns.keys():
            return features
        marks = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [self._mark(feature, row) for feature, row in zip(features, marks, strict=True)]

    def _mark(self, feature: Feature, row: dict[str, Any]) -> Feature:
        """Return a feature with the tokens that its languages and its tag are."""
        codes = self.languages.of(row)
        source = self.languages.sources.get(codes.get("source_lang", ""), UNMARKED)
        target = self.languages.targets.get(codes.get("target_lang", ""), TargetMarks())
        tag = row.get("source_tag")
        tags = [] if tag is None else [self.tokenizer.convert_tokens_to_ids(tag)]
        input_ids = [*target.in_source, *tags, *source.before, *feature["input_ids"], *source.after]
        labels = [*feature["labels"], *target.after] if "target" in row else []
        start = {"decoder_start": [*target.in_decoder]} if target.in_decoder else {}
        return {**feature, "input_ids": input_ids, "labels": labels, **start, **codes}

    def _find_excess_length(self, limits: DataConfig | None, feature: Feature) -> str | None:
        sides = zip(("source", "target"), self.lengths(feature), self.max_positions, strict=True)
        for name, length, positions in sides:
            bound = None if limits is None else getattr(limits, f"max_{name}_length")
            if fault := find_excess_length(name, length, bound, positions):
                return fault
        return None

    def lengths(self, feature: Feature) -> tuple[int, int]:
        return len(feature["input_ids"]), len(feature["labels"]) + _num_told(feature)

    def stretch(self, feature: Feature, limits: DataConfig) -> Feature:
        length = limits.max_target_length - _num_told(feature)
        targets = {name: repeat_to(length, feature[name]) for name in ("labels", READ_LABELS) if name in feature}
        return feature | {"input_ids": repeat_to(limits.max_source_length, feature["input_ids"]), **targets}

    def collate(self, features: list[Feature]) -> Batch:
        """Right-pad each side to its longest row.

        Two pairs, ([7, 8, 2], [9, 2]) and ([7, 2], [8, 9, 2]), with padding 0 and `</s>` 2, become

            input_ids      [[7, 8, 2], [7, 2, 0]]
            attention_mask [[1, 1, 1], [1, 1, 0]]
            labels         [[9, 2, -100], [8, 9, 2]]

        and, where the decoder is told the target's language, 5 and 6, behind `<s>` 1,

            decoder_input_ids [[1, 5, 9, 0], [1, 6, 8, 9]]
            labels            [[-100, 9, 2, -100], [-100, 8, 9, 2]]

        Where a feature has `READ_LABELS`, the decoder reads these in place of the labels.
        """
        inputs = [feature["input_ids"] for feature in features]
        batch = {
            "input_ids": _pad(inputs, self.tokenizer.pad_token_id),  # (B, S)
            "attention_mask": _pad([[1] * len(ids) for ids in inputs], 0),  # (B, S)
            "labels": _pad([_labels(feature) for feature in features], IGNORED),  # (B, T)
        }
        if self.languages.num_forced or READ_LABELS in features[0]:
            read = [self._decoder_inputs(feature) for feature in features]
            batch["decoder_input_ids"] = _pad(read, self.tokenizer.pad_token_id)  # (B, T)
        return batch

    def pack(self, features: list[Feature]) -> Batch:
        """Join all sources in one row and all targets in another, with the number of each place's pair.

        The two pairs above become, with padding up to a multiple of `BLOCK` left out,

            input_ids      [[7, 8, 2, 7, 2]]
            source_rows    [[0, 0, 0, 1, 1]]
            labels         [[9, 2, 8, 9, 2]]
            target_rows    [[0, 0, 1, 1, 1]]
        """
        inputs, labels = [feature["input_ids"] for feature in features], [_labels(feature) for feature in features]
        batch = {
            "input_ids": _chain(inputs, self.tokenizer.pad_token_id),  # (1, S)
            "source_rows": _chain([[row] * len(ids) for row, ids in enumerate(inputs)], len(inputs)),  # (1, S)
            "labels": _chain(labels, IGNORED),  # (1, T)
            "target_rows": _chain([[row] * len(ids) for row, ids in enumerate(labels)], len(labels)),  # (1, T)
        }
        if self.languages.num_forced or READ_LABELS in features[0]:
            read = [self._decoder_inputs(feature) for feature in features]
            batch["decoder_input_ids"] = _chain(read, self.tokenizer.pad_token_id)  # (1, T)
        return batch

    def _decoder_inputs(self, feature: Feature) -> list[int]:
        """Return what the decoder reads: the start and what it is told, and the labels up to the last."""
        labels = feature[READ_LABELS] if READ_LABELS in feature else feature["labels"]
        return [*feature.get("decoder_start", [self.start_token_id]), *labels[:-1]]

    def loss(
        self, outputs: Seq2SeqLMOutput, labels: Tensor, num_items_in_batch: Tensor | int, label_smoothing: float = 0.0
    ) -> Tensor:
        """Compute the training loss for models that divide theirs by the targets of one micro-batch: Marian, BART, T5.

        https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/marian/modeling_marian.py
        """
        total = nn.functional.cross_entropy(
            outputs.logits.flatten(0, 1).float(),  # (B * T, V)
            labels.flatten(),
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
        return total / num_items_in_batch

    def losses(self, outputs: Seq2SeqLMOutput, batch: Batch) -> Tensor:
        """Compute the cross-entropy of each sample (B), in nats."""
        labels, logits = batch["labels"], outputs.logits  # (B, T), (B, T, V)
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return losses.view_as(labels).sum(-1)

    def count_items(self, outputs: Seq2SeqLMOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Count target tokens, and those whose most probable token is the right one."""
        correct = outputs.get("correct")
        if correct is None:
            correct = outputs.logits.argmax(-1).eq(batch["labels"])  # (B, T); an ignored label equals no token
        return batch["labels"].ne(IGNORED).sum(-1), correct.sum(-1)

    def score(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, float]]:
        outputs = model(**batch)
        if (losses := outputs.get("losses")) is not None:  # (B, T), of a runtime that gives no logits
            sums = zip(batch["labels"].ne(IGNORED).sum(-1).tolist(), losses.sum(-1).tolist(), strict=True)
            return [{"items": items, "loss": loss} for items, loss in sums]
        return sums_by_sample(self.losses(outputs, batch), *self.count_items(outputs, batch), "token_accuracy")

    def predict(self, model: PreTrainedModel, batch: Batch, generation: GenerationConfig) -> list[str]:
        return self._decode(self.generate(model, batch, generation))

    def begin_answers(self, batch: Batch) -> dict[str, Any]:
        """Return arguments of `generate` that begin each answer with what the decoder is told of its language.

        So rows of many target languages are one batch, and no step is spent on a token that is known.
        """
        if "decoder_input_ids" not in batch:
            return {}
        start = batch["decoder_input_ids"][:, : self.languages.num_forced]  # (B, 1 or 2)
        if start.shape[1] > 1:
            return {"decoder_input_ids": start}
        return {"decoder_start_token_id": start.squeeze(1)}  # another in each row

    def perfect_predictions(self, features: list[Feature]) -> list[str]:
        return self._decode([feature["labels"] for feature in features])

    def _decode(self, ids: Tensor | list[list[int]]) -> list[str]:
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)


def _num_told(feature: Feature) -> int:
    """Count the places of the target whose token the decoder is told, so that they carry no loss."""
    return max(0, len(feature.get("decoder_start", ())) - 1)


def _labels(feature: Feature) -> list[int]:
    """Return the labels of a row, those of what the decoder is told being ignored."""
    labels = feature["labels"]
    if "decoder_start" not in feature:
        return labels
    return [IGNORED] * _num_told(feature) + (labels or [IGNORED])  # as long as what is read, also without a target


def _find_target_problem(target: object) -> str | None:
    """Say why a target is neither a text nor a list of texts; None where it is one."""
    if not isinstance(target, list):
        return find_text_problem("target", target)
    if not target:
        return "target is an empty list, where at least one text is needed"
    problems = (find_text_problem(f"target[{number}]", text) for number, text in enumerate(target))
    return next((problem for problem in problems if problem), None)


def count_positions(model: PreTrainedConfig) -> tuple[int | None, int | None]:
    """Return how many tokens a model can read as source and as target; None where its positions have no end.

    BART and its kin add two rows to their tables in front of `max_position_embeddings`; RoBERTa's and ProphetNet's
    count from behind the padding, within them. LED and BigBird pad a source to a multiple of a block.
    """
    if model.model_type in ENDLESS_POSITIONS:
        return None, None
    if model.model_type == "encoder-decoder":
        return _count_table(model.encoder), _count_table(model.decoder)
    if model.model_type == "led":
        window = max(model.attention_window) if isinstance(model.attention_window, list) else model.attention_window
        return model.max_encoder_position_embeddings // window * window, model.max_decoder_position_embeddings
    positions = _count_table(model)
    if model.model_type == "prophetnet" and positions is not None:
        return positions, positions - 1  # its decoder looks one further ahead
    if model.model_type == "bigbird_pegasus" and positions is not None and model.attention_type == "block_sparse":
        return positions // model.block_size * model.block_size, positions
    return positions, positions


def _count_table(model: PreTrainedConfig) -> int | None:
    rows = getattr(model, "max_position_embeddings", None)
    if rows is None or model.model_type not in POSITIONS_BEHIND_PADDING:
        return rows
    return rows - model.pad_token_id - 1


def _pad(rows: list[list[int]], value: int) -> Tensor:
    """Pad rows to (B, T), all at once, as one tensor for each row would take several times as long."""
    return torch.from_numpy(
        np.array([*zip_longest(*rows, fillvalue=value)], dtype=np.int64).reshape(-1, len(rows)).T.copy()
    )


def _chain(rows: list[list[int]], value: int) -> Tensor:
    """Join rows to (1, T), where T is a multiple of `BLOCK`, so that there are few shapes.

    There is always some padding, as the padding of the other side needs something to attend to.
    """
    joined = [*chain.from_iterable(rows)]
    return torch.tensor([joined + [value] * (BLOCK - len(joined) % BLOCK)])
