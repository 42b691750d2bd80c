"""The tokenizer of a config: trained on the data, or loaded from a folder or the Hub."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from pipeline.config import Config
from pipeline.data.word_vectors import read_words
from pipeline.errors import ConfigError
from pipeline.tasks.registry import get_task
from pipeline.tasks.trained_model import load_tokenizer
from tokenizer.checks import TokenizerError, check
from tokenizer.training import train


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
        return None
    if config.tokenizer.words is not None and config.tokenizer.kind != "word":
        raise ConfigError("tokenizer.words: other kinds than word have parts of words, and need none")
    with PartialState().main_process_first():
        if path is None and PartialState().is_main_process:
            _train(config, rows).save_pretrained(config.output_dir)
    try:
        return load_tokenizer(path or config.output_dir)
    except ConfigError as error:
        raise ConfigError(f"tokenizer.path: no tokenizer could be loaded from {path!r}: {error}") from error


def _train(config: Config, rows: Iterable[dict[str, Any]]) -> PreTrainedTokenizerBase:
    task = get_task(config.task)
    texts: Iterable[str] = (row[name] for row in rows for name in task.text_columns if isinstance(row[name], str))
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
