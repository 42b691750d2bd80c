"""A model as transformers' Marian or Pegasus; tests/test_numerics.py has the proof that both compute the same."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, MarianMTModel, PegasusForConditionalGeneration

from pipeline.errors import ConfigError
from pipeline.exporting.stock import make_stock, to_stock


@pytest.mark.parametrize(("pre_norm", "kind"), [(False, MarianMTModel), (True, PegasusForConditionalGeneration)])
def test_a_saved_stock_model_needs_no_code_of_ours(make_model, batch, tmp_path, pre_norm, kind):
    model = make_model(pre_norm=pre_norm, activation_function="gelu")
    to_stock(model).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert type(loaded) is kind
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-5)


def test_a_new_stock_model_is_of_the_same_size(make_model):
    config = make_model(encoder_layers=1, decoder_layers=3, dropout=0.3).config
    stock = make_stock(config, positions=9)
    assert (stock.config.encoder_layers, stock.config.decoder_layers, stock.config.dropout) == (1, 3, 0.3)
    assert stock.model.decoder.embed_positions.weight.shape == (9, 16)
    assert stock.generation_config.decoder_start_token_id == config.decoder_start_token_id


def test_a_table_of_positions_ends(make_model, batch):
    stock = to_stock(make_model(), positions=5)
    with pytest.raises(IndexError):
        stock(**batch)


def test_untied_embeddings_are_refused(make_model):
    with pytest.raises(ConfigError, match=r"model\.tie_word_embeddings: the stock models have one matrix"):
        to_stock(make_model(tie_word_embeddings=False))
