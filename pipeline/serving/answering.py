"""What a request asks of a model, and what the model says: without a web framework, on the thread of the batcher."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from pipeline.config import check_generation
from pipeline.data.corpus import Text
from pipeline.data.rows import Feature, shorten
from pipeline.errors import ConfigError, DataError
from pipeline.inference.corpus import Answer, AnswerSettings, answer
from pipeline.inference.engines.base import TORCH, load_engine
from pipeline.inference.hypotheses import Wanted, gives_attentions
from pipeline.languages import known_code
from pipeline.setup.generation_setup import changed_generation
from pipeline.tasks.base import Task, tokenize
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.forecasting import Forecasting
from pipeline.tasks.language_modeling import LanguageModeling
from pipeline.tasks.registry import TASKS
from pipeline.tasks.row_languages import choose_from
from pipeline.training.checkpoints import find_config
from pipeline.training.out_of_memory import is_out_of_memory

ANY_LANGUAGE = "und"  # ISO 639-2 for undetermined
SHOWN_SETTINGS = ("num_beams", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p")
MOST_TOKENS = 1024  # that a request may let be generated, unless the model's own config says more
MOST_BEAMS = 16
LONGEST_CODE = 64  # characters; to look for names like a long one takes time
MOST_ROWS = 512  # of a batch, each beam of a text being one
# Settings of generation that a request may change: plain values, which decide what is said. Not max_length: beside it
# transformers takes max_new_tokens of the model's own config.
ASKABLE = {
    *("max_new_tokens", "min_new_tokens", "num_beams", "early_stopping", "length_penalty"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("repetition_penalty", "no_repeat_ngram_size"),
}


class NoMemory(Exception):
    """A batch needs more memory than there is."""


@dataclass(frozen=True)
class Settings:
    """How the texts of a request are answered; those with equal ones share batches.

    Attributes:
        generation: changes of the model's generation config.
        alone: a number that no other request has, where its answers depend on the numbers of its texts.
    """

    source_lang: str | None = None
    target_lang: str | None = None
    wanted: Wanted = field(default_factory=Wanted)
    generation: tuple[tuple[str, Any], ...] = ()
    alone: int | None = None


@dataclass(frozen=True)
class Said:
    """What a model says of a text.

    Attributes:
        answer: its hypotheses, or the problem of a text that has none.
        source_tokens, answer_tokens: how many there are, those of all answers together.
        prompt: what the answers of a language model begin with: the text, as its tokenizer writes it.
    """

    answer: Answer
    source_tokens: int
    answer_tokens: int
    prompt: str = ""

    @property
    def text(self) -> str:
        """The best answer; a text without anything to read has an empty one."""
        return self.answer.hypotheses[0].text if self.answer.hypotheses else ""


class ServedModel:
    """A model with its task, as requests see it."""

    def __init__(self, model: PreTrainedModel, task: Task, name: str, engine: str = TORCH, columns: Sequence[str] = ()):
        """Serve a model.

        Args:
            name: by which clients know it.
            columns: names of the columns of source and target in training, which may be languages.
        """
        self.model, self.task, self.name, self.engine = model, task, name, engine
        self.task_name = next(key for key, kind in TASKS.items() if isinstance(task, kind))
        codes = [known_code(column) for column in columns] + [None, None]
        self.trained_source, self.trained_target = codes[:2]
        self._generation = lru_cache(maxsize=256)(self._change_generation)

    # ---- what it is

    @property
    def is_translator(self) -> bool:
        return self.task_name == "sequence_to_sequence"

    @property
    def source_languages(self) -> list[str]:
        """Codes of the languages that it reads; an undetermined one where nobody says."""
        return [*self.task.languages.sources] or [self.trained_source or ANY_LANGUAGE]

    @property
    def target_languages(self) -> list[str]:
        return [*self.task.languages.targets] or [self.trained_target or ANY_LANGUAGE]

    @property
    def labels(self) -> list[str]:
        return getattr(self.task, "labels", [])

    def describe(self) -> dict[str, Any]:
        """Return what a page must know of it, as plain values."""
        task, languages = self.task, self.task.languages
        generation = self.model.generation_config if self.model.can_generate() else None
        return {
            "name": self.name,
            "task": self.task_name,
            "languages": {"source": [*languages.sources], "target": [*languages.targets]},
            "engine": self.engine,
            "has_attention": self.is_translator and gives_attentions(self.model),
            "generation": {key: getattr(generation, key) for key in SHOWN_SETTINGS} if generation else {},
            "series": task.series if isinstance(task, Forecasting) else [],
            "context_length": task.context_length if isinstance(task, Forecasting) else None,
            "prediction_length": task.prediction_length if isinstance(task, Forecasting) else None,
        }

    # ---- what is asked of it

    def settings(
        self,
        source_lang: str | None = None,
        target_lang: str | None = None,
        wanted: Wanted | None = None,
        generation: Mapping[str, Any] | None = None,
        alone: int | None = None,
    ) -> Settings:
        """Check what a request asks, and return it.

        A model without languages takes any. As many beams are searched as answers are wanted, or so many are sampled.

        Args:
            generation: changes of the model's generation config; None means as it is.

        Raises:
            ConfigError: for a language that the model does not know, and for settings that it cannot honour.
        """
        wanted = wanted or Wanted()
        languages = self.task.languages
        source = _find_language("source_lang", source_lang, languages.sources)
        target = _find_language("target_lang", target_lang, languages.targets)
        if languages.targets and target is None and languages.default_target is None:
            raise ConfigError(f"the language to translate into is missing{choose_from(languages.targets)}")
        if languages.sources and source is None and languages.default_source is None:
            raise ConfigError(f"the language of the text is missing{choose_from(languages.sources)}")
        changes = {name: value for name, value in (generation or {}).items() if value is not None}
        if not self.model.can_generate():
            return Settings(source, target, wanted)
        for name in changes.keys() & vars(self.model.generation_config).keys() - ASKABLE:
            raise ConfigError(f"{name} cannot be set by a request; choose from {', '.join(sorted(ASKABLE))}")
        changes = self._with_beams(check_generation(changes, lambda _: ""), wanted.num_best)
        settings = Settings(source, target, wanted, tuple(sorted(changes.items())))
        self._generation(settings.generation)
        return replace(settings, alone=alone) if wanted.seed is not None else settings

    def _with_beams(self, changes: dict[str, Any], num_best: int) -> dict[str, Any]:
        own = self.model.generation_config
        samples = changes.get("do_sample", own.do_sample)
        if samples and "do_sample" in changes:
            changes = {"num_beams": 1} | changes
        beams = changes.get("num_beams") or own.num_beams or 1
        if beams < num_best and not (samples and beams == 1):
            beams = num_best
            changes = changes | {"num_beams": beams}
        if beams > max(MOST_BEAMS, own.num_beams or 1):
            raise ConfigError(f"num_beams: {beams} are more than the {MOST_BEAMS} that a request may ask for")
        tokens = changes.get("max_new_tokens", 0)
        if tokens > max(MOST_TOKENS, own.max_new_tokens or 0):
            raise ConfigError(f"max_new_tokens: {tokens} are more than the {MOST_TOKENS} that a request may ask for")
        return changes

    def _change_generation(self, changes: tuple[tuple[str, Any], ...]) -> GenerationConfig:
        return changed_generation(self.model.generation_config, dict(changes), "settings")

    # ---- what it says

    def answer(self, settings: Settings | None, contents: Sequence[Any]) -> list[Any]:
        """Answer a batch.

        Args:
            settings: of all texts; None for a forecaster.
            contents: of type `Text`, numbered in their request; of a forecaster the values of a past, (L, C).

        Returns:
            A `Said` for each text; of a forecaster the future values, (H, C).

        Raises:
            ConfigError: for settings that the model or its engine cannot honour.
            NoMemory: where the batch needs too much.
        """
        try:
            return self._forecast(contents) if settings is None else self._say(settings, contents)
        except (ValueError, TypeError) as error:
            if settings is None or not settings.generation:
                raise
            raise ConfigError(f"settings: {error}") from error  # of transformers, which looks at some as it uses them
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise NoMemory from error

    def _say(self, settings: Settings, texts: Sequence[Text]) -> list[Said]:
        if settings.alone is None:  # texts of several requests, or parts of one
            texts = [replace(text, number=number) for number, text in enumerate(texts)]
        language = known_code(settings.source_lang or "") or self.trained_source or "en"
        generation = self._generation(settings.generation) if self.model.can_generate() else None
        answers = answer(
            self.model,
            self.task,
            texts,
            generation,
            AnswerSettings(
                batch_size=max(
                    1, MOST_ROWS // max((generation and generation.num_beams) or 1, settings.wanted.num_best)
                ),
                on_bad_row="skip",
                language=language,
                source_lang=settings.source_lang,
                target_lang=settings.target_lang,
                wanted=settings.wanted,
            ),
        )
        said = [[hypothesis.text for hypothesis in one.hypotheses] for one in answers]
        sources = self._count_tokens([[text.content] for text in texts])
        prompts = [self._rewrite(text.content) for text in texts]
        return [Said(*row) for row in zip(answers, sources, self._count_tokens(said), prompts, strict=True)]

    def _rewrite(self, prompt: str) -> str:
        if not isinstance(self.task, LanguageModeling):
            return ""
        tokenizer = self.task.tokenizer
        return tokenizer.decode(tokenize(tokenizer, [prompt])[0], skip_special_tokens=True)

    def _count_tokens(self, groups: list[list[str]]) -> list[int]:
        assert self.task.tokenizer is not None
        counts = iter([len(ids) for ids in tokenize(self.task.tokenizer, [text for group in groups for text in group])])
        return [sum(next(counts) for _ in group) for group in groups]

    def _forecast(self, pasts: Sequence[np.ndarray]) -> list[np.ndarray]:
        assert isinstance(self.task, Forecasting)
        future = np.zeros((self.task.prediction_length, len(self.task.series)))
        features: list[Feature] = [{"past_values": past, "future_values": future} for past in pasts]
        batch = {name: tensor.to(self.model.device) for name, tensor in self.task.collate(features).items()}
        with torch.no_grad():
            return self.task.predict(self.model, batch, None)

    def read_csv(self, text: str) -> np.ndarray:
        """Read the past of all series, (L, C), from a table whose first line names its columns; others are left out.

        Raises:
            DataError: for a table without one of the series, with fewer steps than a forecast needs, or with a value
                that is not a number.
        """
        assert isinstance(self.task, Forecasting)
        names, length = self.task.series, self.task.context_length
        reader = csv.DictReader(io.StringIO(text.lstrip("\ufeff"), newline=""))
        try:
            rows = list(reader)
        except csv.Error as error:
            raise DataError(f"csv: {error}") from error
        missing = [name for name in names if name not in (reader.fieldnames or [])]
        if missing:
            raise DataError(f"csv: the first line must name the columns {', '.join(names)}; {missing[0]} is missing")
        if len(rows) < length:
            raise DataError(f"csv: it has {len(rows)} rows, where a forecast needs {length}")
        first = len(rows) - length
        return np.array(
            [[_to_number(row[name], name, first + step) for name in names] for step, row in enumerate(rows[first:])]
        )


def load_served(checkpoint: str, engine: str = TORCH, dtype: str | None = None) -> ServedModel:
    """Load a checkpoint to be served.

    Args:
        dtype: as `load_engine`.

    Raises:
        ConfigError: as `load_engine`.
    """
    model, task = load_engine(engine, checkpoint, dtype)
    columns: list[str] = []
    with suppress(ConfigError):  # a model of others, or of the Hub
        data = load_config(find_config(Path(checkpoint))).data
        columns = [data.source, data.target]
    name = checkpoint if not Path(checkpoint).is_dir() else Path(checkpoint).resolve().name
    return ServedModel(model, task, name, engine, columns)


def _find_language(name: str, code: str | None, known: Mapping[str, Any]) -> str | None:
    """Return the model's own name for a language: fr for fr, FR and fr-CA, or fr_XX, as it has them.

    None where it is not told any, or nobody names one.
    """
    if not known or not code or code.lower() == "auto":
        return None
    if len(code) > LONGEST_CODE:
        raise ConfigError(f"{name}: {shorten(code)} is not the code of a language{choose_from(known)}")
    written = code.lower().replace("-", "_")
    by_name = {other.lower().replace("-", "_"): other for other in reversed([*known])}
    if written in by_name:
        return by_name[written]
    base = known_code(written) or known_code(written.partition("_")[0])
    by_code = {known_code(other): other for other in reversed([*known])}
    if base is None or base not in by_code:
        raise ConfigError(f"{name}: the model does not know {shorten(code)}{choose_from(known, code)}")
    return by_code[base]


def _to_number(value: object, name: str, row: int) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"csv: {name} is {shorten(value)} in row {row + 1}, not a number")
    return number
