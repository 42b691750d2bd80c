"""A model as transformers' Marian or Pegasus; tests/test_numerics.py has the proof that both compute the same."""

import json
import logging

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    MarianMTModel,
    PegasusForConditionalGeneration,
)

from pipeline.config import DataConfig
from pipeline.errors import ConfigError
from pipeline.exporting.stock import count_positions, make_stock, to_stock, write
from pipeline.tasks.trained_model import load_trained


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


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"tie_word_embeddings": False}, r"model\.tie_word_embeddings: the stock models have one matrix"),
        ({"activation_function": "hardswish"}, r"model\.activation_function: transformers 4 has no hardswish"),
    ],
)
def test_what_no_stock_model_computes_is_refused(make_model, setting, message):
    with pytest.raises(ConfigError, match=message):
        to_stock(make_model(**setting))


def test_what_is_written_is_plain(finished_run, tmp_path):
    """No code, no name that only version 5 or this project knows, and the same tokens."""
    model, task = load_trained(finished_run)
    model.generation_config.num_beams = 3
    write(model, task, tmp_path, positions=40)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    }
    config, generation, settings = (
        json.loads((tmp_path / f"{name}.json").read_text())
        for name in ("config", "generation_config", "tokenizer_config")
    )
    assert not {"auto_map", "custom_pipelines"} & config.keys()
    assert config["max_position_embeddings"] == 40 and config["forced_eos_token_id"] is None
    # Or its pipelines take 4 beams and 256 tokens.
    assert config["task_specific_params"]["translation"] == {"num_beams": 3, "max_new_tokens": 8}
    assert generation == {
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
        **{"max_new_tokens": 8, "num_beams": 3, "transformers_version": config["transformers_version"]},
    }
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and "backend" not in settings
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert task.tokenizer is not None
    for text in ("1 2 3", "1 </s> 2", "unknown"):
        assert tokenizer(text)["input_ids"] == task.tokenizer(text)["input_ids"]
    assert tokenizer("1")["input_ids"][-1] == model.config.eos_token_id


def test_more_outputs_than_tokens_and_the_type_of_the_weights_are_kept(make_model, finished_run, tmp_path):
    model = make_model(vocab_size=64, eos_token_id=[2, 5]).to(torch.bfloat16)
    write(model, load_trained(finished_run)[1], tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16 and loaded.get_output_embeddings().weight.shape[0] == 64
    assert loaded.generation_config.eos_token_id == [2, 5]


def test_a_setting_that_transformers_4_ignores_is_said(make_model, finished_run, tmp_path, caplog):
    model = make_model()
    model.generation_config = GenerationConfig(do_sample=True, top_h=0.5, max_new_tokens=4)
    with caplog.at_level(logging.WARNING):
        write(model, load_trained(finished_run)[1], tmp_path)
    assert "generation.top_h: transformers 4 ignores it" in caplog.text


def test_positions_hold_the_longest_text():
    data = DataConfig(path="x", max_source_length=600, max_target_length=700)
    assert count_positions(GenerationConfig(max_new_tokens=10), data) == 700
    assert count_positions(GenerationConfig(max_new_tokens=700), data) == 701  # and the start token
    assert count_positions(GenerationConfig(max_length=800), data) == 800
    assert count_positions(GenerationConfig(max_new_tokens=10)) == count_positions(None) == 512
