"""What a run trains: tokenizer, model and generation config, new or taken from a checkpoint that exists."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config import Config
from pipeline.data.hub_reading import download_model
from pipeline.data.word_vectors import load_embeddings, read_words
from pipeline.errors import ConfigError, nearest
from pipeline.tasks.registry import find
from tokenizer.checks import TokenizerError
from tokenizer.training import train

BOTH = "both"  # word vectors that are kept, beside others that are learned
LEARNED_BESIDE = 0.3  # how large those begin, of their usual size
SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def find_pretrained(config: Config) -> Path | None:
    """The folder that `model.from` means, fetched from the Hub if need be; None for a model from scratch."""
    name = config.model.get("from")
    if name is None:
        return None
    if not isinstance(name, str):
        raise ConfigError(f"model.from: {name!r} is no folder and no owner/name")
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ConfigError(f"model.from: {name!r} is no folder on this machine, nor of the form owner/name")
    try:
        return download_model(name, config.data.hub_patience)
    except ConfigError as error:
        raise ConfigError(f"model.from: {error}") from error


def load_or_train_tokenizer(
    config: Config, rows: Iterable[dict[str, Any]], path: Path | str | None
) -> PreTrainedTokenizerBase | None:
    """The tokenizer in `path`; else a new one, which it leaves in the output folder; None where the data are no text.

    Args:
        rows: to train it on; not touched where there is a path.

    Raises:
        ConfigError: for a path that holds no tokenizer, or when one cannot be trained.
    """
    columns = find(config.task).task.text_columns
    if not columns:
        return None
    texts: Iterable[str] = (row[name] for row in rows for name in columns if isinstance(row[name], str))
    if config.tokenizer.words is not None:
        if config.tokenizer.kind != "word":
            raise ConfigError("tokenizer.words: other kinds than word have parts of words, and need none")
        # Twice, as a word that occurs once is not learned; first, as max_texts would cut them off behind.
        texts = chain((word for word in read_words(config.tokenizer.words) for _ in range(2)), texts)
    output_dir = config.training["output_dir"]
    with PartialState().main_process_first():
        if path is None and PartialState().is_main_process:
            try:
                tokenizer = train(
                    texts,
                    config.tokenizer.kind,
                    config.tokenizer.vocab_size,
                    boundary=find(config.task).task.boundary,
                    lowercase=config.tokenizer.lowercase,
                    max_length=config.data.max_source_length,
                    max_texts=config.tokenizer.max_texts,
                )
            except TokenizerError as error:
                raise ConfigError(str(error)) from error
            tokenizer.save_pretrained(output_dir)
    try:
        return AutoTokenizer.from_pretrained(path or output_dir, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"tokenizer.path: no tokenizer could be loaded from {path!r}: {error}") from error


def build_model(
    config: Config,
    tokenizer: PreTrainedTokenizerBase | None,
    seed: int,
    sizes: dict[str, Any],
    pretrained: Path | None = None,
    is_new: bool = True,
) -> PreTrainedModel:
    """A new model of `model`'s sizes that fits tokenizer and data, or the pretrained one with `model`'s other settings.

    Args:
        sizes: what the data determine of the model, such as its classes.
        is_new: whether word vectors are to be read; the weights of a run that goes on come from its checkpoint.

    Raises:
        ConfigError: for an unknown or impossible size, a vocabulary that the tokenizer overflows, a folder that holds
            no weights this project can take, or a model whose batches cannot be packed.
    """
    transformers.set_seed(seed)
    settings = sizes | {name: value for name, value in config.model.items() if name not in ("from", "embeddings")}
    given = config.model.get("embeddings")
    if given is not None:
        _check_embeddings(config, given, tokenizer)
        if given["trainable"] == BOTH:
            settings["static_embeddings"] = True
    model = _make_model(config, tokenizer, settings, pretrained)
    if config.data.packing and (not isinstance(model, find(config.task).model) or model.config.attention_dropout):
        raise ConfigError("data.packing: needs a model of this project's own, and model.attention_dropout=0")
    if given is not None and tokenizer is not None:
        _load_embeddings(model, tokenizer, given["path"], given["trainable"], seed, is_new)
    return model


def _check_embeddings(config: Config, given: Any, tokenizer: PreTrainedTokenizerBase | None) -> None:
    trainable = given.get("trainable") if isinstance(given, dict) and set(given) == {"path", "trainable"} else None
    if not isinstance(trainable, bool) and trainable != BOTH:
        raise ConfigError(
            "model.embeddings: write {path: FILE, trainable: true}, or false to keep them as they are, or both to keep "
            "them beside others that are learned"
        )
    if tokenizer is None:
        raise ConfigError(f"model.embeddings: there are no words in the data of {config.task}")
    if trainable == BOTH and not hasattr(find(config.task).config, "static_embeddings"):
        raise ConfigError(f"model.embeddings: {config.task} has no place for both; write trainable: true or false")


def _load_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str,
    trainable: bool | str,
    seed: int,
    is_new: bool,
) -> None:
    """Reads word vectors into a new model, and lets training change what it may."""
    learned = model.get_input_embeddings()
    embedding = model.encoder.static_tokens if trainable == BOTH else learned
    if is_new:
        found = load_embeddings(embedding, tokenizer, path, seed)
        if trainable == BOTH:  # words without a vector have none here, and all begin with little beside it
            with torch.no_grad():
                embedding.weight[~torch.isin(torch.arange(len(embedding.weight)), found)] = 0
                learned.weight *= LEARNED_BESIDE
    embedding.requires_grad_(trainable is True)


def _make_model(
    config: Config, tokenizer: PreTrainedTokenizerBase | None, settings: dict[str, Any], pretrained: Path | None
) -> PreTrainedModel:
    if pretrained is not None:
        return _load_model(config, tokenizer, settings, pretrained)
    entry = find(config.task)
    _check_names(settings, entry.config())
    fitting = {} if tokenizer is None else _fit(tokenizer, settings)
    if hasattr(entry.config, "label_smoothing"):
        fitting["label_smoothing"] = config.training.get("label_smoothing_factor", 0.0)
    try:
        return entry.model(entry.config(**fitting | settings))
    except (ValueError, KeyError, StrictDataclassError) as error:
        raise ConfigError(f"model: {error}") from error


def _fit(tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> dict[str, Any]:
    """What a tokenizer determines of a new model."""
    vocab_size = settings.get("vocab_size", len(tokenizer))
    if vocab_size < len(tokenizer):
        raise ConfigError(
            f"model.vocab_size: {vocab_size} is too small for the tokenizer's {len(tokenizer)} tokens; "
            "leave it out to take theirs"
        )
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if special["pad_token_id"] is None or special["eos_token_id"] is None:
        raise ConfigError("tokenizer: it has no padding or no end-of-sequence token, and the model needs both")
    start = special["pad_token_id"] if special["bos_token_id"] is None else special["bos_token_id"]
    return {"vocab_size": vocab_size, **special, "decoder_start_token_id": start}


def _load_model(
    config: Config, tokenizer: PreTrainedTokenizerBase | None, settings: dict[str, Any], folder: Path
) -> PreTrainedModel:
    auto = find(config.task).auto
    try:
        model_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _check_names(settings, model_config)
        for name, value in settings.items():
            setattr(model_config, name, value)
        if hasattr(model_config, "label_smoothing"):
            model_config.label_smoothing = config.training.get("label_smoothing_factor", 0.0)
        # In safetensors alone: other formats of weights can run code when they are loaded.
        model = auto.from_pretrained(folder, config=model_config, trust_remote_code=False, use_safetensors=True)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ConfigError(f"model.from: {folder} cannot be loaded as {auto.__name__}: {error}") from error
    if tokenizer is None:
        return model
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise ConfigError(f"tokenizer.path: its {len(tokenizer)} tokens are too many for the {rows} of model.from")
    for name in ("max_source_length", "max_target_length"):
        positions, given = getattr(model_config, "max_position_embeddings", None), getattr(config.data, name)
        if positions is not None and given > positions:
            raise ConfigError(f"data.{name}: {given} is more than the {positions} positions of model.from")
    return model


def _check_names(settings: dict[str, Any], config: transformers.PreTrainedConfig) -> None:
    known = config.to_dict()
    for name in settings:
        if name not in known:
            raise ConfigError(f"model.{name}: {type(config).__name__} has no such field{nearest(name, known)}")


def generation_config(config: Config, model: PreTrainedModel, **changes: Any) -> GenerationConfig:
    """An explicit GenerationConfig, as transformers' own defaults (20 tokens, top_k of 50) surprise.

    A pretrained model's own settings stay where the config says nothing else.

    Raises:
        ConfigError: for an unknown key, or a combination that transformers would refuse to save.
    """
    known = vars(GenerationConfig())
    for name in config.generation:
        if name not in known:
            raise ConfigError(f"generation.{name} is not one of GenerationConfig{nearest(name, known)}")
    own = model.generation_config.to_diff_dict() if "from" in config.model and model.can_generate() else {}
    settings = {
        **{name: getattr(model.config, name, None) for name in SPECIAL_TOKENS},
        **{name: value for name, value in own.items() if name not in ("transformers_version", "max_length")},
        "max_new_tokens": config.data.max_target_length,
        **config.generation,
        **changes,
    }
    try:
        generation = GenerationConfig(**settings)
        generation.validate(strict=True)
    except ValueError as error:
        raise ConfigError(f"generation: {error}") from error
    return generation
