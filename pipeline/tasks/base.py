"""The contract of a task: how rows become batches, and how outputs become losses and predictions.

Shapes: B batch, S source length, T target length.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, get_args

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

from pipeline.config import Config, DataConfig, Section
from pipeline.data.rows import BadRow, Columns, Feature
from pipeline.data.splits import Rows
from pipeline.data_config import ColumnNames
from pipeline.decoding.search import encode, search_of
from pipeline.errors import ConfigError
from pipeline.tasks.row_languages import Languages, choose_from

Batch = dict[str, Tensor]
Better: TypeAlias = Literal["higher", "lower"]  # which value of a score is the better one


@dataclass(frozen=True)
class RowScore:
    """The log-probability of what a row asks for, in nats, summed over its items; its number is that in the split."""

    row: int
    log_probability: float
    items: int


@dataclass(frozen=True)
class CardText:
    """What a model card says of a task.

    The texts are filled in by `str.format`, so a brace in code is written twice. `data` and `limits` may name keys of
    the section `data` and of the task's own, such as `{source}`. `use` and `pipeline_use` have `{name}`, the model's
    name on the Hub; `{example}`, a source text; and `{trust}`, an argument where the model has its own code. Where a
    model is told into which language to translate, `{mark}` stands in front of the source, and `{tokenizer_option}`,
    `{generate_option}` and `{pipeline_option}` are further arguments; else they are empty.

    Attributes:
        pipeline_tag: the Hub's name of the task, by which models are searched.
        model: what kind of model it is, with its article.
        data: what is learned from which columns.
        use: Python code that loads the model and calls it.
        limits: a sentence on the bounds of the training data, where there are any.
        pipeline_use: shorter code with a pipeline, shown only where the pipeline is saved with the model's own code.
    """

    pipeline_tag: str
    model: str
    data: str
    use: str
    limits: str = ""
    pipeline_use: str = ""


class Task(ABC):
    """What training, evaluation, generation and card know of a problem; one instance serves a run.

    A subclass that lacks something it must have is refused when it is defined, not at the end of a run: all abstract
    methods, `auto_class`, `card`, and what its flags promise (`trains_other_models` needs `loss`, `can_pack` `pack`).

    Attributes:
        tokenizer: None where the data hold no text.
        max_positions: tokens that the model can read at most, as source and as target; None where there is no bound.
        start_token_id: what the decoder reads in front of all labels, where it reads one token there.
        languages: what the model can be told of the languages of a row.
        settings: keys of the task's own section of a config, which is named after the task.
        auto_class: transformers' class that loads the task's models.
        trains_other_models: whether models of others that `auto_class` loads can be trained as well.
        text_columns: agreed columns whose texts a tokenizer is trained on.
        scores: what every evaluation gives: name -> which value is the better one, "higher" or "lower".
        accuracy: the one among them that is the share of items predicted right, where there is one.
        has_log_probabilities: whether the loss of a sample is minus the log-probability of its items.
        has_metrics: whether there are predictions to score beyond that.
        default_metrics: `evaluation.metrics` where the config names none.
        answers_empty: whether an empty source has an answer, the empty one.
        answers_sentences: whether the answers to the sentences of a text, one after another, answer the text.
        has_independent_rows: whether rows can be trained on in any order; else they are one running text.
        can_pack: whether many rows can be one sequence in training.
        eos_position: whether `</s>` stands at the "end" or the "start" of a text.
        card: what a model card says of the task.
        pictures: what `draw` writes, file name -> caption; published with the model and shown in its card.
        drawn_score: what training logs and the training curves show beside the loss.
    """

    card: ClassVar[CardText]
    pictures: ClassVar[dict[str, str]] = {}
    drawn_score: ClassVar[str | None] = "token_accuracy"
    tokenizer: PreTrainedTokenizerBase | None
    max_positions: tuple[int | None, int | None] = (None, None)
    start_token_id: int | None = None
    languages: Languages = Languages()
    settings: ClassVar[type[Section]] = Section
    auto_class: ClassVar[Any]
    trains_other_models: ClassVar[bool] = False
    text_columns: ClassVar[tuple[str, ...]] = ("source", "target")
    scores: ClassVar[dict[str, Better]] = {"loss": "lower", "perplexity": "lower", "token_accuracy": "higher"}
    accuracy: ClassVar[str | None] = "token_accuracy"
    has_log_probabilities: ClassVar[bool] = False
    has_metrics: ClassVar[bool] = True
    default_metrics: ClassVar[tuple[str, ...]] = ()
    answers_empty: ClassVar[bool] = True
    answers_sentences: ClassVar[bool] = False
    has_independent_rows: ClassVar[bool] = True
    can_pack: ClassVar[bool] = False
    eos_position: ClassVar[str] = "end"

    def __init_subclass__(cls, **kwargs) -> None:
        """Raise TypeError for a task that is not complete."""
        super().__init_subclass__(**kwargs)
        missing = [name for name in dir(cls) if getattr(getattr(cls, name, None), "__isabstractmethod__", False)]
        missing += [name for name in REQUIRED_FACTS if not hasattr(cls, name)]
        for flag, method in (("trains_other_models", "loss"), ("can_pack", "pack")):
            if getattr(cls, flag) and getattr(cls, method) is getattr(Task, method):
                missing.append(method)
        if missing:
            raise TypeError(f"{cls.__name__} is not a whole task: it lacks {', '.join(missing)}; see {__name__}.Task")
        if not isinstance(cls.scores, dict) or not {*cls.scores.values()} <= {*get_args(Better)}:
            raise TypeError(f'{cls.__name__}.scores: say of each which value is better, as in {{"loss": "lower"}}')

    @classmethod
    @abstractmethod
    def from_model(cls, tokenizer: Any, model: PreTrainedConfig, config: Config | None = None) -> "Task":
        """Make the task of a model; with a config, as training has it: its settings, and bounds on length."""

    @property
    def required_columns(self) -> tuple[str, ...]:
        """The agreed columns that a row must have to be evaluated."""
        return ("source", "target")

    @classmethod
    def columns(cls, config: Config) -> ColumnNames:
        """Return the columns that a row must have: agreed name -> name in the data, or what is the same in all rows."""
        return config.data.columns

    @classmethod
    def model_settings(cls, config: Config, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Return what the model's config takes from the training rows, such as the names of classes."""
        return {}

    def to_samples(self, rows: Rows) -> Rows:
        """Turn rows as they were read into what is encoded and trained on, where that is something else."""
        return rows

    def make_batches(self, rows: int, world_size: int) -> Callable[[list[Feature], np.random.Generator], list] | None:
        """Return how features become batches of `rows`; None groups them by `lengths`, in random order."""
        return None

    @abstractmethod
    def encode(self, columns: Columns, limits: DataConfig | None = None) -> list[Feature | BadRow]:
        """Turn rows into features, or into a `BadRow` that says why one cannot be used; `data.rows` has the columns.

        Args:
            limits: of the length of a training row, `max_source_length` and `max_target_length`; None keeps all.
        """

    def with_languages(
        self, columns: Columns, source_lang: str | None = None, target_lang: str | None = None
    ) -> Columns:
        """Return rows of which all are in one pair of languages; of the model's default ones where they are left out.

        Raises:
            ConfigError: for a language that the model does not know, or that it must be told.
        """
        given = {"source_lang": source_lang, "target_lang": target_lang}
        named = {name: code for name, code in given.items() if code is not None}
        known = self.languages.targets
        if named and not known:
            raise ConfigError(f"{' and '.join(named)}: this model is not told any language; leave it out")
        if target_lang is None and known and self.languages.default_target is None:
            raise ConfigError(
                f"target_lang is missing; say into which language to translate (--target-lang){choose_from(known)}"
            )
        if problem := self.languages.find_problem(named):
            raise ConfigError(problem)
        return columns | {name: [code] * len(columns["row"]) for name, code in named.items()}

    def to_evaluation(self, features: list[Feature]) -> list[Feature]:
        """Turn the features of a split into what is evaluated, where that is something else."""
        return features

    @abstractmethod
    def lengths(self, feature: Feature) -> tuple[int, ...]:
        """Count the tokens on each side that is padded separately."""

    def stretch(self, feature: Feature, limits: DataConfig) -> Feature:
        """Return a feature as long as the limits allow, made of a real one; needed where rows differ in length."""
        return feature

    @abstractmethod
    def collate(self, features: list[Feature]) -> Batch:
        """Turn features into a batch whose keys are arguments of the model's `forward`."""

    def pack(self, features: list[Feature]) -> Batch:
        """Collate into one sequence, without padding between the rows; needed where `can_pack`."""
        raise NotImplementedError

    def label_batch(self, batch: Batch) -> Batch:
        """Return the batch with its items as "labels", where Trainer counts them."""
        return batch

    def with_state(self, batch: Batch) -> dict[str, Any]:
        """Return the arguments of `forward` in training: a batch, and what is carried to it from the one before."""
        return dict(batch)

    def keep_state(self, outputs: ModelOutput) -> None:
        """Keep what is carried to the next batch in training."""
        return

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is carried, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what a checkpoint has."""
        return

    def loss(
        self, outputs: ModelOutput, labels: Tensor, num_items_in_batch: Tensor | int, label_smoothing: float = 0.0
    ) -> Tensor:
        """Compute the loss of training for models of others, which divide theirs by the items of one micro-batch.

        Needed where `trains_other_models`.
        """
        raise NotImplementedError

    @abstractmethod
    def count_items(self, outputs: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Count, for each sample (B), its items, and those of them that are predicted right."""

    @abstractmethod
    def score(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, float]]:
        """Return for each sample the number of its "items", and sums over them by the names of `scores`.

        Perplexity is left out: evaluation makes it of the mean loss. See `sums_by_sample`. A score that what stands in
        for the model cannot give is left out as well.
        """

    def score_rows(self, samples: list[Feature], sums: list[dict[str, Any]]) -> list[RowScore]:
        """Return the log-probabilities of the rows that samples were made of, where `has_log_probabilities`.

        Args:
            samples: all of a split, as `to_evaluation` gives them.
            sums: what `score` returned for each of them.
        """
        return [
            RowScore(sample["sample_id"], -numbers["loss"], int(numbers["items"]))
            for sample, numbers in zip(samples, sums, strict=True)
        ]

    def generate(
        self, model: PreTrainedModel, batch: Batch, generation: GenerationConfig | None
    ) -> Tensor | ModelOutput:
        """Return what `model.generate` does for a batch: token ids behind their prompt or start, one row an answer."""
        search = search_of(model, generation)
        return model.generate(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=generation,
            custom_generate=search,
            **(encode(model, batch["input_ids"], batch["attention_mask"]) if search else {}),
            **self.begin_answers(batch),
        )

    def prompt_length(self, model: PreTrainedModel, batch: Batch) -> int:
        """Count the tokens in front of each answer of `generate`: the start and what is told, or the whole prompt."""
        return max(1, self.languages.num_forced) if model.config.is_encoder_decoder else batch["input_ids"].shape[1]

    @abstractmethod
    def predict(self, model: PreTrainedModel, batch: Batch, generation: GenerationConfig | None) -> list[Any]:
        """Return the model's own answer to each sample."""

    def begin_answers(self, batch: Batch) -> dict[str, Any]:
        """Return arguments of `generate` by which each answer begins as the languages of its row want it."""
        return {}

    def perfect_predictions(self, features: list[Feature]) -> list[str]:
        """Return what `predict` would if the model made no mistake: all that a tokenizer can write of the targets."""
        return [feature["target"] for feature in features]

    @classmethod
    def remarks(cls, scores: dict[str, dict[str, Any]]) -> list[str]:
        """Return sentences for the card on what the scores mean, such as a model that loses to a trivial one.

        Args:
            scores: split -> name -> number or signature.
        """
        return []

    def settle(self, model: PreTrainedModel, sums: list[dict[str, Any]]) -> bool:
        """Change a trained model, on every rank, where validation asks for it; return whether it did.

        Args:
            sums: what `score` returned for each row of validation, in their order.
        """
        return False

    def draw(self, model: PreTrainedModel, features: list[Feature], folder: Path) -> None:
        """Draw pictures of what a finished model predicts, where a picture says something."""
        return


REQUIRED_FACTS = ("auto_class", "card")


def sums_by_sample(losses: Tensor, counts: Tensor, correct: Tensor, accuracy: str) -> list[dict[str, float]]:
    """Return what `Task.score` must, from three numbers for each sample (B).

    Args:
        losses: summed over the items of the sample, without label smoothing.
        counts, correct: as `Task.count_items` gives them.
        accuracy: the name of the share of items predicted right.
    """
    numbers = zip(losses.tolist(), counts.tolist(), correct.tolist(), strict=True)
    return [{"items": items, "loss": loss, accuracy: right} for loss, items, right in numbers]


def repeat_to(length: int, ids: list[int]) -> list[int]:
    """Return `ids` again and again, up to a length."""
    return (ids * (length // len(ids) + 1))[:length]


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], is_target: bool = False, is_bare: bool = False
) -> list[list[int]]:
    """Return the token ids of each text, as `tokenizer(texts)` does, in half the time.

    Args:
        is_target: whether the texts are targets; some tokenizers encode those otherwise.
        is_bare: whether to leave out the special tokens around a text, by which alone targets then differ.
    """
    if not texts:
        return []
    if is_bare:
        return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    if type(tokenizer) is PreTrainedTokenizerFast:
        tokenizer("")  # sets up the backend: nothing cut, nothing padded, special tokens in a text taken as text
        return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts)]
    argument = "text_target" if is_target else "text"  # some have a target language
    # verbose would warn of long texts, which are bad rows here.
    return tokenizer(**{argument: texts}, return_attention_mask=False, verbose=False)["input_ids"]
