"""One YAML file is one run: its sections as typed, frozen objects, with every key checked before anything starts.

The descriptions below are the manual of the keys: `teacher-forcing train --help` and configs/REFERENCE.md print them.
A task has its own section, named after it, which `pipeline.tasks.registry` hands in: this file knows no task.
"""

import functools
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO
from transformers import GenerationConfig

from pipeline.data_config import DataConfig, check_data
from pipeline.errors import ConfigError, nearest
from pipeline.languages import check_languages
from pipeline.library_settings import MAX_BEAMS, GenerationSettings, LengthPenalty, check_path, training_types
from pipeline.section import Section
from pipeline.source import NO_SECRETS, SECRET_KEYS, Location, Source


def check_distinct(names: list[str] | None) -> list[str] | None:
    """Refuse a list of names in which one comes twice."""
    twice = [name for index, name in enumerate(names or []) if name in (names or [])[:index]]
    if twice:
        raise ValueError(f"{twice[0]} comes twice")
    return names


class TokenizerConfig(Section):
    path: str | None = Field(None, description="folder or Hub id of a tokenizer; null trains one on the training split")
    kind: str = Field("bpe", description="one of {kinds}")
    vocab_size: int = Field(8000, ge=5, description="tokens at most, the four special ones included")
    lowercase: bool = Field(False, description="convert all text to lower case")
    max_texts: int = Field(1_000_000, ge=1, description="texts read from the training split at most")
    words: str | None = Field(
        None, description="file of word vectors, or of words, that join the vocabulary (kind word)"
    )

    _check_paths = field_validator("path", "words")(check_path)


Share = Annotated[float, Field(ge=0, le=1)]
Rates = Share | dict[str, Share]
TEXT_RATES = ("upper_case", "title_case", "drop_end_punctuation", "swap_letters")


class AugmentationConfig(Section):
    upper_case: Rates = Field(
        0.0, description="share of rows whose texts are put in upper case; for all, or {CORPUS: share} of a mix"
    )
    title_case: Rates = Field(0.0, description="share of rows whose words all begin in upper case; likewise")
    drop_end_punctuation: Rates = Field(
        0.0, description="share of rows whose texts lose the end of their last sentence; likewise"
    )
    swap_letters: Rates = Field(
        0.0, description="share of source words, of four letters or more, in which two letters are swapped; likewise"
    )
    swap: float = Field(0.0, ge=0, lt=1, description="probability that a source token changes places with the next")
    delete: float = Field(0.0, ge=0, lt=1, description="probability that a source token is left out")
    insert: float = Field(0.0, ge=0, lt=1, description="probability that a random token is put behind a source token")
    bpe_dropout: float = Field(0.0, ge=0, lt=1, description="probability that a merge of a source word is passed over")
    bpe_dropout_target: float = Field(
        0.0, ge=0, lt=1, description="the same of target words, whose labels are then other tokens of the same text"
    )
    word_dropout: float = Field(
        0.0, ge=0, lt=1, description="probability that all tokens of a source word become the unknown token"
    )
    word_dropout_target: float = Field(
        0.0, ge=0, lt=1, description="the same of target words as the decoder reads them; the labels stay"
    )

    @property
    def changes_tokens(self) -> bool:
        return any(rate for name, rate in self.model_dump().items() if name not in TEXT_RATES)

    def text_rates(self, corpus: str) -> dict[str, float]:
        """Return the rates of a corpus by the names of `TEXT_RATES`; where others are named, and it is not, 0."""
        given = {name: getattr(self, name) for name in TEXT_RATES}
        return {name: rate.get(corpus, 0.0) if isinstance(rate, dict) else rate for name, rate in given.items()}


class SacrebleuConfig(Section):
    tokenize: Literal[
        "13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "flores101", "flores200", "spBLEU-1K", "spm", "none"
    ] = Field("13a", description="how BLEU cuts texts into words; 13a needs spaces between them")
    lowercase: bool = Field(False, description="BLEU does not tell upper from lower case")


class EvaluationConfig(Section):
    metrics: list[str] = Field(
        default_factory=list,  # `validate` knows the task's
        description="{metrics}, or whatever evaluate.load takes; [] generates nothing; the task's own if left out",
    )
    sacrebleu: SacrebleuConfig = SacrebleuConfig()
    num_beams: int = Field(
        1, ge=1, le=MAX_BEAMS, description="beams while training; the last evaluation uses `generation`"
    )
    max_rows: int | None = Field(None, ge=1, description="validation rows used while training; null: all")
    show: int = Field(3, ge=0, description="sample predictions printed at every evaluation")
    average_checkpoints: int | None = Field(None, ge=2, description="average the weights of the last N checkpoints")
    average_best: int | None = Field(
        None,
        ge=2,
        description="average the weights of the N best checkpoints by training.metric_for_best_model, which are kept "
        "whatever training.save_total_limit says",
    )
    length_penalties: list[LengthPenalty] | None = Field(
        None,
        min_length=2,
        description="values of generation.length_penalty, of which the finished model gets the one with the best first "
        "metric on validation, such as [0.6, 0.8, 1.0, 1.2, 1.4]",
    )
    early_stopping_patience: int | None = Field(None, ge=1, description="stop after N evaluations without improvement")

    _check_metrics = field_validator("metrics", "length_penalties")(check_distinct)


Form = Literal["own", "transformers"]


class HubConfig(Section):
    push: bool = Field(False, description="upload the finished model")
    every_save: bool = Field(False, description="upload every checkpoint too")
    model_id: str | None = Field(None, description="owner/name of the repository")
    private: bool = Field(True, description="visibility of a repository that the push creates")
    license: str | None = Field(None, description="of the weights, for the card, as the Hub names it: apache-2.0")
    language: list[str] | None = Field(
        None,
        description="of the texts, for the card, by which the Hub finds models: [en, fr]; null takes those of "
        "data.source_lang and target_lang, or data.source and target where these columns are named by languages",
    )
    form: Form = Field(
        "own",
        description="own: this project's model class, with its code; transformers: the same model as Marian or "
        "Pegasus, which the Auto classes load without trust_remote_code (sequence_to_sequence, tied embeddings)",
    )
    with_pipeline: bool = Field(
        False,
        description="add pipeline('translation') for transformers 5 to the form transformers; transformers 4, which "
        "has it, then asks for trust_remote_code",
    )
    patience: float = Field(600, ge=0, description="seconds to retry an upload after temporary errors")

    _check_language = field_validator("language")(lambda tags: check_languages(check_distinct(tags)))

    @field_validator("with_pipeline")
    @classmethod
    def _check_pipeline(cls, with_pipeline: bool, info: ValidationInfo) -> bool:
        """Refuse to add what the form has anyway."""
        if with_pipeline and info.data.get("form") == "own":
            raise ValueError("the form own always has its pipeline; leave this out, or choose the form transformers")
        return with_pipeline


class Config(Section):
    task: str = Field("sequence_to_sequence", description="what is learned: {tasks}")
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: dict[str, Any] = Field({}, description="type and sizes of the model; the keys of each type are listed below")
    augmentation: AugmentationConfig = AugmentationConfig()
    training: dict[str, Any] = Field(
        {}, description="Seq2SeqTrainingArguments; also lr_scheduler_type: noam, with learning_rate as its factor"
    )
    generation: dict[str, Any] = Field({}, description="GenerationConfig, stored in the checkpoint")
    evaluation: EvaluationConfig = EvaluationConfig()
    hub: HubConfig = HubConfig()

    @property
    def task_settings(self) -> Any:
        """The section named after the task; None where the task has none."""
        return getattr(self, self.task, None)

    def with_data(self, data: DataConfig) -> Self:
        """Return the config of one corpus, or one set, of these."""
        return self.model_copy(update={"data": data})

    @property
    def output_dir(self) -> Path:
        return Path(self.training["output_dir"])

    @property
    def label_smoothing(self) -> float:
        return self.training.get("label_smoothing_factor", 0.0)

    @property
    def r_drop(self) -> float:
        return self.training.get("r_drop", 0.0)

    @property
    def adversarial_epsilon(self) -> float:
        return self.training.get("adversarial_epsilon", 0.0)

    @property
    def ema_decay(self) -> float | None:
        return self.training.get("ema_decay")

    @property
    def average_patience(self) -> int | None:
        return self.training.get("average_patience")

    def to_yaml(self) -> str:
        """Return the whole config, defaults included, as `load_config` reads it."""
        stream = StringIO()
        YAML().dump(self.model_dump(), stream)
        return stream.getvalue()


SectionType = TypeVar("SectionType", bound=Section)


def make_section(name: str, section: type[SectionType], **values: Any) -> SectionType:
    """Make one section of a config without the others.

    Raises:
        ConfigError: for the first wrong value.
    """
    try:
        return section(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(f"{name}.{'.'.join(map(str, problem['loc']))}: {_message(problem)}") from error


# Set by this project itself, under another key where there is one.
RESERVED_TRAINING_KEYS = {
    "push_to_hub": "hub.push",
    "hub_model_id": "hub.model_id",
    "hub_private_repo": "hub.private",
    "generation_config": "generation",
    "predict_with_generate": "evaluation.metrics",
    "generation_num_beams": "evaluation.num_beams",
    "generation_max_length": "generation.max_new_tokens",
    "remove_unused_columns": "data.source and data.target",
    "train_sampling_strategy": "this project: batches hold rows of like lengths, see data.shuffle_window",
    "length_column_name": "this project: lengths are those of the tokens",
    "ignore_data_skip": "this project: a run goes on at its row, without replaying",
    "restore_callback_states_from_checkpoint": "this project: they always are",
    "enable_jit_checkpoint": "this project: SIGTERM always saves",
    "save_only_model": "this project: a checkpoint always holds the whole state",
}


def validate(source: Source, section: type[Section], default_metrics: Sequence[str]) -> Config:
    """Check values against the sections above and that of their task.

    Args:
        source: with `task` among its values, which names the section.
        section: what the section of the task must hold.
        default_metrics: `evaluation.metrics` where it is not given.

    Raises:
        ConfigError: for the first unknown key or wrong value.
    """
    _refuse_secrets(source.values, (), source)
    values = dict(source.values)
    task = values.setdefault("task", Config.model_fields["task"].default)
    name = source.path.stem if source.path else task
    values["training"] = _with_default(values.get("training"), "output_dir", f"runs/{name}")
    values["evaluation"] = _with_default(values.get("evaluation"), "metrics", list(default_metrics))
    schema = _schema(task, section)
    if task in schema.model_fields:
        values[task] = {} if values.get(task) is None else values[task]
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, schema, source)) from error
    check_data(config.data, source)
    _check_text_rates(config.augmentation, config.data, source)
    training = _check_training(config.training, source)
    generation = check_generation(config.generation, source.place)
    return config.model_copy(update={"training": training, "generation": generation})


def _check_text_rates(augmentation: AugmentationConfig, data: DataConfig, source: Source) -> None:
    """Raise ConfigError for rates of a corpus that there is not, or of more rows than there are."""
    for name in TEXT_RATES:
        rates = getattr(augmentation, name)
        for corpus in rates if isinstance(rates, dict) else ():
            if corpus not in (data.mix or ()):
                problem = (
                    f"there is no data.mix that could have a corpus {corpus!r}; give one number"
                    if data.mix is None
                    else f"there is no corpus {corpus!r}{nearest(corpus, data.mix)}"
                )
                raise ConfigError(f"{source.place(('augmentation', name))}augmentation.{name}: {problem}")
    for corpus in data.mix or [""]:
        rates = augmentation.text_rates(corpus)
        if rates["upper_case"] + rates["title_case"] > 1:
            raise ConfigError(
                f"{source.place(('augmentation', 'title_case'))}augmentation.title_case: a row is in upper case or in "
                f"title case, so both rates {f'of {corpus} ' if corpus else ''}are 1 together at most"
            )


@functools.cache
def _schema(task: str, section: type[Section]) -> type[Config]:
    """Return `Config` with the section of one task, where that has any key."""
    if not section.model_fields:
        return Config
    return create_model("Config", __base__=Config, **{task: (section, ...)})  # type: ignore[call-overload]


def _with_default(section: Any, key: str, value: Any) -> Any:
    """Add a key that was left out of a section, or is null; what is not a mapping is left to the check of types."""
    section = {} if section is None else section
    return section | {key: value} if isinstance(section, dict) and section.get(key) is None else section


def _explain(error: ValidationError, schema: type[Config], source: Source) -> str:
    # A misspelled key may also be one that is missing: its name says more. Of the ways in which a value could be meant,
    # the one that goes furthest into it was meant.
    problems = error.errors()
    found = [(problem["type"] == "extra_forbidden", _real_location(problem, source.values)) for problem in problems]
    number = max(range(len(found)), key=lambda index: (found[index][0], len(found[index][1]), -index))
    problem, location = problems[number], found[number][1]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"{source.place(location)}unknown key {key}{nearest(location[-1], _known_keys(schema, location[:-1]))}"
    if problem["type"] == "missing":
        return f"{source.place(location)}{key} is missing; give it in the file or as {key}=..."
    return f"{source.place(location)}{key}: {_message(problem)}"


def _real_location(problem: Any, values: Any) -> Location:
    """Return the keys that lead to a problem; pydantic also names the way in which it took a value, of several."""
    location: list[str] = []
    for name in problem["loc"]:
        if isinstance(values, dict) and name in values:
            values = values[name]
        elif problem["type"] == "missing" and isinstance(name, str):
            values = None
        elif isinstance(values, list) and isinstance(name, int):
            values = values[name]
        else:
            continue
        location.append(str(name))
    return tuple(location)


def _known_keys(annotation: Any, location: Location) -> list[str]:
    """Name the keys of the sections that a value may be, below the annotation of a whole config."""
    if typing.get_origin(annotation) in (typing.Annotated, typing.Union, types.UnionType):
        return [key for choice in typing.get_args(annotation) for key in _known_keys(choice, location)]
    if typing.get_origin(annotation) in (dict, list):
        return _known_keys(typing.get_args(annotation)[-1], location[1:]) if location else []
    if not (isinstance(annotation, type) and issubclass(annotation, Section)):
        return []
    fields = annotation.model_fields
    if not location:
        return [*fields]
    return _known_keys(fields[location[0]].annotation, location[1:]) if location[0] in fields else []


def _refuse_secrets(values: Any, location: Location, source: Source) -> None:
    """Raise ConfigError for a key that is there to hold a secret, and never say its value."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for name, value in items:
        key = (*location, str(name))
        if str(name).lower() in SECRET_KEYS and isinstance(value, str):
            place = source.place(key)  # an override would be shown with its value
            raise ConfigError(f"{'' if place.startswith('override') else place}{'.'.join(key)}: {NO_SECRETS}")
        _refuse_secrets(value, key, source)


def _check_training(values: dict[str, Any], source: Source) -> dict[str, Any]:
    """Check names and kinds of settings, and return those that are not null, which is as if they were left out.

    Floats are floats then; Adam refuses a beta of 0.
    """
    types, checked = training_types(), {}

    def problem(name: str, text: str) -> ConfigError:
        return ConfigError(f"{source.place(('training', name))}training.{name}{text}")

    for name, value in values.items():
        if name in RESERVED_TRAINING_KEYS:
            raise problem(name, f" is set by {RESERVED_TRAINING_KEYS[name]}")
        if name not in types:
            raise problem(name, f" is not one of Seq2SeqTrainingArguments{nearest(name, types)}")
        if value is None:
            continue
        try:
            checked[name] = TypeAdapter(types[name]).validate_python(value, strict=True)
        except ValidationError as error:
            raise problem(name, f": {_message(error.errors()[0])}") from error
    return checked


def check_generation(values: dict[str, Any], place: Callable[[Location], str]) -> dict[str, Any]:
    """Check settings of generation by themselves; whether they fit the model and one another is seen when it is made.

    Args:
        place: of a key, for a message.

    Returns:
        The settings, with floats where floats are due: transformers refuses a penalty of 2.

    Raises:
        ConfigError: for the first key or value that cannot work.
    """
    known = GenerationSettings.model_fields

    def problem(name: str, text: str) -> ConfigError:
        return ConfigError(f"{place(('generation', name))}generation.{name}{text}")

    for name in values:
        if name not in vars(GenerationConfig()):
            raise problem(name, f" is not one of GenerationConfig{nearest(name, known)}")
        if name not in known:
            raise problem(name, " has no use here, where generation gives one text a row; leave it out")
    try:
        return GenerationSettings.model_validate(values).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise problem(str(first["loc"][0]), f": {_message(first)}") from error


def _message(problem: Any) -> str:
    """Say what is wrong with a value, and what it is."""
    return f"{problem['msg'].removeprefix('Value error, ')} (given: {problem['input']!r})"
