"""The tables of tasks and models, and what they make of names in a config."""

import pytest

from pipeline.errors import ConfigError
from pipeline.models.configuration_lstm import LSTMConfig
from pipeline.tasks.config_loading import parse_config
from pipeline.tasks.registry import MODELS, TASKS, get_model, get_task


def test_every_task_has_a_model_and_every_model_a_task():
    assert {spec.task for spec in MODELS.values()} == set(TASKS)
    for name, spec in MODELS.items():
        assert spec.config.model_type == name and spec.model.config_class is spec.config


def test_wrong_names_raise_with_the_right_ones():
    with pytest.raises(ConfigError, match=r"task: 'forcasting' is unknown; did you mean forecasting\?"):
        get_task("forcasting")
    with pytest.raises(ConfigError, match=r"model.type: 'lstm_language_model' is not a model for sequence_to_sequence"):
        get_model(parse_config({"data": {"path": "x"}, "model": {"type": "lstm_language_model"}}))
    assert get_model(parse_config({"task": "language_modeling", "data": {"path": "x"}})).config is LSTMConfig
