"""transformers' common tests on the encoder-decoder model."""

import unittest
from typing import Any

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration
from tests.common.source import transformers_tests

ModelTesterMixin: Any = transformers_tests("test_modeling_common").ModelTesterMixin
GenerationTesterMixin: Any = transformers_tests("generation.test_utils").GenerationTesterMixin
ConfigTester: Any = transformers_tests("test_configuration_common").ConfigTester

pytestmark = pytest.mark.common


# Where transformers looks up which of its classes take labels.
MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES[Seq2SeqTransformerConfig.model_type] = (
    Seq2SeqTransformerForConditionalGeneration.__name__
)


class Seq2SeqTester:
    """What the tests ask of a model: sizes, a config and a batch."""

    batch_size, seq_length, encoder_seq_length, decoder_seq_length = 13, 7, 7, 7
    hidden_size, num_hidden_layers, num_attention_heads = 16, 2, 4
    is_training = True

    def __init__(self, **changes):
        self.changes = changes

    def get_config(self) -> Seq2SeqTransformerConfig:
        return Seq2SeqTransformerConfig(
            vocab_size=99,
            d_model=self.hidden_size,
            encoder_layers=self.num_hidden_layers,
            decoder_layers=self.num_hidden_layers,
            attention_heads=self.num_attention_heads,
            ffn_dim=32,
            attention_dropout=0.1,
            **self.changes,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[Seq2SeqTransformerConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        source, target = torch.randint(3, config.vocab_size, (2, self.batch_size, self.seq_length))
        source[:, -1] = config.eos_token_id
        return config, {
            "input_ids": source,
            "attention_mask": torch.ones_like(source),
            "decoder_input_ids": target,
            "decoder_attention_mask": torch.ones_like(target),
        }


class Seq2SeqTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (Seq2SeqTransformerForConditionalGeneration,)
    is_encoder_decoder = True
    changes: dict = {}

    def setUp(self):
        self.model_tester = Seq2SeqTester(**self.changes)
        self.config_tester = ConfigTester(self, config_class=Seq2SeqTransformerConfig)

    def _check_past_key_values_for_generate(self, batch_size, past_key_values, seq_length, config):
        """Beams share the keys and values of their source, which are there once."""
        if seq_length is None:  # of a source
            sources = len(past_key_values.layers[0].keys)
            self.assertEqual(batch_size % sources, 0)
            batch_size = sources
        super()._check_past_key_values_for_generate(batch_size, past_key_values, seq_length, config)

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("encoder, decoder and lm_head are parts of one class: there is no base model of its own")
    def test_model_base_model_prefix(self):
        pass


class PostNormUntiedTest(Seq2SeqTest):
    changes = {"pre_norm": False, "tie_word_embeddings": False}
