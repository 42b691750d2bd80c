"""The tasks and models that a config can name, and what follows from a name: a config, a trained model.

Two plain dicts: a new task or model is one more line, from inside or outside this package (see pipeline/README.md).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from pipeline.config import Config, Location, Source, read_source, validate
from pipeline.errors import ConfigError, nearest
from pipeline.models.configuration_classifier import TransformerClassifierConfig
from pipeline.models.configuration_forecaster import TransformerForecasterConfig
from pipeline.models.configuration_lstm import LSTMConfig
from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.models.modeling_classifier import TransformerForSequenceClassification
from pipeline.models.modeling_forecaster import TransformerForecaster
from pipeline.models.modeling_lstm import LSTMForCausalLM
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration
from pipeline.tasks.base import Task
from pipeline.tasks.forecasting import Forecasting
from pipeline.tasks.language_modeling import LanguageModeling
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from pipeline.tasks.text_classification import TextClassification

logger = logging.getLogger(__name__)

TASKS: dict[str, type[Task]] = {
    "sequence_to_sequence": SequenceToSequence,
    "text_classification": TextClassification,
    "language_modeling": LanguageModeling,
    "forecasting": Forecasting,
}


@dataclass(frozen=True)
class ModelSpec:
    """A model that a config can name as `model.type`.

    It divides its summed loss by the `num_items_in_batch` that its `forward` is given: the items of the whole step.

    Args:
        task: name of the task that it learns.
        can_pack: whether its `forward` takes what `Task.pack` makes.
    """

    task: str
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    can_pack: bool = False


# By transformers' `model_type`, which a checkpoint states. The first model of a task is its default.
MODELS: dict[str, ModelSpec] = {
    spec.config.model_type: spec
    for spec in (
        ModelSpec(
            "sequence_to_sequence", Seq2SeqTransformerConfig, Seq2SeqTransformerForConditionalGeneration, can_pack=True
        ),
        ModelSpec("text_classification", TransformerClassifierConfig, TransformerForSequenceClassification),
        ModelSpec("language_modeling", LSTMConfig, LSTMForCausalLM),
        ModelSpec("forecasting", TransformerForecasterConfig, TransformerForecaster),
    )
}


def get_task(name: str) -> type[Task]:
    """Return a task by its name.

    Raises:
        ConfigError: for a name that is not in the table.
    """
    if name not in TASKS:
        raise ConfigError(f"task: {name!r} is unknown{nearest(str(name), TASKS)}")
    return TASKS[name]


def get_model(config: Config) -> ModelSpec:
    """Return the model that `model.type` names, or else the first of the task's.

    Raises:
        ConfigError: for a type that is unknown, or learns another task.
    """
    types = [name for name, spec in MODELS.items() if spec.task == config.task]
    name = config.model.get("type") or types[0]
    if name not in types:
        raise ConfigError(f"model.type: {name!r} is not a model for {config.task}{nearest(str(name), types)}")
    return MODELS[name]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config, with `section.key=value` overrides.

    Raises:
        ConfigError: for the first key or value that cannot work, naming file and line, or the override.
    """
    return _validate(read_source(path, overrides))


def parse_config(values: dict[str, Any]) -> Config:
    """Make a config of plain values, one dict a section, as a YAML file would hold them.

    Raises:
        ConfigError: for the first key or value that cannot work.
    """
    return _validate(Source(values))


def _validate(source: Source) -> Config:
    task = get_task(source.values.get("task", Config.model_fields["task"].default))
    return validate(_with_new_names(source), task.settings, task.default_metrics)


def _with_new_names(source: Source) -> Source:
    """Move keys that stood in another section before into that of their task, with a line that names the new key."""
    own_task = source.values.get("task", Config.model_fields["task"].default)
    values, moved = dict(source.values), dict(source.moved)
    for old, (task, key), default in _renamed_keys():
        section = values.get(old[0])
        if not isinstance(section, dict) or old[1] not in section:
            continue
        value = section[old[1]]
        values[old[0]] = {name: other for name, other in section.items() if name != old[1]}
        if value == default:  # as in every run.yaml that was written then
            continue
        name, own_section, is_used = ".".join(old), values.get(task) or {}, task == own_task
        is_override = old in source.origins and (task, key) not in source.origins  # which wins over the file
        if key in own_section and not is_override:
            raise ConfigError(f"{source.place(old)}{name} is now {task}.{key}, which is given too; remove {name}")
        unused = "" if is_used else f", which {own_task} does not use"
        logger.warning("%s%s is now %s.%s%s", source.place(old), name, task, key, unused)
        if is_used:
            values[task] = {**own_section, key: value}
            moved[task, key] = old
    return replace(source, values=values, moved=moved)


def _renamed_keys() -> Iterator[tuple[Location, Location, Any]]:
    """Yield old place, new place and default of every key of a task that says where it stood before."""
    for task, task_class in TASKS.items():
        for key, field in task_class.settings.model_fields.items():
            if isinstance(field.json_schema_extra, dict) and "formerly" in field.json_schema_extra:
                old = tuple(str(field.json_schema_extra["formerly"]).split("."))
                yield old, (task, key), None if field.is_required() else field.default


def load_trained(checkpoint: str | Path) -> tuple[PreTrainedModel, Task]:
    """Load a trained model, on this process's device and ready to predict, and the task it was trained for.

    Args:
        checkpoint: folder or Hub id. Its weights and settings are read; code that lies beside them is not run.

    Raises:
        ConfigError: when there is no checkpoint of a model for one of the tasks.
    """
    try:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        task_class, model_class = _classes_of(config)
        if task_class is None:
            raise ConfigError(f"{checkpoint}: {config.model_type!r} is not a model for {', '.join(TASKS)}")
        model = model_class.from_pretrained(checkpoint, trust_remote_code=False, use_safetensors=True)
        tokenizer = None
        if task_class.text_columns:
            tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
        task = task_class.from_model(tokenizer, config)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{checkpoint}: no complete checkpoint of a trained model: {error}") from error
    return model.to(PartialState().device).eval(), task


def _classes_of(config: PreTrainedConfig) -> tuple[type[Task] | None, Any]:
    """Return the task of a checkpoint's model, and the class whose `from_pretrained` loads it."""
    # By name, as code loaded beside a checkpoint before has its own class.
    if spec := MODELS.get(config.model_type):
        return TASKS[spec.task], spec.model
    for task in TASKS.values():
        if task.trains_other_models and type(config) in task.auto_class._model_mapping:
            return task, task.auto_class
    return None, None
