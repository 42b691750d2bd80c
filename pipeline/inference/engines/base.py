"""The contract of an engine, which stands in for the model wherever a task uses one, and the table of engines.

An export lies in `CHECKPOINT/exports/NAME`: the runtime's own files, `manifest.json` with the hashes of all of them,
and `equivalence.json`, whose "weights" are `describe_weights` of the checkpoint that it was made from.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import ModelOutput, cached_file

from pipeline.errors import ConfigError, nearest
from pipeline.manifest import MANIFEST_FILE, damage, describe, to_json
from pipeline.tasks.base import Task
from pipeline.tasks.trained_model import WEIGHTS_FILES, load_task, load_trained, use_attention_of_any_shape

EXPORTS_FOLDER = "exports"
EQUIVALENCE_FILE = "equivalence.json"
TORCH = "torch"  # the model itself
DTYPES = {  # of its weights
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
BESIDE_WEIGHTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "source.spm", "target.spm", "vocab.json")


class Engine(ABC):
    """An exported model, run by another runtime; used as a `PreTrainedModel` in evaluation mode is.

    A setting of a generation config that the runtime cannot honour is refused by name, never ignored.

    Attributes:
        config: the checkpoint's own.
        generation_config: how it generates where `generate` is given nothing else; None where it does not generate.
        device: where its inputs and outputs lie.
        max_positions: tokens that it can read at most, as source and as target; None where there is no bound.
        gives_attentions: whether it tells where it attends to.
    """

    config: PreTrainedConfig
    generation_config: GenerationConfig | None
    device: torch.device
    training = False
    max_positions: tuple[int | None, int | None] = (None, None)
    gives_attentions = False

    def __init__(self, config: PreTrainedConfig, generation: GenerationConfig | None, device: torch.device):
        self.config = config
        self.generation_config = generation
        self.device = device

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, config: PreTrainedConfig, generation: GenerationConfig | None) -> Self:
        """Load the export in a folder.

        Args:
            config, generation: as `load_task` gives them for the checkpoint.

        Raises:
            ConfigError: for files that the runtime does not take.
        """

    @abstractmethod
    def __call__(self, **batch: Any) -> ModelOutput:
        """Do what the model's `forward` does without gradients.

        Returns:
            What tasks read of a model's outputs: `logits`, `prediction_outputs`, `past_key_values`. A runtime that
            tells no more than how probable the labels are gives `losses` (B, T) in place of logits: the cross-entropy
            of each label in nats, 0 where it is ignored.
        """

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        custom_generate: None = None,
        decoder_input_ids: Tensor | None = None,
        **settings: Any,
    ) -> Tensor | ModelOutput:
        """Generate as `GenerationMixin.generate` does.

        Args:
            input_ids: (B, S).
            attention_mask: (B, S), 1 for real tokens and 0 for padding.
            generation_config: in place of the engine's own.
            decoder_input_ids: (B, P), the start token and what stands behind it in each answer.
            custom_generate: never given, as `search_of` has no search for an engine.
            settings: changes of the generation config.

        Returns:
            Ids (B * N, L) as the decoder reads them, from its start token on, padded; behind the prompt for a model
            that has no encoder. N is `num_return_sequences`. With `return_dict_in_generate`, `sequences` are these ids,
            and `sequences_scores` (B * N) the scores of beams.

        Raises:
            ConfigError: for a setting that the runtime cannot honour.
        """
        raise NotImplementedError(f"{type(self).__name__} does not generate")

    def can_generate(self) -> bool:
        return self.generation_config is not None

    def eval(self) -> Self:
        return self

    def train(self, mode: bool = True) -> Self:
        """Change nothing: an engine only predicts."""
        return self


@dataclass(frozen=True)
class EngineSpec:
    """Where an engine's class is, and the libraries of the extra `export` that it needs."""

    module: str
    name: str
    libraries: tuple[str, ...] = ()


ENGINES: dict[str, EngineSpec] = {
    "ctranslate2": EngineSpec("pipeline.inference.engines.ctranslate2", "CTranslate2Engine", ("ctranslate2",)),
    "onnx": EngineSpec("pipeline.inference.engines.onnx", "OnnxEngine", ("onnxruntime",)),
}


def load_engine(name: str, checkpoint: str | Path, dtype: str | None = None) -> tuple[Any, Task]:
    """Load what runs a checkpoint, and the task that it was trained for.

    Args:
        name: "torch" for the model itself, or an engine of the table, which runs the export beside the checkpoint.
        checkpoint: folder of a trained model; for "torch" a Hub id as well.
        dtype: of the weights of "torch", a name of `DTYPES`; None leaves them as they are stored.

    Returns:
        A `PreTrainedModel`, or an `Engine` in its place.

    Raises:
        ConfigError: for an engine that is unknown or not installed, for an export that is not there, damaged, or made
            from other weights, and for a type that is unknown, or beside an export, which has its own.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype: {dtype!r} is unknown; choose from {', '.join(DTYPES)}")
    if dtype is not None and name != TORCH:
        raise ConfigError(
            f"--dtype {dtype}: an export for {name} has its own type; leave it out, or export again with another "
            "--quantization"
        )
    if name == TORCH:
        use_attention_of_any_shape()
        model, task = load_trained(checkpoint)
        return (model if dtype is None else model.to(DTYPES[dtype])), task
    if name not in ENGINES:
        raise ConfigError(f"--engine: {name!r} is unknown{nearest(name, (TORCH, *ENGINES))}")
    if not Path(checkpoint).is_dir():
        raise ConfigError(
            f"--engine {name}: {checkpoint} is not a folder, and an export lies beside the weights; download the model "
            f"(hf download {checkpoint} --local-dir FOLDER), then teacher-forcing export FOLDER --to {name}"
        )
    folder = find_export(name, Path(checkpoint))
    engine = import_engine(name)
    task, config, generation = load_task(checkpoint)
    loaded = engine.load(folder, config, generation)
    if loaded.max_positions != (None, None):
        task.max_positions = loaded.max_positions  # a longer text is then a bad row, which names it
    return loaded, task


def import_engine(name: str) -> type[Engine]:
    """Import an engine of the table.

    Raises:
        ConfigError: where its runtime is not installed.
    """
    spec = ENGINES[name]
    require_libraries(f"--engine {name}", spec.libraries)
    return getattr(import_module(spec.module), spec.name)


def require_libraries(place: str, libraries: tuple[str, ...]) -> None:
    """Raise ConfigError, naming who needs them, for libraries of the extra `export` that are not installed."""
    if missing := [library for library in libraries if find_spec(library) is None]:
        raise ConfigError(f"{place} needs {', '.join(missing)}: pip install 'teacher-forcing[export]'")


def find_export(name: str, checkpoint: Path) -> Path:
    """Return the folder of an export, which is whole and made from the weights beside it.

    Raises:
        ConfigError: where it is not.
    """
    folder = checkpoint / EXPORTS_FOLDER / name
    command = f"teacher-forcing export {checkpoint} --to {name}"
    if not folder.is_dir():
        raise ConfigError(f"--engine {name}: {checkpoint} has no such export; run {command}")
    if problem := damage(folder):
        raise ConfigError(f"{folder} is damaged: {problem}; remove it and run {command}")
    try:
        weights = json.loads((folder / EQUIVALENCE_FILE).read_bytes())["weights"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder}: {EQUIVALENCE_FILE} does not say which weights it was made from ({error!r}); remove the folder "
            f"and run {command}"
        ) from error
    if weights != describe_weights(checkpoint):
        raise ConfigError(f"{folder} was made from other weights than those in {checkpoint}; export again: {command}")
    return folder


def describe_weights(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Return name -> size and SHA-256 of a checkpoint's files of weights."""
    return describe(checkpoint, sorted(checkpoint.glob(WEIGHTS_FILES)))


def describe_model(checkpoint: str | Path, engine: str = TORCH) -> dict[str, str]:
    """Return what tells a trained model from others: its name, its commit on the Hub, and hashes of its files.

    Args:
        checkpoint: folder or Hub id of a model that is loaded already, so that its files are here.
        engine: what runs it.
    """
    folder, facts = Path(checkpoint), {"name": Path(checkpoint).resolve().name}
    if not folder.is_dir():
        folder = Path(str(cached_file(str(checkpoint), "config.json"))).parent
        facts = {"name": str(checkpoint), "revision": folder.name}
    weights = describe_weights(folder)
    hashes = [file["sha256"] for file in weights.values()]
    facts["weights"] = hashes[0] if len(hashes) == 1 else _hash_all(weights)
    others = sorted(path for path in folder.iterdir() if path.name in BESIDE_WEIGHTS)
    facts["config_and_tokenizer"] = _hash_all(describe(folder, others))
    if engine != TORCH:
        facts["export"] = _hash_all(describe(folder, [folder / EXPORTS_FOLDER / engine / MANIFEST_FILE]))
    return facts


def _hash_all(files: dict[str, dict[str, Any]]) -> str:
    return hashlib.sha256(to_json(files).encode()).hexdigest()
