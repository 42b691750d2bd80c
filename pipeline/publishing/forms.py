"""The files of a model that are published, in one of two forms.

`own` is this project's class with its code beside the weights, as the folder holds it. `transformers` is the same model
as a stock class, which needs no code: it is converted when it is published, and compared with the model before anything
is sent. Nothing in the folder changes.
"""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from pipeline.config import DataConfig, HubConfig
from pipeline.errors import ConfigError
from pipeline.exporting import stock
from pipeline.models import translation_pipeline
from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.publishing.card import Loading, put_use, says_use
from pipeline.publishing.exports import put_exports, read_reports
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.registry import MODELS, TASKS
from pipeline.tasks.trained_model import WEIGHTS_FILES, classes_of, load_model_config, load_trained
from pipeline.training.checkpoints import find_config

CARD, CONFIG = "README.md", "config.json"
NAMES_OF_CODE = ("auto_map", "custom_pipelines")  # in a config
CODE = Path(translation_pipeline.__file__)
WEIGHTS = (WEIGHTS_FILES, "model.safetensors.index.json")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
# What a checkpoint needs to load elsewhere; tasks add their pictures to what tells how it was made.
MODEL_FILES = (*WEIGHTS, "config.json", "generation_config.json", *TOKENIZER, "*.spm", "*.model", "*.py")
RESULTS = ("metrics.json", "training_curves.png")
PUBLISHED = (*MODEL_FILES, CARD, "run.yaml", *RESULTS)
# What an earlier commit of ours may have left in a repository: by whole names, as other files there are their owner's.
OURS = (
    *("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json"),
    *("config.json", "generation_config.json", *TOKENIZER),
    *("source.spm", "target.spm", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model"),
    *sorted(path.name for path in CODE.parent.glob("*.py") if path.name != "__init__.py"),
    *RESULTS,
)
CLOSE = 1e-4  # between logits of a model and of its stock form, for logits up to 1, or as a share of larger ones
OWN = "set hub.form=own (publish: --as own)"
TRIED_TOKENS = 8  # of a row
TRIED_VOCABULARY = 100  # tokens that are written and read again


def is_published(name: str) -> bool:
    """Tell whether a file of this name may be uploaded."""
    return _is_one_of(name, (*PUBLISHED, *_pictures()))


def is_replaced(name: str) -> bool:
    """Tell whether a file in a repository is of the model there, so goes where the new one has none of this name."""
    return _is_one_of(name, (*OURS, *_pictures()))


def result_files(folder: Path) -> list[Path]:
    """List the files of a finished run that are not to be changed: all that are published but the card."""
    names = (CARD, "metrics.json")
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in names and is_published(path.name)
    ]


def list_files(folder: Path) -> list[Path]:
    """List the files of a folder that are published.

    Raises:
        ConfigError: when there are no weights, or a file is a link.
    """
    named = [path for path in sorted(folder.iterdir()) if is_published(path.name)]
    for path in named:
        if path.is_symlink():  # which could lead to any file of this machine
            raise ConfigError(f"{path} is a link; only files of the folder itself are published: put a copy there")
    files = [path for path in named if path.is_file()]
    if not any(_is_one_of(path.name, WEIGHTS) for path in files):
        raise ConfigError(f"{folder}: there are no weights to publish")
    return files


def check_form(settings: HubConfig, model: PreTrainedConfig) -> None:
    """Refuse what `hub.form` and `hub.with_pipeline` ask for where a model cannot have it.

    Raises:
        ConfigError: naming the key, the reason and what to set.
    """
    task, _ = classes_of(model)
    if settings.with_pipeline and not (task and task.card.pipeline_use):
        raise ConfigError(f"hub.with_pipeline: there is no pipeline for a {model.model_type} model; leave it out")
    if settings.form == "own" or model.model_type not in MODELS:  # those of others are stock models already
        return
    if model.model_type != Seq2SeqTransformerConfig.model_type:
        raise ConfigError(f"hub.form: no class of transformers computes what a {model.model_type} does; {OWN}")
    try:
        stock.check_stock(model)
    except ConfigError as error:
        raise ConfigError(f"hub.form: no class of transformers is this model: {error}; change it, or {OWN}") from error


def make_form(folder: Path, workspace: Path, settings: HubConfig) -> list[Path]:
    """Return the files to publish: those of a folder, and in the place of some what is made of them.

    Random numbers that come later are as they would have been, so that a run may do this while it trains.

    Args:
        workspace: an empty folder for what is made.
        settings: of the form, and the model's name on the Hub.

    Raises:
        ConfigError: when a file is a link, the model cannot have this form, or has it and computes something else.
    """
    files = {path.name: path for path in list_files(folder)}
    model = _read_model(folder, settings)
    is_converted = model is not None and settings.form == "transformers" and model.model_type in MODELS
    if is_converted:
        with torch.random.fork_rng(devices=[]):  # as new weights are drawn, to be overwritten
            _write_stock(folder, workspace)
        files = {name: path for name, path in files.items() if not _is_one_of(name, MODEL_FILES)}
    if settings.with_pipeline:
        _add_pipeline(workspace, files.get(CONFIG, workspace / CONFIG))
    elif CONFIG in files and not any(name.endswith(".py") for name in files):
        _drop_code(workspace, files[CONFIG])
    files |= {path.name: path for path in workspace.iterdir()}
    task = None if model is None else classes_of(model)[0]
    if CARD in files and task is not None:
        text = _read(files[CARD])
        loading = _loading(files[CONFIG], is_converted)
        adapted = put_exports(text, read_reports(folder))
        if settings.form != "own" or says_use(adapted):  # in a card written by hand, our own form goes without saying
            adapted = put_use(adapted, task, loading, str(settings.model_id))
        if adapted != text:
            files[CARD] = workspace / CARD
            files[CARD].write_text(adapted, encoding="utf-8")
    return [files[name] for name in sorted(files)]


def _read_model(folder: Path, settings: HubConfig) -> PreTrainedConfig | None:
    """Read the config of the model in a folder; None for a class from outside, whose files are published as they are.

    Raises:
        ConfigError: for one that cannot be read, or cannot have the form that is asked for.
    """
    kind = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    if kind in CONFIG_MAPPING:
        model = load_model_config(folder)
        check_form(settings, model)
        return model
    if settings.form != "own":
        raise ConfigError(f"hub.form: {folder} holds a {kind!r} model, which is known neither here nor there; {OWN}")
    return None


def _write_stock(folder: Path, workspace: Path) -> None:
    """Convert the model in a folder, and compare what was written with it."""
    model, task = load_trained(folder, torch.device("cpu"))  # a GPU may be full of what is trained
    assert task.tokenizer is not None  # of a model for texts
    num_told = task.languages.num_told
    stock.write(model, task, workspace, stock.count_positions(model.generation_config, _data_of(folder), num_told))
    converted = AutoModelForSeq2SeqLM.from_pretrained(workspace, trust_remote_code=False, use_safetensors=True)
    difference = _compare_logits(model.float(), converted.float().eval())
    tokenizer = AutoTokenizer.from_pretrained(workspace, trust_remote_code=False)
    text = task.tokenizer.decode([*range(min(TRIED_VOCABULARY, len(task.tokenizer)))], skip_special_tokens=True)
    problem = None
    if not difference <= CLOSE:
        problem = f"gives other logits, by {difference:.1e} of the largest"
    elif tokenizer(text, verbose=False)["input_ids"] != task.tokenizer(text, verbose=False)["input_ids"]:
        problem = "has another tokenizer"
    if problem is not None:
        raise ConfigError(
            f"{folder}: its form for transformers {problem}; nothing was published; {OWN}, and report this"
        )


@torch.no_grad()
def _compare_logits(model: PreTrainedModel, converted: PreTrainedModel) -> float:
    """Return the largest difference on two rows, one of them padded: of logits up to 1, else a share of the largest."""
    length = min(TRIED_TOKENS, converted.config.max_position_embeddings)
    ids = torch.arange(2 * length).view(2, length) % model.config.vocab_size  # (2, L)
    attention_mask = torch.ones_like(ids)
    attention_mask[1, length // 2 + 1 :] = 0
    batch = {"input_ids": ids, "attention_mask": attention_mask, "decoder_input_ids": ids.flip(-1)}
    ours, theirs = model(**batch).logits, converted(**batch).logits  # (2, L, V)
    return float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))


def _add_pipeline(workspace: Path, config: Path) -> None:
    """Add the code of the pipeline, and name it in the model's config."""
    settings = json.loads(config.read_bytes()) | {"custom_pipelines": Seq2SeqTransformerConfig().custom_pipelines}
    (workspace / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copy(CODE, workspace)


def _drop_code(workspace: Path, config: Path) -> None:
    """Name no code in the model's config where none is: one that was fine-tuned may still name that of its origin."""
    settings = json.loads(config.read_bytes())
    kept = {name: value for name, value in settings.items() if name not in NAMES_OF_CODE}
    if kept != settings:
        (workspace / CONFIG).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _loading(config: Path, is_converted: bool) -> Loading:
    settings: dict[str, Any] = json.loads(config.read_bytes())
    has_code, has_pipeline = "auto_map" in settings, "custom_pipelines" in settings
    architectures = settings.get("architectures") or [settings.get("model_type", "model")]
    languages = tuple(settings.get("languages") or ())
    return Loading(
        str(architectures[0]), has_code, has_pipeline, is_converted, languages, settings.get("target_lang_in")
    )


def _data_of(folder: Path) -> DataConfig | None:
    """Return the section `data` that the model was trained with; None where no config lies beside it."""
    try:
        path = find_config(folder)
    except ConfigError:
        return None
    return load_config(path).data


def _read(card: Path) -> str:
    try:
        return card.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{card} is invalid UTF-8; save it as UTF-8, or remove it") from error


def _pictures() -> list[str]:
    return [picture for task in TASKS.values() for picture in task.pictures]


def _is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
