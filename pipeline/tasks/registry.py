"""The tasks and models that a config can name.

Two plain dicts: a new task or model is one more line, from inside or outside this package (see pipeline/README.md).
"""

from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel

from pipeline.config import Config
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
    if not isinstance(name, str) or name not in TASKS:
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
