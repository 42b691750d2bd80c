"""The tokenizer of a config: trained on the data, or loaded from a folder or the Hub."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from pipeline.config import Config
from pipeline.data.mixture import CORPUS, count_rows, interleave, plan_stages
from pipeline.data.rows import first_text
from pipeline.data.splits import Rows
from pipeline.data.text_noise import make_noise
from pipeline.data.word_vectors import read_words
from pipeline.data_config import LanguageColumn, language_codes
from pipeline.errors import ConfigError
from pipeline.progress import is_shown
from pipeline.tasks.registry import get_task
from pipeline.tasks.row_languages import (
    TAG,
    choose_from,
    find_tags,
    has_languages,
    known_languages,
    target_tag,
)
from pipeline.tasks.trained_model import load_tokenizer
from tokenizer.checks import TokenizerError, check
from tokenizer.training import train

ATTRIBUTES = {"source_lang": "src_lang", "target_lang": "tgt_lang"}  # of a tokenizer, saved with it
MAX_LANGUAGES = 1000  # of a column; one with more is another column

logger = logging.getLogger(__name__)


def typical_rows(
    config: Config, corpora: Mapping[str, Rows], readers: Mapping[str, Callable[[], Iterator[dict[str, Any]]]]
) -> Iterator[dict[str, Any]]:
    """Yield the training rows that a tokenizer is trained on, each with the name of its `CORPUS`.

    Those of a mix come by the shares of its first stage.

    Args:
        corpora: the training rows by name; their sizes make shares.
        readers: what begins to read each of them.
    """
    named = {name: partial(_read_named, name, reader) for name, reader in readers.items()}
    if config.data.mix is None:
        return chain.from_iterable(reader() for reader in named.values())
    stages = plan_stages(config.data, count_rows(config.data, corpora))
    return interleave(named, stages[0].shares)


def _read_named(name: str, reader: Callable[[], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    return ({**row, CORPUS: name} for row in reader())


def prepare_tokenizer(
    config: Config, rows: Iterable[dict[str, Any]], path: Path | str | None
) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer in `path`; else train one, and leave it in the output folder; None where data hold no text.

    Args:
        rows: to train it on, those of a mixture with the name of their `CORPUS`; not touched where there is a path.

    Raises:
        ConfigError: for a path without a tokenizer, or one that cannot be trained.
    """
    task = get_task(config.task)
    if not task.text_columns:
        if given := _given_marks(config):
            raise ConfigError(f"{given[0]}: {config.task} has no texts; leave it out")
        return None
    if config.tokenizer.words is not None and config.tokenizer.kind != "word":
        raise ConfigError("tokenizer.words: other kinds than word have parts of words, and need none")
    with PartialState().main_process_first():
        if path is None and PartialState().is_main_process:
            _train(config, rows).save_pretrained(config.output_dir)
    try:
        tokenizer = load_tokenizer(path or config.output_dir)
    except ConfigError as error:
        raise ConfigError(f"tokenizer.path: no tokenizer could be loaded from {str(path)!r}: {error}") from error
    if path is not None and path == config.tokenizer.path and "from" not in config.model:
        _add_tags(tokenizer, _tags(config))
    if has_languages(tokenizer):
        _set_languages(config, tokenizer)
    else:
        _check_tags(config, tokenizer)
    for place, (data, _) in config.data.places.items():
        if data.source_tag is not None and data.source_tag not in tokenizer.all_special_tokens:
            key = _key(config, place, "source_tag")
            raise ConfigError(f"{key}: {data.source_tag} is not a special token of the tokenizer; leave it out")
    return tokenizer


def _given_marks(config: Config) -> list[str]:
    """Name the keys of languages and tags that a config gives, wherever it does."""
    return [_key(config, place, name) for place, (data, _) in config.data.places.items() for name in sorted(data.marks)]


def _key(config: Config, place: str, name: str) -> str:
    """Return the key of a language or tag: that of `data`, or of a corpus or set that has its own."""
    value, common = getattr(config.data.places[place][0], name), getattr(config.data, name)
    is_own = "." in place and (value is None or value != common)
    return f"data.{place}.{name}" if is_own else f"data.{name}"


# ---- our own models, whose languages are tags


def _tags(config: Config) -> list[str]:
    """Return the special tokens that a config names: those of target languages, and those in front of sources."""
    targets = [code for data in config.data.corpora.values() for code in language_codes(data.target_lang)]
    sources = [data.source_tag for data in config.data.corpora.values() if data.source_tag is not None]
    return [*dict.fromkeys([*map(target_tag, targets), *sources])]


def _add_tags(tokenizer: PreTrainedTokenizerBase, tags: Iterable[str]) -> None:
    """Add tags behind all other tokens, as far as they are not there."""
    known = tokenizer.get_vocab()
    new = [tag for tag in tags if tag not in known]
    if new:
        added = [AddedToken(tag, normalized=False, special=True) for tag in new]
        tokenizer.add_special_tokens({"extra_special_tokens": added}, replace_extra_special_tokens=False)
        logger.info("tokenizer: special tokens are added: %s", ", ".join(new))


def _check_tags(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a tokenizer has the tags of all languages that the data name.

    Raises:
        ConfigError: for data whose languages nothing marks, a language without a tag, or data without a language beside
            others that have one.
    """
    known = find_tags(tokenizer)
    is_told = any("target_lang" in data.marks for data, _ in config.data.places.values())
    for place, (data, _) in config.data.places.items():
        is_marked = config.task == "sequence_to_sequence"
        if data.marks and not (is_marked and ("from" not in config.model or known)):
            problem = "this tokenizer knows no languages" if is_marked else f"{config.task} marks no rows"
            raise ConfigError(f"{_key(config, place, min(data.marks))}: {problem}; leave it out")
        key = _key(config, place, "target_lang")
        if is_told and "target_lang" not in data.marks:
            raise ConfigError(f"{key}: needed, as the model is told the language of other rows{choose_from(known)}")
        if data.target_lang is not None and not known:
            raise ConfigError(
                f"{key}: name the languages, as the tokenizer has no tags of any: {{column: NAME, codes: [de, fr]}}"
            )
        for code in language_codes(data.target_lang):
            if code not in known:
                raise ConfigError(f"{key}: the tokenizer knows no {code!r}{choose_from(known, code)}")


def model_languages(config: Config, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the target languages that a new model learns: code -> id of its tag; none where the data name none."""
    targets = [data.target_lang for data in config.data.corpora.values()]
    codes = {code for language in targets for code in language_codes(language)}
    is_open = any(isinstance(language, LanguageColumn) and not language.codes for language in targets)
    return {code: number for code, number in find_tags(tokenizer).items() if is_open or code in codes}


class _Codes:
    """Collects the languages of rows while they are read.

    Attributes:
        found: codes, in the order in which they come.
    """

    def __init__(self, config: Config):
        is_open = [isinstance(data.target_lang, LanguageColumn) for data in config.data.corpora.values()]
        self.is_needed = any(is_open)
        self.found: dict[str, None] = {}

    def watch(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Raise ConfigError where there are too many to be languages."""
        for row in rows:
            code = row.get("target_lang") if self.is_needed else None
            if isinstance(code, str) and TAG.fullmatch(target_tag(code)):  # another is named as a bad row
                self.found[code] = None
                if len(self.found) > MAX_LANGUAGES:
                    raise ConfigError(f"data.target_lang: the column has over {MAX_LANGUAGES} values, such as {code!r}")
            yield row


# ---- tokenizers with languages of their own


def _set_languages(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check the languages of all data; those that are the same in all training rows are saved with the tokenizer.

    Rows are not encoded by what is set here, but each by its own languages.

    Raises:
        ConfigError: for a language that is missing or unknown.
    """
    known = known_languages(tokenizer)
    names = [f"{column}_lang" for column in get_task(config.task).text_columns]
    for place, (data, _) in config.data.places.items():
        missing = [_key(config, place, name) for name in names if getattr(data, name) is None]
        if missing:
            keys = " and ".join(missing)
            raise ConfigError(f"{keys}: needed, as this tokenizer marks texts with their language{choose_from(known)}")
        for name in ATTRIBUTES:
            for code in language_codes(getattr(data, name)):
                if code not in known:
                    key = _key(config, place, name)
                    raise ConfigError(f"{key}: the tokenizer knows no {code!r}{choose_from(known, code)}")
    for name, attribute in ATTRIBUTES.items():
        first, *others = (getattr(data, name) for data in config.data.corpora.values())
        is_same = isinstance(first, str) and all(other == first for other in others)
        only = known[first] if is_same else None
        if only is not None or attribute == "tgt_lang":  # a source has a language in any case
            setattr(tokenizer, attribute, only)


def _train(config: Config, rows: Iterable[dict[str, Any]]) -> PreTrainedTokenizerBase:
    task, codes = get_task(config.task), _Codes(config)
    rows = _add_noise(config, codes.watch(rows), task.text_columns)
    fields = (first_text(row[name]) for row in rows for name in task.text_columns)
    texts: Iterable[str] = (field for field in fields if isinstance(field, str))
    if config.tokenizer.words is not None:
        # Twice, as a word that occurs once is not learned; first, as max_texts would cut them off behind.
        texts = chain((word for word in read_words(config.tokenizer.words) for _ in range(2)), texts)
    marks = _tags(config)
    try:
        tokenizer = train(
            texts,
            config.tokenizer.kind,
            config.tokenizer.vocab_size,
            eos_position=task.eos_position,
            lowercase=config.tokenizer.lowercase,
            max_length=config.data.max_source_length,
            max_texts=config.tokenizer.max_texts,
            guarded=[*map(re.escape, marks), *([TAG.pattern] if codes.is_needed else [])],
            show_progress=is_shown(),
        )
    except TokenizerError as error:
        raise ConfigError(str(error)) from error
    _add_tags(tokenizer, [*marks, *map(target_tag, codes.found)])
    return tokenizer


def _add_noise(config: Config, rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield rows with the noise that training puts on them.

    A BPE of texts in their usual case cuts those in upper case into single letters: 3.4 times as many tokens a row of
    Multi30k. Trained on texts of which a tenth are in upper case, it makes 1.3 times as many of those.
    """
    noise, generator = make_noise(config.augmentation, config.data, columns), np.random.default_rng(0)
    for row in rows:
        of_corpus = noise.get(row.get(CORPUS, ""))
        yield row if of_corpus is None else row | of_corpus(row, generator)


def check_tokenizer(config: Config, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    """Check on some texts that a tokenizer keeps what training and generation need.

    Raises:
        ConfigError: naming what it lacks.
    """
    try:
        check(tokenizer, texts, get_task(config.task).eos_position)
    except TokenizerError as error:
        raise ConfigError(str(error)) from error
