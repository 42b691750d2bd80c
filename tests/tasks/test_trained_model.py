"""What is taken for a trained model, and what is not."""

import pytest

from pipeline.errors import ConfigError
from pipeline.tasks.trained_model import load_trained


def test_what_is_not_a_trained_model_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no complete checkpoint of a trained model"):
        load_trained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ConfigError, match="'vit' is not a model for sequence_to_sequence, text_classification"):
        load_trained(tmp_path)
