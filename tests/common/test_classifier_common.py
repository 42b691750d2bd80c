"""transformers' common tests on the text classifier."""

import unittest
from typing import Any

import pytest
import torch

from pipeline.models.configuration_classifier import TransformerClassifierConfig
from pipeline.models.modeling_classifier import TransformerForSequenceClassification
from tests.common.source import transformers_tests

ModelTesterMixin: Any = transformers_tests("test_modeling_common").ModelTesterMixin
ConfigTester: Any = transformers_tests("test_configuration_common").ConfigTester

pytestmark = pytest.mark.common


class ClassifierTester:
    """What the tests ask of a model: sizes, a config and a batch."""

    batch_size, seq_length = 13, 7
    hidden_size, num_hidden_layers, num_attention_heads = 16, 2, 4
    is_training = True

    def get_config(self) -> TransformerClassifierConfig:
        return TransformerClassifierConfig(
            vocab_size=99,
            d_model=self.hidden_size,
            encoder_layers=self.num_hidden_layers,
            attention_heads=self.num_attention_heads,
            ffn_dim=32,
            num_labels=3,
            conv_kernels=[3],
            attn_implementation="eager",  # the kernel that gives attentions
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[TransformerClassifierConfig, dict[str, torch.Tensor]]:
        ids = torch.randint(3, 99, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class ClassifierTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (TransformerForSequenceClassification,)

    def setUp(self):
        self.model_tester = ClassifierTester()
        self.config_tester = ConfigTester(self, config_class=TransformerClassifierConfig)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """Add labels, which transformers' own adds for the classes that it knows."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        labels = {"labels": torch.zeros(self.model_tester.batch_size, dtype=torch.long)}
        return inputs | (labels if return_labels else {})

    def test_config(self):
        self.config_tester.run_common_tests()
