"""A model as transformers' Marian; tests/test_numerics.py has the proof that both compute the same."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, MarianMTModel

from pipeline.errors import ConfigError
from pipeline.exporting.marian import make_marian, to_marian


def test_a_saved_marian_needs_no_code_of_ours(make_model, batch, tmp_path):
    model = make_model(pre_norm=False, activation_function="gelu")
    to_marian(model).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert type(loaded) is MarianMTModel
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, atol=1e-4, rtol=1e-4)


def test_a_new_marian_is_of_the_same_size(make_model):
    config = make_model(encoder_layers=1, decoder_layers=3, dropout=0.3).config
    marian = make_marian(config, positions=9)
    assert (marian.config.encoder_layers, marian.config.decoder_layers, marian.config.dropout) == (1, 3, 0.3)
    assert marian.model.decoder.embed_positions.weight.shape == (9, 16)
    assert marian.generation_config.decoder_start_token_id == config.decoder_start_token_id


def test_a_table_of_positions_ends(make_model, batch):
    marian = to_marian(make_model(pre_norm=False), positions=5)
    with pytest.raises(IndexError):
        marian(**batch)


def test_a_pre_norm_model_is_no_marian(make_model):
    with pytest.raises(ConfigError, match=r"model\.pre_norm: Marian is post-norm; take a checkpoint trained with"):
        to_marian(make_model(pre_norm=True))
