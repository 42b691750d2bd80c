"""The generation config of a run: it starts and ends where training does, and is checked before the first step.

A model that learned to continue one token and generates from another scores well in training and writes nonsense. So
start, forced tokens and end are taken from what training feeds the decoder, and not from what a config says of it.
"""

import copy
import logging
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config import Config, check_generation
from pipeline.errors import ConfigError
from pipeline.library_settings import GenerationSettings
from pipeline.setup.model_factory import is_own
from pipeline.tasks.base import Batch, Feature, Task, tokenize
from pipeline.tasks.trained_model import check_token_ids

SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
LENGTHS = (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens"))  # of each pair, one is ignored
BEAM_ONLY = ("early_stopping", "length_penalty")  # transformers refuses to store them beside a single beam,
SAMPLING_ONLY = (  # and these where nothing is sampled
    "temperature",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "top_k",
    "epsilon_cutoff",
    "eta_cutoff",
)
PROBE = "a 1 . é 中"  # a text that any tokenizer gives some token for

logger = logging.getLogger(__name__)


def generation_config(config: Config, model: PreTrainedModel, task: Task) -> GenerationConfig:
    """Make an explicit GenerationConfig, as transformers' own defaults (20 tokens, top_k of 50) surprise.

    A pretrained model's own settings stay where the config says nothing else, and where they fit how it is trained.

    Raises:
        ConfigError: for a combination that transformers would refuse to save, two lengths of which one would be
            ignored, more tokens than the model has positions, a token that it does not have, or a start or end that
            training does not have.
    """
    given = config.generation
    settings = {
        **{name: getattr(model.config, name, None) for name in SPECIAL_TOKENS},
        **(_own_settings(model, given) if "from" in config.model else {}),
        **given,
    }
    if settings.get("max_new_tokens") is None and settings.get("max_length") is None:
        settings["max_new_tokens"] = config.data.max_target_length
    _check_lengths(settings, given, task.max_positions[1])
    check_token_ids(settings, model.config)
    if model.config.is_encoder_decoder and task.tokenizer is not None:
        settings |= _bounds_of_training(settings, given, model, task, task.tokenizer)
    return _make(settings, "generation")


def changed_generation(generation: GenerationConfig, changes: dict[str, Any], place: str) -> GenerationConfig:
    """Return a generation config with some settings changed, and without those that the changes make useless.

    Args:
        place: where the changes were given, for messages.

    Raises:
        ConfigError: for settings that cannot go together.
    """
    _check_pairs(changes, f"{place} ")
    stored = {name: value for name, value in vars(copy.deepcopy(generation)).items() if not name.startswith("_")}
    useless = _useless_settings(stored, changes)
    return _make({**{name: value for name, value in stored.items() if name not in useless}, **changes}, place)


def _make(settings: dict[str, Any], place: str) -> GenerationConfig:
    try:
        generation = GenerationConfig(**settings)
        generation.validate(strict=True)
    except ValueError as error:
        raise ConfigError(f"{place}: {' '.join(str(error).split())}") from error
    return generation


def _own_settings(model: PreTrainedModel, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a pretrained model was published with, but none that those of the config rule out."""
    stored = model.generation_config.to_diff_dict()
    left_out = {"transformers_version", "_from_model_config", "max_length", "max_new_tokens"}
    left_out |= _useless_settings(stored, given)
    used = {name: value for name, value in stored.items() if name not in left_out}
    # Some have values that mean nothing, such as an empty list of tokens.
    known = {name: used[name] for name in GenerationSettings.model_fields if used.get(name) and name not in given}
    check_generation(known, lambda _: "model.from: its generation_config.json: ")
    return used


def _useless_settings(stored: dict[str, Any], given: dict[str, Any]) -> set[str]:
    """Name those stored settings that do nothing beside the given ones, or that would win over them."""
    together = stored | given
    useless: set[str] = set()
    for pair in LENGTHS:
        useless |= {*pair} if any(given.get(name) for name in pair) else set()
    if (together.get("num_beams") or 1) == 1:
        useless |= {*BEAM_ONLY}
    if not together.get("do_sample"):
        useless |= {*SAMPLING_ONLY}
    return useless


def _check_pairs(given: dict[str, Any], prefix: str) -> None:
    for length, new_tokens in LENGTHS:
        if given.get(length) and given.get(new_tokens):
            raise ConfigError(
                f"{prefix}{length} and {prefix}{new_tokens}: the second would win, so give only one of them; "
                f"{length} counts the start token too"
            )


def _check_lengths(settings: dict[str, Any], given: dict[str, Any], positions: int | None) -> None:
    _check_pairs(given, "generation.")
    most = settings.get("max_new_tokens") or (settings.get("max_length") or 0) - 1
    least = settings.get("min_new_tokens") or (settings.get("min_length") or 0) - 1
    if not isinstance(most, int) or not isinstance(least, int):
        return  # which transformers' own check of types names
    key = "max_new_tokens" if settings.get("max_new_tokens") else "max_length"
    if positions is not None and most > positions:
        raise ConfigError(
            f"generation.{key}: {settings[key]} is more than the {positions} positions of the model's decoder"
        )
    if 0 < most < least:
        name = "min_new_tokens" if settings.get("min_new_tokens") else "min_length"
        raise ConfigError(
            f"generation.{name}: {settings[name]} is more than generation.{key}, which is {settings[key]}; lower it, "
            f"such as generation.{name}=0"
        )


def _bounds_of_training(
    settings: dict[str, Any],
    given: dict[str, Any],
    model: PreTrainedModel,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Return start, forced tokens, end and padding as training has them.

    With the tokenizers of mBART-50, mBART and T5, what the decoder reads in training is

        `</s> fr_XX a b`    start `</s>`, then `fr_XX` is forced
        `fr_XX a b`         start `fr_XX`
        `<pad> a b`         start `<pad>`

    Where there are several target languages, none is forced here: `Task.begin_answers` does so for each row.

    Raises:
        ConfigError: for a setting of `generation` that says something else, or targets without an end.
    """
    feature = _probe(task)
    bounds = {
        **_beginning(settings, model, task, tokenizer, feature),
        "pad_token_id": tokenizer.pad_token_id,
        **_ends(settings, given, feature["labels"], tokenizer),
    }
    for name, value in bounds.items():
        if given.get(name) is not None and given[name] != value:
            seen = "nothing" if value is None else f"{value} ({tokenizer.convert_ids_to_tokens(value)!r})"
            raise ConfigError(f"generation.{name}: {given[name]} is given, where training has {seen}; leave it out")
        if settings.get(name) not in (None, value):
            logger.info("generation.%s is %s, as in training, and not the model's own %s", name, value, settings[name])
    return bounds


def _probe(task: Task) -> Feature:
    """Return a pair as training has it, in the model's default languages, or else its first ones."""
    languages = task.languages
    source_lang = languages.default_source or next(iter(languages.sources), None)
    target_lang = languages.default_target or next(iter(languages.targets), None)
    columns = {"source": [f"{PROBE} b"], "target": [PROBE], "row": [0]}
    feature = task.encode(task.with_languages(columns, source_lang, target_lang))[0]
    assert isinstance(feature, dict)
    return feature


def _beginning(
    settings: dict[str, Any],
    model: PreTrainedModel,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    feature: Feature,
) -> dict[str, int | None]:
    """Return the start, and what is forced behind it."""
    labels, told = feature["labels"], feature.get("decoder_start")
    batch = task.collate([feature])
    if told is None:
        first = labels[0] if labels and tokenize(tokenizer, [""], is_target=True)[0][:1] == labels[:1] else None
        forced = first if settings.get("forced_bos_token_id") is not None else None
        return {"decoder_start_token_id": _start_of_training(model, batch), "forced_bos_token_id": forced}
    if not is_own(model):
        # Without our help its decoder must read the same of what the tokenizer makes of a target.
        del batch["decoder_input_ids"]
        batch["labels"] = torch.tensor([[*told[1:], *labels] if len(told) > 1 else [*labels, *told]])
        if (start := _start_of_training(model, batch)) != told[0]:
            seen, expected = tokenizer.convert_ids_to_tokens([start, told[0]])
            raise ConfigError(f"model.from: {type(model).__name__} begins targets with {seen!r}, and not {expected!r}")
    if task.languages.default_target is None:
        start = told[0] if len(told) > 1 else model.config.decoder_start_token_id  # or it is another in each row
        return {"decoder_start_token_id": start, "forced_bos_token_id": None}
    return {"decoder_start_token_id": told[0], "forced_bos_token_id": told[1] if len(told) > 1 else None}


def _start_of_training(model: PreTrainedModel, batch: Batch) -> int:
    """Return the first token that the decoder reads in training, for a model of others by asking it.

    Some shift the labels behind a start token, some turn their last token to the front, and only `forward` tells.
    """
    if is_own(model):
        return model.config.decoder_start_token_id
    read: list[list[int]] = []

    def keep_ids(module, arguments, keywords) -> None:
        read.append((arguments[0] if arguments else keywords["input_ids"])[0].tolist())

    was_training = model.training
    hook = model.get_decoder().register_forward_pre_hook(keep_ids, with_kwargs=True)
    problem = "its decoder does not read the labels"
    try:
        with torch.no_grad():
            model.eval()(**{name: tensor.to(model.device) for name, tensor in batch.items()})
    except ValueError as error:  # such as a start token that its config does not have
        problem = str(error)
    finally:
        hook.remove()
        model.train(was_training)
    if not read or read[0][1:] != batch["labels"][0, :-1].tolist():
        raise ConfigError(f"model.from: {type(model).__name__} cannot be trained on pairs here: {problem}")
    return read[0][0]


def _ends(
    settings: dict[str, Any], given: dict[str, Any], labels: list[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Return the end tokens that the targets have: those of `generation` or the model, else the tokenizer's."""
    eos = settings.get("eos_token_id")
    stops = eos if isinstance(eos, list) else [eos]
    if not {*stops} & {*labels} and given.get("eos_token_id") is None:
        stops = [number for number in (tokenizer.eos_token_id, tokenizer.sep_token_id) if number in labels][:1]
        eos = stops[0] if stops else None
    places = [place for place, number in enumerate(labels) if number in stops]
    marks = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    is_end = bool(places) and {*labels[places[0] + 1 :]} <= marks  # such as a language, which may follow
    if not is_end or places[0] == 0:
        where = "where an end token comes before the end" if places else "without an end token"
        name, way = "tokenizer", "take a tokenizer that puts its end token behind a target, and nowhere else"
        if given.get("eos_token_id") is not None:
            name, way = "generation.eos_token_id", "leave it out"
        raise ConfigError(
            f"{name}: targets are encoded as {tokenizer.convert_ids_to_tokens(labels)}, {where}, so generation would "
            f"not end where they do; {way}"
        )
    forced = settings.get("forced_eos_token_id")
    return {"eos_token_id": eos, "forced_eos_token_id": forced if forced in (None, *stops) else None}
