"""transformers' common tests on the LSTM language model."""

import unittest
from typing import Any

import pytest
import torch

from pipeline.models.configuration_lstm import LSTMConfig
from pipeline.models.modeling_lstm import LSTMForCausalLM, LSTMState
from tests.common.source import transformers_tests

ModelTesterMixin: Any = transformers_tests("test_modeling_common").ModelTesterMixin
GenerationTesterMixin: Any = transformers_tests("generation.test_utils").GenerationTesterMixin
ConfigTester: Any = transformers_tests("test_configuration_common").ConfigTester

pytestmark = pytest.mark.common


class LSTMTester:
    """What the tests ask of a model: sizes, a config and a batch."""

    batch_size, seq_length = 13, 7
    hidden_size, num_hidden_layers = 16, 2
    is_training = True

    def get_config(self) -> LSTMConfig:
        return LSTMConfig(
            vocab_size=99,
            embedding_size=self.hidden_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[LSTMConfig, dict[str, torch.Tensor]]:
        ids = torch.randint(3, 99, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class LSTMTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (LSTMForCausalLM,)
    has_attentions = False

    def setUp(self):
        self.model_tester = LSTMTester()
        self.config_tester = ConfigTester(
            self, config_class=LSTMConfig, common_properties=["hidden_size", "num_hidden_layers", "vocab_size"]
        )

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """Add labels, which transformers' own adds for the classes that it knows."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return inputs | ({"labels": inputs["input_ids"]} if return_labels else {})

    def _check_past_key_values_for_generate(self, batch_size, past_key_values, seq_length, config):
        """As the model's cache is a state: a vector each layer and row, however many tokens were read."""
        self.assertIsInstance(past_key_values, LSTMState)
        self.assertEqual(past_key_values.get_seq_length(), seq_length)
        for states in (past_key_values.hidden, past_key_values.cell):
            self.assertEqual([state.shape for state in states], [(batch_size, size) for size in config.layer_sizes])

    def _check_caches_are_equal(self, cache1, cache2):
        self.assertEqual(cache1.get_seq_length(), cache2.get_seq_length())
        for states, others in ((cache1.hidden, cache2.hidden), (cache1.cell, cache2.cell)):
            torch.testing.assert_close(states, others)

    @unittest.skip("the layers are the model's own: there is no base model below the output projection")
    def test_model_base_model_prefix(self):
        pass

    def test_config(self):
        self.config_tester.run_common_tests()
