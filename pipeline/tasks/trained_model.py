"""A checkpoint to a model that is ready to predict, and the task that it was trained for."""

from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from pipeline.errors import ConfigError
from pipeline.tasks.base import Task
from pipeline.tasks.registry import MODELS, TASKS


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
