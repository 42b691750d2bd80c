"""A trained model to the form of another runtime, which is kept only if it proves to compute the same.

    load -> convert into a staging folder -> compare with the model on real rows -> describe -> rename into place

Whatever goes wrong in between, nothing is left, and an earlier export stays as it was.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from pipeline.config import Config
from pipeline.errors import ConfigError, RunError, explain_path, nearest
from pipeline.exporting.equivalence import EXACT, REDUCED, compare, find_other_tokens
from pipeline.exporting.rows import choose_rows
from pipeline.exporting.stock import count_positions
from pipeline.inference.engines.base import (
    EQUIVALENCE_FILE,
    EXPORTS_FOLDER,
    describe_weights,
    import_engine,
    require_libraries,
)
from pipeline.manifest import MANIFEST_FILE, list_described
from pipeline.models.modeling_classifier import TransformerForSequenceClassification
from pipeline.models.modeling_forecaster import TransformerForecaster
from pipeline.models.modeling_lstm import LSTMForCausalLM
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration
from pipeline.tasks.base import Task
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.registry import MODELS, get_task
from pipeline.tasks.trained_model import load_tokenizer, load_trained
from pipeline.training.checkpoints import find_config, new_folder

TEXTS = (".json", ".txt", ".md")  # files that are no weights
NUM_ROWS = 1000
OTHERS = {  # what converts models of others
    "ctranslate2": "ct2-transformers-converter, https://opennmt.net/CTranslate2/guides/transformers.html",
    "onnx": "optimum, https://huggingface.co/docs/optimum-onnx",
}
OWN = (
    Seq2SeqTransformerForConditionalGeneration,
    TransformerForSequenceClassification,
    LSTMForCausalLM,
    TransformerForecaster,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What an exporter is handed.

    Attributes:
        positions: tokens of the longest text, on either side.
        quantization: of the weights; None keeps their type.
    """

    model: PreTrainedModel
    task: Task
    folder: Path
    positions: int
    quantization: str | None = None


@dataclass(frozen=True)
class ExportSpec:
    """A line of the table of exports.

    Attributes:
        write: writes the converted model into a folder.
        load: loads what was written, to stand in for the model.
        models: that can be converted.
        quantizations: that it knows.
        libraries: of the extra `export` that it needs.
        has_tokenizer: whether a tokenizer is written too, which must give the tokens of the model's own.
    """

    write: Callable[[Request], None]
    load: Callable[[Request], Any]
    models: tuple[type[PreTrainedModel], ...]
    quantizations: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    has_tokenizer: bool = False


def _write_stock(request: Request) -> None:
    from pipeline.exporting import stock

    try:
        stock.check_stock(request.model.config)
    except ConfigError as error:
        raise ConfigError(f"--to transformers: {error}; try --to onnx") from error
    stock.write(request.model, request.task, request.folder, request.positions)


def _load_stock(request: Request) -> PreTrainedModel:
    model = AutoModelForSeq2SeqLM.from_pretrained(request.folder, trust_remote_code=False, use_safetensors=True)
    return model.to(request.model.device).eval()


def _write_ctranslate2(request: Request) -> None:
    module = import_module("pipeline.exporting.ctranslate2")
    module.write(request.model, request.task, request.folder, request.positions, request.quantization)


def _write_onnx(request: Request) -> None:
    import_module("pipeline.exporting.onnx").write(request.model, request.task, request.folder)


def _load_engine(name: str) -> Callable[[Request], Any]:
    """Return what loads an export by its engine in `inference/engines`."""

    def load(request: Request) -> Any:
        return import_engine(name).load(
            request.folder, request.model.config, getattr(request.model, "generation_config", None)
        )

    return load


# By the name of the runtime.
EXPORTS: dict[str, ExportSpec] = {
    "transformers": ExportSpec(_write_stock, _load_stock, OWN[:1], has_tokenizer=True),
    "ctranslate2": ExportSpec(
        _write_ctranslate2,
        _load_engine("ctranslate2"),
        OWN[:1],
        ("int8", "int8_bfloat16", "float16"),
        ("ctranslate2",),
    ),
    "onnx": ExportSpec(_write_onnx, _load_engine("onnx"), OWN, (), ("onnx", "onnxscript", "onnxruntime")),
}


def export(
    checkpoint: str | Path,
    name: str,
    output: str | Path | None = None,
    *,
    quantization: str | None = None,
    rows: str | Path | None = None,
    num_rows: int | None = NUM_ROWS,
) -> Path:
    """Convert a trained model for another runtime, and prove on real rows that it computes the same.

    Args:
        checkpoint: folder of a trained model, or a checkpoint-N below one.
        name: of a line of `EXPORTS`.
        output: folder to write, `exports/<name>` in the checkpoint where left out; an earlier export is replaced.
        quantization: of the weights, such as int8, where the runtime knows it.
        rows: a file of rows to compare on; those of the validation split that the config beside the checkpoint names
            where left out. Without targets there are no scores.
        num_rows: how many of them; None for all.

    Returns:
        The folder, which has `equivalence.json`, the proof, beside what the runtime reads.

    Raises:
        ConfigError: for a model that cannot be converted to this form, saying why, and for an output that is none of an
            earlier export.
        DataError: for rows that cannot be used.
        RunError: for an export that does not compute the same, or does not fit on the disk; nothing is then left of it.
    """
    checkpoint = Path(checkpoint)
    spec = _find_spec(name, quantization)
    if not checkpoint.is_dir():
        raise ConfigError(f"{checkpoint}: no such folder; name one with a trained model")
    target = (
        checkpoint / EXPORTS_FOLDER / name if output is None else Path(os.path.abspath(output))
    )  # which has a name, as . has none
    _check_target(target, name)
    model, task = load_trained(checkpoint)
    _check_model(checkpoint, model, name)
    config = _find_config(checkpoint, task)
    generation, num_told = getattr(model, "generation_config", None), task.languages.num_told
    positions = count_positions(generation, None if config is None else config.data, num_told)
    compared = choose_rows(task, config, None if rows is None else Path(rows), num_rows, positions)
    bounds = EXACT if quantization is None and model.dtype == torch.float32 else REDUCED
    with new_folder(target) as staging:
        request = Request(model, task, staging, positions, quantization)
        spec.write(request)
        logger.info("%s: comparing on %d rows of %s", target, len(compared.features), compared.origin)
        proof = compare(model, spec.load(request), task, compared, bounds)
        other_text = find_other_tokens(task, load_tokenizer(staging), compared.features) if spec.has_tokenizer else None
        if problem := other_text or proof.problem:
            raise RunError(f"{target} is not written, as the export is not equivalent to the model: {problem}")
        logger.info("equivalent: %s", proof.report["summary"])
        report = _describe(request, name, spec, checkpoint) | proof.report
        (staging / EQUIVALENCE_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    return target


def _find_spec(name: str, quantization: str | None) -> ExportSpec:
    """Raise ConfigError for an export that is unknown, or whose libraries are not installed."""
    if name not in EXPORTS:
        raise ConfigError(f"--to: {name!r} is unknown{nearest(name, EXPORTS)}")
    spec = EXPORTS[name]
    if quantization is not None and not spec.quantizations:
        known = [other for other in EXPORTS if EXPORTS[other].quantizations]
        raise ConfigError(f"--quantization: {name} has none, only {', '.join(known)}; leave it out")
    if quantization is not None and quantization not in spec.quantizations:
        raise ConfigError(f"--quantization: {quantization!r} is unknown{nearest(quantization, spec.quantizations)}")
    require_libraries(f"--to {name}", spec.libraries)
    return spec


def _check_model(checkpoint: Path, model: PreTrainedModel, name: str) -> None:
    """Raise ConfigError for a model of others, or one whose task the target does not have."""
    kind = type(model).__name__
    if model.config.model_type not in MODELS:
        if name not in OTHERS:
            raise ConfigError(f"{checkpoint} is a {kind} of transformers already, which loads without code of others")
        raise ConfigError(f"{checkpoint} is a {kind} of transformers, which is not converted here; try {OTHERS[name]}")
    if not isinstance(model, EXPORTS[name].models):
        known = [other for other, spec in EXPORTS.items() if isinstance(model, spec.models)]
        way = f"; choose from {', '.join(known)}" if known else ""
        raise ConfigError(f"--to {name}: there is no such form of a {kind}{way}")


def _check_target(target: Path, name: str) -> None:
    """Raise ConfigError for a folder that holds anything but an earlier export of this name."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConfigError(f"--output {target} is a link or a file; name a folder")
    with explain_path(f"--output {target}"):
        held = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_symlink() or not path.is_dir()}
    written = {MANIFEST_FILE, *list_described(target)}
    others = held - (written if EQUIVALENCE_FILE in written else set())
    if others:
        raise ConfigError(
            f"--output {target} holds something else than an earlier export: {min(others)}; move that away, or name "
            "another folder"
        )
    if EQUIVALENCE_FILE in written and (other := _read_name(target)) not in (name, None):
        raise ConfigError(f"--output {target} holds an export to {other}; move it away, or name another folder")


def _read_name(export: Path) -> str | None:
    """Return what an earlier export was made for; None where its proof is damaged."""
    try:
        return json.loads((export / EQUIVALENCE_FILE).read_bytes())["export"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _find_config(checkpoint: Path, task: Task) -> Config | None:
    """Read the config beside the checkpoint; None where there is none.

    Raises:
        ConfigError: for a config of another task.
    """
    try:
        path = find_config(checkpoint)
    except ConfigError:
        return None
    config = load_config(path)
    if not isinstance(task, get_task(config.task)):
        raise ConfigError(f"task: {path} is for {config.task}, but {checkpoint} is not a model for that")
    return config


def _describe(request: Request, name: str, spec: ExportSpec, checkpoint: Path) -> dict[str, Any]:
    """Return what `equivalence.json` says beside the comparison."""
    weights = describe_weights(checkpoint)
    files = [path for path in request.folder.rglob("*") if path.is_file()]
    libraries = ("torch", "transformers", *spec.libraries)
    return {
        "export": name,
        "quantization": request.quantization,
        "model": type(request.model).__name__,
        "dtype": str(request.model.dtype).removeprefix("torch."),
        "weights": weights,
        "bytes": {
            "model": sum(file["size"] for file in weights.values()),
            "export": sum(path.stat().st_size for path in files if path.suffix not in TEXTS),
        },
        "versions": {library: import_module(library).__version__ for library in libraries},
    }
