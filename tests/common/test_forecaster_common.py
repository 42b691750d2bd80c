"""transformers' common tests on the forecaster of time series."""

import unittest
from typing import Any

import pytest
import torch

from pipeline.models.configuration_forecaster import TransformerForecasterConfig
from pipeline.models.modeling_forecaster import TransformerForecaster
from tests.common.source import transformers_tests

ModelTesterMixin: Any = transformers_tests("test_modeling_common").ModelTesterMixin
ConfigTester: Any = transformers_tests("test_configuration_common").ConfigTester

pytestmark = pytest.mark.common


class ForecasterTester:
    """What the tests ask of a model: sizes, a config and a batch."""

    batch_size, context_length, prediction_length = 13, 16, 4
    seq_length = 4  # patches
    hidden_size, num_hidden_layers, num_attention_heads = 16, 2, 4
    is_training = True

    def get_config(self) -> TransformerForecasterConfig:
        return TransformerForecasterConfig(
            context_length=self.context_length,
            prediction_length=self.prediction_length,
            series=["x", "y"],
            patch_length=4,
            patch_stride=4,
            d_model=self.hidden_size,
            encoder_layers=self.num_hidden_layers,
            attention_heads=self.num_attention_heads,
            ffn_dim=32,
            attn_implementation="eager",  # the kernel that gives attentions
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[TransformerForecasterConfig, dict[str, torch.Tensor]]:
        return self.get_config(), {"past_values": torch.randn(self.batch_size, self.context_length, 2)}


class ForecasterTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (TransformerForecaster,)

    def setUp(self):
        self.model_tester = ForecasterTester()
        self.config_tester = ConfigTester(
            self,
            config_class=TransformerForecasterConfig,
            has_text_modality=False,
            common_properties=["hidden_size", "num_hidden_layers", "num_attention_heads"],
        )

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """Add the future, which transformers' own adds for the classes that it knows."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        future = inputs["past_values"][:, : self.model_tester.prediction_length]
        return inputs | ({"future_values": future} if return_labels else {})

    @unittest.skip("there is no embedding: the model reads numbers, not tokens")
    def test_model_get_set_embeddings(self):
        pass

    @unittest.skip("there is no embedding: the model reads numbers, not tokens")
    def test_resize_tokens_embeddings(self):
        pass

    def test_config(self):
        self.config_tester.run_common_tests()
