"""The model of a config, new or from a checkpoint that exists."""

import dataclasses
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import DistributedType, PartialState
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config import Config
from pipeline.data.hub_reading import download_model
from pipeline.data.word_vectors import load_embeddings
from pipeline.errors import ConfigError, explain_path, nearest
from pipeline.memory import total_memory
from pipeline.setup.tokenizer_setup import model_languages
from pipeline.tasks.registry import MODELS, get_model, get_task
from pipeline.tasks.trained_model import (
    MAX_LAYERS,
    MAX_SIZE,
    check_files,
    load_generation_config,
    load_model_config,
    load_whole,
)

OWN_KEYS = ("type", "from", "embeddings")  # of the section `model`; the others are fields of the model's config
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "classifier_dropout")  # fields of such a config
BOTH = "both"  # word vectors that are kept, beside others that are learned
LEARNED_BESIDE = 0.3  # how large those begin, of their usual size


def find_pretrained(config: Config) -> Path | None:
    """Return the folder that `model.from` means, fetched from the Hub if need be; None for a model from scratch."""
    name = config.model.get("from")
    if name is None:
        return None
    if not isinstance(name, str):
        raise ConfigError(f"model.from: {name!r} is neither a folder nor owner/name")
    with explain_path(f"model.from: {name}"), suppress(FileNotFoundError, NotADirectoryError):
        os.stat(name)
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ConfigError(f"model.from: {name!r} is neither a folder on this machine nor of the form owner/name")
    try:
        return download_model(name, config.data.hub_patience)
    except ConfigError as error:
        raise ConfigError(f"model.from: {error}") from error


def stored_settings(checkpoint: Path, data_settings: dict[str, Any]) -> dict[str, Any]:
    """Return what the data determined of a model when its run began, such as means, in place of what they do now.

    Raises:
        ConfigError: when the classes are others, as each output of the model stands for one.
    """
    stored = load_model_config(checkpoint)
    before, now = stored.id2label, data_settings.get("id2label", stored.id2label)
    if before != now:
        raise ConfigError(
            f"data.target: the classes are now {', '.join(now.values())}, but those of {checkpoint} are "
            f"{', '.join(before.values())}; put them back, or begin a new run"
        )
    return {name: getattr(stored, name) for name in data_settings}


def is_own(model: PreTrainedModel) -> bool:
    """Tell whether a model is in our table, so divides its loss by the items of the whole step itself."""
    return isinstance(model, tuple(spec.model for spec in MODELS.values()))


def build_model(
    config: Config,
    tokenizer: PreTrainedTokenizerBase | None,
    seed: int,
    data_settings: dict[str, Any],
    pretrained: Path | None = None,
    is_new: bool = True,
) -> PreTrainedModel:
    """Make a new model that fits tokenizer and data, or load the pretrained one with `model`'s other settings.

    Args:
        data_settings: what the data determine of the model, such as its classes.
        is_new: whether word vectors are to be read; the weights of a run that goes on come from its checkpoint.

    Raises:
        ConfigError: for an unknown or impossible size, a vocabulary that the tokenizer overflows, a folder without
            weights that this project can take, or a model whose batches cannot be packed.
    """
    transformers.set_seed(seed)
    settings = data_settings | given_settings(config)
    embeddings = config.model.get("embeddings")
    if embeddings is not None:
        _check_embeddings(config, embeddings, tokenizer)
        if embeddings["trainable"] == BOTH:
            settings["static_embeddings"] = True
    model = _make_model(config, tokenizer, settings, pretrained)
    if config.data.packing and not (
        is_own(model) and get_model(config).can_pack and not model.config.attention_dropout
    ):
        raise ConfigError("data.packing: needs a model of this project's own, and model.attention_dropout=0")
    if getattr(model.config, "r_drop", 0) and not any(getattr(model.config, name, 0) for name in DROPOUTS):
        raise ConfigError(
            "training.r_drop: it compares passes with different masks of dropout, and this model has no dropout; set "
            "model.dropout above 0, or leave r_drop out"
        )
    if embeddings is not None and tokenizer is not None:
        _load_embeddings(model, tokenizer, embeddings["path"], embeddings["trainable"], seed, is_new)
    return model


def _check_embeddings(config: Config, embeddings: Any, tokenizer: PreTrainedTokenizerBase | None) -> None:
    is_complete = isinstance(embeddings, dict) and set(embeddings) == {"path", "trainable"}
    trainable = embeddings["trainable"] if is_complete else None
    if not isinstance(trainable, bool) and trainable != BOTH:
        raise ConfigError(
            "model.embeddings: write {path: FILE, trainable: true}, or false to keep them as they are, or both to keep "
            "them beside others that are learned"
        )
    if tokenizer is None:
        raise ConfigError(f"model.embeddings: there are no words in the data of {config.task}")
    if trainable == BOTH and "static_embeddings" not in get_model(config).config().to_dict():
        raise ConfigError(f"model.embeddings: {config.task} has no place for both; write trainable: true or false")


def _load_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str,
    trainable: bool | str,
    seed: int,
    is_new: bool,
) -> None:
    """Read word vectors into a new model, and let training change what it may."""
    learned = model.get_input_embeddings()
    embedding = model.get_static_embeddings() if trainable == BOTH else learned
    if is_new:
        known = load_embeddings(embedding, tokenizer, path, seed)
        if trainable == BOTH:  # words without a vector have none here, and all begin with little beside it
            with torch.no_grad():
                embedding.weight[~torch.isin(torch.arange(len(embedding.weight)), known)] = 0
                learned.weight *= LEARNED_BESIDE
    embedding.requires_grad_(trainable is True)


def _make_model(
    config: Config, tokenizer: PreTrainedTokenizerBase | None, settings: dict[str, Any], pretrained: Path | None
) -> PreTrainedModel:
    if pretrained is not None:
        return _load_model(config, tokenizer, settings, pretrained)
    model_config = make_model_config(config, tokenizer, settings)
    try:
        _check_memory(config, get_model(config).model, model_config)
        return get_model(config).model(model_config)
    except KeyError as error:  # of a table of transformers, such as that of activation functions
        raise ConfigError(f"model: {error} is unknown") from error
    except (ValueError, StrictDataclassError) as error:
        raise ConfigError(f"model: {error}") from error


def given_settings(config: Config) -> dict[str, Any]:
    """Return what the section `model` sets of the model's own config."""
    return {name: value for name, value in config.model.items() if name not in OWN_KEYS}


def make_model_config(
    config: Config, tokenizer: PreTrainedTokenizerBase | None, settings: dict[str, Any]
) -> PreTrainedConfig:
    """Make the config of a new model that fits its tokenizer.

    Args:
        settings: `given_settings`, and what the data determine of the model.

    Raises:
        ConfigError: for an unknown or impossible size, or a vocabulary that the tokenizer overflows.
    """
    spec = get_model(config)
    known = spec.config().to_dict()
    _check_settings(config.model, spec.config, known)
    fitting = {} if tokenizer is None else _fit(tokenizer, settings)
    fitting |= _regularization(config, spec.config, known)
    if tokenizer is not None and (languages := model_languages(config, tokenizer)):
        if "languages" not in {field.name for field in dataclasses.fields(spec.config)}:
            raise ConfigError(f"data.target_lang: {spec.config.__name__} has no languages; leave it out")
        fitting |= {"languages": languages, "target_lang_in": config.data.target_lang_in}
    try:
        return spec.config(**fitting | settings)
    except (ValueError, StrictDataclassError) as error:
        raise ConfigError(f"model: {error}") from error


def _check_memory(config: Config, model_class: type[PreTrainedModel], model_config: PreTrainedConfig) -> None:
    """Count the weights of a model before any is made, and compare what training holds with the memory that is there.

    Too large a model would otherwise be ended by the kernel, without a word.
    """
    with torch.device("meta"):  # which has shapes and no values
        weights = sum(parameter.numel() for parameter in model_class(model_config).parameters())
    optim = config.training.get("optim", "adamw_torch_fused")
    copies = 4 if optim.startswith("adamw_torch") else 2  # weights, gradients, and Adam's two means
    needed, memory = copies * weights * torch.float32.itemsize, total_memory(PartialState().device) * _num_shards()
    if needed > memory:
        raise ConfigError(
            f"model: its {weights:,} weights take {needed / 1e9:,.1f} GB with gradients and the optimizer's state, of "
            f"{memory / 1e9:,.1f} GB that there are; choose smaller sizes"
        )


def _num_shards() -> int:
    is_sharded = PartialState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    return PartialState().num_processes if is_sharded else 1


def _fit(tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a tokenizer determines of a new model."""
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
    auto = get_task(config.task).auto_class
    try:
        check_files(folder)
        model_config = load_model_config(folder)
        load_generation_config(folder, model_config.model_type in MODELS)  # transformers passes over a broken one
    except ConfigError as error:
        raise ConfigError(f"model.from: {error}") from error
    known = model_config.to_dict()
    _check_settings(config.model, type(model_config), known)
    try:
        for name, value in settings.items():
            setattr(model_config, name, value)
        for name, value in _regularization(config, type(model_config), known).items():
            setattr(model_config, name, value)
        model = load_whole(auto, folder, model_config, allow_new_head=True)
    except (OSError, ValueError, KeyError, ConfigError, StrictDataclassError) as error:
        raise ConfigError(f"model.from: {folder} cannot be loaded as {auto.__name__}: {error}") from error
    if tokenizer is None:
        return model
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise ConfigError(f"tokenizer.path: its {len(tokenizer)} tokens are too many for the {rows} of model.from")
    return model


def _regularization(config: Config, model_config: type[PreTrainedConfig], known: dict[str, Any]) -> dict[str, Any]:
    """Return what `training` sets of the model's own config, which has the `known` fields.

    Raises:
        ConfigError: for R-Drop or adversarial training with a model that makes no second pass.
    """
    if config.r_drop and "r_drop" not in known:
        raise ConfigError(
            f"training.r_drop: {model_config.__name__} makes one pass only; leave it out, or train a model of this "
            "project's own for sequence_to_sequence or text_classification"
        )
    if config.adversarial_epsilon and "adversarial_epsilon" not in known:
        raise ConfigError(
            f"training.adversarial_epsilon: {model_config.__name__} does not take it; leave it out, or train a model "
            "of this project's own for text_classification"
        )
    values = {
        "label_smoothing": config.label_smoothing,
        "r_drop": config.r_drop,
        "adversarial_epsilon": config.adversarial_epsilon,
    }
    return {name: value for name, value in values.items() if name in known}


def _check_settings(settings: dict[str, Any], config: type[PreTrainedConfig], known: dict[str, Any]) -> None:
    """Refuse names that the model does not have, sizes beyond all bounds, and values of another kind.

    What every PreTrainedConfig has says how a model is loaded and what it returns, which is not for a run to change.

    Args:
        settings: the section `model`.
        known: names and present values, in which the model's own config may check more.

    Raises:
        ConfigError: naming the first.
    """
    own = sorted(known.keys() - {field.name for field in dataclasses.fields(PreTrainedConfig)})
    for name, value in settings.items():
        if name in OWN_KEYS:
            continue
        if name not in own:
            raise ConfigError(f"model.{name}: {config.__name__} has no such field{nearest(name, own)}")
        bound = MAX_LAYERS if name.endswith("layers") else MAX_SIZE
        if isinstance(value, int) and value > bound:
            raise ConfigError(f"model.{name}: {value} is more than {bound}, the most that is taken; give a smaller one")
        if not _is_alike(value, known[name]):
            raise ConfigError(f"model.{name}: {value!r} is not of the kind of {known[name]!r}, which it has by itself")


def _is_alike(value: Any, present: Any) -> bool:
    """Tell whether a value can take the place of a present one; numbers can that of each other, as 0 may be a share."""
    if present is None:
        return True
    kinds = (int, float) if type(present) in (int, float) else (type(present),)
    return type(value) in kinds or (value is None and not isinstance(present, int | float))
