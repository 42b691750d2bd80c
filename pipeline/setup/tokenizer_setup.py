"""The tokenizer of a config: trained on the data, or loaded from a folder or the Hub."""

import difflib
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from pipeline.config import Config
from pipeline.data.rows import first_text
from pipeline.data.word_vectors import read_words
from pipeline.errors import ConfigError
from pipeline.progress import is_shown
from pipeline.tasks.registry import get_task
from pipeline.tasks.trained_model import load_tokenizer
from tokenizer.checks import TokenizerError, check
from tokenizer.training import train

LANGUAGE = re.compile(r"\w+")  # a special token without brackets: fra_Latn, __fra__
SHOWN_LANGUAGES = 12
ATTRIBUTES = {"source": "src_lang", "target": "tgt_lang"}  # of a tokenizer, saved with it


def prepare_tokenizer(
    config: Config, rows: Iterable[dict[str, Any]], path: Path | str | None
) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer in `path`; else train one, and leave it in the output folder; None where data hold no text.

    Args:
        rows: to train it on; not touched where there is a path.

    Raises:
        ConfigError: for a path without a tokenizer, or one that cannot be trained.
    """
    task = get_task(config.task)
    if not task.text_columns:
        if config.data.source_lang or config.data.target_lang:
            raise ConfigError(f"data.source_lang, data.target_lang: {config.task} has no texts; leave them out")
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
    _set_languages(config, tokenizer)
    return tokenizer


def has_languages(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer marks texts with their language, as those of mBART, M2M100 and NLLB do."""
    return hasattr(tokenizer, "set_tgt_lang_special_tokens")


def _set_languages(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set source and target language, which are then saved with the tokenizer.

    Raises:
        ConfigError: for a language that is missing, unknown, or given though the tokenizer has none.
    """
    known = _languages(tokenizer) if has_languages(tokenizer) else {}
    given = {column: getattr(config.data, f"{column}_lang") for column in ATTRIBUTES}
    missing = [f"data.{name}_lang" for name in get_task(config.task).text_columns if known and given.get(name) is None]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)}: needed, as this tokenizer marks texts with their language{_name_some(known)}"
        )
    for column, language in given.items():
        if language is None:
            continue
        if not known:
            raise ConfigError(f"data.{column}_lang: this tokenizer knows no languages; leave it out")
        if language not in known:
            raise ConfigError(f"data.{column}_lang: the tokenizer knows no {language!r}{_name_some(known, language)}")
        setattr(tokenizer, ATTRIBUTES[column], known[language])


def _languages(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Map the names of a tokenizer's languages to its own for them, such as both java and __java__ to __java__."""
    numbers = getattr(tokenizer, "lang_code_to_id", None) or {
        token: number
        for token, number in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        if LANGUAGE.fullmatch(token)
    }
    names = [name for name, number in numbers.items() if number != tokenizer.unk_token_id]  # not in this vocabulary
    return {name.strip("_"): name for name in names} | {name: name for name in names}


def _name_some(languages: dict[str, str], wrong: str = "") -> str:
    """Return `; choose from X, Y, ...`, those first that resemble a wrong name."""
    close = difflib.get_close_matches(wrong, languages, n=3)
    some = [*close, *(name for name in languages if name not in close and not name.startswith("_"))]
    return f"; choose from {', '.join(some[:SHOWN_LANGUAGES])}{', ...' if len(some) > SHOWN_LANGUAGES else ''}"


def _train(config: Config, rows: Iterable[dict[str, Any]]) -> PreTrainedTokenizerBase:
    task = get_task(config.task)
    fields = (first_text(row[name]) for row in rows for name in task.text_columns)
    texts: Iterable[str] = (field for field in fields if isinstance(field, str))
    if config.tokenizer.words is not None:
        # Twice, as a word that occurs once is not learned; first, as max_texts would cut them off behind.
        texts = chain((word for word in read_words(config.tokenizer.words) for _ in range(2)), texts)
    try:
        return train(
            texts,
            config.tokenizer.kind,
            config.tokenizer.vocab_size,
            eos_position=task.eos_position,
            lowercase=config.tokenizer.lowercase,
            max_length=config.data.max_source_length,
            max_texts=config.tokenizer.max_texts,
            show_progress=is_shown(),
        )
    except TokenizerError as error:
        raise ConfigError(str(error)) from error


def check_tokenizer(config: Config, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    """Check on some texts that a tokenizer keeps what training and generation need.

    Raises:
        ConfigError: naming what it lacks.
    """
    try:
        check(tokenizer, texts, get_task(config.task).eos_position)
    except TokenizerError as error:
        raise ConfigError(str(error)) from error
