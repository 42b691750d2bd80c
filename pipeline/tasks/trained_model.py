"""A checkpoint to a model that is ready to predict, and the task that it was trained for.

A checkpoint loads as a whole or not at all: transformers fills a weight that is not stored with random numbers and
goes on, so what it reports is looked at here.
"""

import copy
import json
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from pipeline.config import check_generation
from pipeline.data.hub_reading import explain_refusal
from pipeline.errors import ConfigError
from pipeline.library_settings import GenerationSettings
from pipeline.manifest import damage_if_described
from pipeline.tasks.base import Task
from pipeline.tasks.registry import MODELS, TASKS

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_FILES = "model*.safetensors"  # in one file or several; others in a checkpoint are states of its training
INDEX_FILE = "model.safetensors.index.json"  # of weights in several files
NAMED_WEIGHTS = 3  # of those that are wrong, in a message
COPY = "put it back from a copy"
MAX_SIZE = 2**24  # of anything that is counted in a model
MAX_LAYERS = 1_000  # Wang et al. 2022, https://arxiv.org/abs/2203.00555
SIZES = ("layers", "_dim", "d_model", "_size")  # how names of such end
MAX_NEW_HEAD = 10_000_000  # weights
SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
TOKEN_KEYS = {
    *SPECIAL_TOKENS,
    "decoder_start_token_id",
    *("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids"),
    "sequence_bias",
}

logger = logging.getLogger(__name__)


def load_trained(checkpoint: str | Path, device: torch.device | None = None) -> tuple[PreTrainedModel, Task]:
    """Load a trained model, ready to predict, and the task it was trained for.

    Args:
        checkpoint: folder or Hub id. Its weights and settings are read; code that lies beside them is not run.
        device: for the model; this process's own where it is left out.

    Raises:
        ConfigError: when there is no checkpoint of a model for one of the tasks, or it is not whole.
    """
    task, config, generation = load_task(checkpoint)
    try:
        model = load_whole(classes_of(config)[1], checkpoint)
    except (OSError, ValueError) as error:
        raise _not_whole(error, checkpoint) from error
    if generation is not None:
        model.generation_config = generation
    return model.to(device or PartialState().device).eval(), task


def use_attention_of_any_shape() -> None:
    """Leave cuDNN out of the kernels of attention that PyTorch chooses from, for the whole process.

    It plans anew for each shape of a batch, which can take a second, forward and backward
    (https://github.com/modelscope/FunASR/issues/3704). Batches counted in tokens have hundreds of shapes, and
    generation a new one each step. With torch 2.11 cuDNN came to be the first choice on Hopper and Blackwell:
    https://github.com/pytorch/pytorch/blob/v2.11.0/aten/src/ATen/native/transformers/cuda/sdp_utils.cpp
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def load_task(checkpoint: str | Path) -> tuple[Task, PreTrainedConfig, GenerationConfig | None]:
    """Load what a checkpoint holds beside its weights: the task it was trained for, and the config of its model.

    Args:
        checkpoint: folder or Hub id.

    Returns:
        Task, model config, and how the model generates; None where it does not.

    Raises:
        ConfigError: as `load_trained`.
    """
    check_files(Path(checkpoint))
    try:
        config = load_model_config(checkpoint)
        task_class, model_class = classes_of(config)
        if task_class is None:
            raise ConfigError(f"{checkpoint}: {config.model_type!r} is not a model for {', '.join(TASKS)}")
        is_own = config.model_type in MODELS
        generation = load_generation_config(checkpoint, is_own)
        if not _can_generate(model_class, config):
            generation = None
        elif generation is None and is_own:
            raise ConfigError(f"{checkpoint}: generation_config.json is missing; {COPY}")
        else:
            generation = generation or GenerationConfig.from_model_config(config)
            check_token_ids(vars(generation), config, f"{checkpoint}: ")
        tokenizer = load_tokenizer(checkpoint) if task_class.text_columns else None
        if is_own and tokenizer is not None:
            _check_tokenizer_fits(checkpoint, tokenizer, config)
        return task_class.from_model(tokenizer, config), config, generation
    except (OSError, ValueError) as error:
        raise _not_whole(error, checkpoint) from error


def check_files(folder: Path) -> None:
    """Compare the files of a model with its manifest, where there is one.

    Raises:
        ConfigError: naming the first that is damaged.
    """
    if problem := damage_if_described(folder):
        raise ConfigError(
            f"{folder} is damaged: {problem}; {COPY}, or remove manifest.json if the change was meant; "
            "the command that trained it makes a finished model again"
        )


def load_model_config(checkpoint: str | Path) -> PreTrainedConfig:
    """Read `config.json`.

    Raises:
        ConfigError: where it does not describe a model that transformers or this project knows.
    """
    values = _read_object(checkpoint, "config.json") or {}
    dtype = values.get("dtype", values.get("torch_dtype"))
    if isinstance(dtype, str) and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ConfigError(f"{checkpoint}: config.json names the type {dtype!r}, which torch has not; {COPY}")
    for name, value in values.items():
        bound = MAX_LAYERS if name.endswith("layers") else MAX_SIZE
        if name.endswith(SIZES) and isinstance(value, int) and value > bound:
            raise ConfigError(f"{checkpoint}: config.json: {name}={value} is more than {bound}; {COPY}")
    try:
        return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise _not_whole(error, checkpoint) from error


def load_whole(
    model_class: Any, checkpoint: str | Path, config: PreTrainedConfig | None = None, allow_new_head: bool = False
) -> PreTrainedModel:
    """Load a model all of whose weights are stored, and finite.

    Args:
        model_class: whose `from_pretrained` is called.
        config: in place of the stored one.
        allow_new_head: whether a model that was stored for another task may lack the head of `model_class`, which is
            then new; it is named in the log.

    Raises:
        ConfigError: naming the first weights that are missing, not of this model, of other sizes or not finite.
    """
    stored_config = load_model_config(checkpoint)
    stored_for = stored_config.architectures or []
    outline = _outline(model_class, checkpoint, config or stored_config)
    if not allow_new_head and stored_for and type(outline).__name__ not in stored_for:
        raise ConfigError(
            f"{checkpoint}: config.json describes a {type(outline).__name__}, but the weights are those of "
            f"{', '.join(stored_for)}"
        )
    _check_size(outline, checkpoint)
    arguments = {} if config is None else {"config": config}
    try:
        with _quiet():
            model, report = model_class.from_pretrained(
                checkpoint,
                trust_remote_code=False,
                use_safetensors=True,  # other formats of weights can run code when they are loaded
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported, and refused below
                **arguments,
            )
    except SafetensorError as error:
        raise ConfigError(f"{checkpoint}: the weights cannot be read: {_line(error)}; {COPY}") from error
    # transformers reports no tied weight as missing, even where it is stored under none of its names.
    missing = {*report["missing_keys"], *(name for name, weight in model.named_parameters() if weight.is_meta)}
    extra = {*report["unexpected_keys"]}
    if allow_new_head and type(model).__name__ not in stored_for:
        body = f"{model.base_model_prefix}."
        # A pooler is trained with the head, though it is a module of the body.
        head = {name for name in missing if len(body) > 1 and (not name.startswith(body) or ".pooler." in name)}
        missing -= head
        # The body may lack what the head did not need, such as a pooler, but no layer.
        extra = {name for name in extra if name.startswith(body) and re.search(r"\.\d+\.", name)}
        if head:
            logger.info("%s has no weights for %s, which are new", checkpoint, name_first(head))
    sizes = {name for name, *_ in report["mismatched_keys"]}
    for names, problem in (
        (missing, "has no weights for"),
        (extra, "has weights that its config.json does not describe:"),
        (sizes, "has weights of other sizes than its config.json says:"),
    ):
        if names:
            raise ConfigError(f"{checkpoint} {problem} {name_first(names)}; {COPY}")
    if not_finite := find_not_finite(model):
        raise ConfigError(
            f"{checkpoint} has weights that are not finite: {name_first(not_finite)}; load another checkpoint"
        )
    return model


def _outline(model_class: Any, checkpoint: str | Path, config: PreTrainedConfig) -> nn.Module:
    """Make a model with shapes and no values, which takes no memory."""
    make = getattr(model_class, "from_config", model_class)  # of an Auto class
    try:
        with torch.device("meta"):
            return make(copy.deepcopy(config))
    except KeyError as error:  # of a table of transformers, such as that of activation functions
        raise ConfigError(f"{checkpoint}: config.json: {error} is unknown; {COPY}") from error


def _check_size(outline: nn.Module, checkpoint: str | Path) -> None:
    """Raise ConfigError for a model much larger than its file of weights, before memory is taken for any of it."""
    weights = find_file(checkpoint, WEIGHTS_FILE)
    if weights is None:
        _check_index(checkpoint)
        return
    count = sum(parameter.numel() for parameter in outline.parameters())
    if count > weights.stat().st_size + MAX_NEW_HEAD:
        raise ConfigError(
            f"{checkpoint}: config.json describes {count:,} weights, more than {WEIGHTS_FILE} can hold; {COPY}"
        )


def _check_index(checkpoint: str | Path) -> None:
    """Raise ConfigError where the list of several files of weights is none, or leads out of their folder."""
    index = _read_object(checkpoint, INDEX_FILE)
    if index is None:
        return
    files = index.get("weight_map")
    if not isinstance(index.get("metadata"), dict) or not isinstance(files, dict):
        raise ConfigError(f"{checkpoint}: {INDEX_FILE} has no metadata or no weight_map; {COPY}")
    for file in files.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise ConfigError(f"{checkpoint}: {INDEX_FILE} names {file!r}, which is not a file beside it; {COPY}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing a table of what it could not load, which is looked at here."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def find_not_finite(model: nn.Module) -> list[str]:
    """Name the weights that hold an infinite value or none (NaN)."""
    return [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]


def load_tokenizer(checkpoint: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Raises:
        ConfigError: where its files are missing or damaged.
    """
    for name in ("config.json", "tokenizer_config.json"):  # transformers reads both for the tokenizer
        _read_object(checkpoint, name)
    if _read_object(checkpoint, "tokenizer.json") is not None:
        try:
            Tokenizer.from_file(str(find_file(checkpoint, "tokenizer.json")))
        except Exception as error:  # the library raises nothing more precise
            raise ConfigError(f"{checkpoint}: tokenizer.json is not a tokenizer: {_line(error)}; {COPY}") from error
    try:
        return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{checkpoint}: the tokenizer cannot be loaded: {_explain(error, checkpoint)}") from error


def load_generation_config(checkpoint: str | Path, is_own: bool) -> GenerationConfig | None:
    """Read `generation_config.json`, without which transformers generates 20 tokens by defaults of its own.

    Args:
        is_own: whether this project wrote it, which always gives a length.

    Returns:
        None where there is none: transformers makes it of the config of a model of others.

    Raises:
        ConfigError: where it is broken or empty.
    """
    settings = _read_object(checkpoint, "generation_config.json")
    if settings is None:
        return None
    if not settings or (is_own and not settings.keys() & {"max_new_tokens", "max_length"}):
        raise ConfigError(f"{checkpoint}: generation_config.json names no max_new_tokens; {COPY}")
    # Models of others may hold settings that are of no use here.
    known = {*GenerationSettings.model_fields} if not is_own else settings.keys() - {"transformers_version"}
    given = {name: settings[name] for name in settings if name in known and name[0] != "_"}
    # `save_pretrained` also writes what is off, and 0 is not.
    given = {name: value for name, value in given.items() if not (value is None or value is False or value == [])}
    check_generation(given, lambda _: f"{checkpoint}: generation_config.json: ")
    try:
        generation = GenerationConfig.from_pretrained(checkpoint)
        generation.validate()
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{checkpoint}: generation_config.json: {_line(error)}") from error
    return generation


def check_token_ids(settings: dict[str, Any], config: PreTrainedConfig, place: str = "") -> None:
    """Refuse settings of generation with tokens that the model has no score for.

    Args:
        place: where they were given, for a message.

    Raises:
        ConfigError: naming the first.
    """
    vocab_size = config.get_text_config().vocab_size
    for name in sorted(TOKEN_KEYS & settings.keys()):
        ids = list(_flatten(settings[name]))
        if ids and max(ids) >= vocab_size:
            raise ConfigError(f"{place}generation.{name}: {max(ids)} is not below the {vocab_size} tokens of the model")


def _flatten(ids: Any) -> Iterator[int]:
    """Yield the whole numbers in lists of any depth."""
    if isinstance(ids, list):
        for item in ids:
            yield from _flatten(item)
    elif isinstance(ids, int):
        yield ids


def _check_tokenizer_fits(checkpoint: str | Path, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Raise ConfigError for a tokenizer that is not the one that the model was trained with."""
    if len(tokenizer) > config.vocab_size:
        raise ConfigError(
            f"{checkpoint}: the tokenizer has {len(tokenizer)} tokens, but the model {config.vocab_size}; {COPY}"
        )
    for name in SPECIAL_TOKENS:
        known, own = getattr(config, name, None), getattr(tokenizer, name)
        if known is not None and own != known:
            raise ConfigError(
                f"{checkpoint}: {name} of the tokenizer is {own}, but that of the model {known}; is one of "
                f"tokenizer.json and tokenizer_config.json missing or damaged? {COPY}"
            )


def find_file(checkpoint: str | Path, name: str) -> Path | None:
    """Find a file in a folder, or of a model on the Hub; None where there is none."""
    if Path(checkpoint).is_dir():
        path = Path(checkpoint, name)
        return path if path.is_file() else None
    try:
        found = cached_file(checkpoint, name)
    except OSError:
        return None
    return None if found is None else Path(found)


def _read_object(checkpoint: str | Path, name: str) -> dict[str, Any] | None:
    """Read a JSON file that must hold an object; None where there is none.

    Raises:
        ConfigError: where it is not JSON, or holds something else.
    """
    path = find_file(checkpoint, name)
    if path is None:
        return None
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {_line(error)}; {COPY}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object, not a {type(values).__name__}; {COPY}")
    return values


def name_first(names: Collection[str]) -> str:
    """Name a few of many weights."""
    more = len(names) - NAMED_WEIGHTS
    return ", ".join(sorted(names)[:NAMED_WEIGHTS]) + (f" and {more} more" if more > 0 else "")


def _not_whole(error: BaseException, checkpoint: str | Path) -> ConfigError:
    return ConfigError(f"{checkpoint}: no complete checkpoint of a trained model: {_explain(error, checkpoint)}")


def _explain(error: BaseException, checkpoint: str | Path) -> str:
    return explain_refusal(error, str(checkpoint)) or _line(error)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def classes_of(config: PreTrainedConfig) -> tuple[type[Task] | None, Any]:
    """Return the task of a checkpoint's model, and the class whose `from_pretrained` loads it."""
    # By name, as code loaded beside a checkpoint before has its own class.
    if spec := MODELS.get(config.model_type):
        return TASKS[spec.task], spec.model
    for task in TASKS.values():
        if task.trains_other_models and type(config) in task.auto_class._model_mapping:
            return task, task.auto_class
    return None, None


def _can_generate(model_class: Any, config: PreTrainedConfig) -> bool:
    """Tell whether models of a class generate, where it may be an Auto class, which has one for each type of config."""
    mapping = getattr(model_class, "_model_mapping", None)
    return (model_class if mapping is None else mapping[type(config)]).can_generate()
