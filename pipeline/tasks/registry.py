"""The tasks a config can name, each with the model that learns it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

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


@dataclass(frozen=True)
class Entry:
    task: type[Task]
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    auto: Any  # the Auto class that loads it
    takes_others: bool = False  # whether the models of others that this class loads can be trained as well

    def loader(self, config: PreTrainedConfig) -> Any:
        """The class whose `from_pretrained` loads a model of this config; None where it is not for this task."""
        # By name, as code loaded beside a checkpoint before has a class of its own.
        if config.model_type == self.config.model_type:
            return self.model
        return self.auto if self.takes_others and type(config) in self.auto._model_mapping else None


TASKS = {
    "sequence_to_sequence": Entry(
        SequenceToSequence,
        Seq2SeqTransformerConfig,
        Seq2SeqTransformerForConditionalGeneration,
        AutoModelForSeq2SeqLM,
        takes_others=True,
    ),
    "text_classification": Entry(
        TextClassification,
        TransformerClassifierConfig,
        TransformerForSequenceClassification,
        AutoModelForSequenceClassification,
        takes_others=True,
    ),
    "language_modeling": Entry(LanguageModeling, LSTMConfig, LSTMForCausalLM, AutoModelForCausalLM),
    "forecasting": Entry(Forecasting, TransformerForecasterConfig, TransformerForecaster, AutoModel),
}


def find(name: str) -> Entry:
    """Raises ConfigError for a name that is not in the table."""
    if name not in TASKS:
        raise ConfigError(f"task: {name!r} is unknown{nearest(name, TASKS)}")
    return TASKS[name]


def load(checkpoint: str | Path) -> tuple[PreTrainedModel, Task]:
    """A trained model, on this process's device and ready to predict, and the task it was trained for.

    Args:
        checkpoint: folder or Hub id. Its weights and settings are read; code that lies beside them is not run.

    Raises:
        ConfigError: when there is no checkpoint of a model for one of the tasks.
    """
    try:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        entry = next((entry for entry in TASKS.values() if entry.loader(config)), None)
        if entry is None:
            raise ConfigError(f"{checkpoint}: {config.model_type!r} is not a model for {', '.join(TASKS)}")
        model = entry.loader(config).from_pretrained(checkpoint, trust_remote_code=False, use_safetensors=True)
        tokenizer = None
        if entry.task.text_columns:
            tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
        task = entry.task.of(tokenizer, config)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{checkpoint}: no complete checkpoint of a trained model: {error}") from error
    return model.to(PartialState().device).eval(), task
