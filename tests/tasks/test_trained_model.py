"""What is taken for a trained model, and what is not."""

import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from pipeline.errors import ConfigError
from pipeline.tasks.trained_model import load_trained, load_whole
from tests.conftest import ROOT

WHOLE = ROOT / "tests" / "fixtures" / "run_0.1.0" / "checkpoint-2"


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of a checkpoint, without the manifest that would find every change."""
    return shutil.copytree(WHOLE, tmp_path / "checkpoint-2", ignore=shutil.ignore_patterns("manifest.json"))


def change(name: str, **values):
    def harm(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))

    return harm


def write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def halve(name: str):
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def change_weights(action):
    def harm(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        action(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return harm


def rename(old: str, new: str):
    return change_weights(lambda weights: weights.update({new: weights.pop(old)}))


def test_what_is_not_a_trained_model_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no complete checkpoint of a trained model"):
        load_trained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ConfigError, match="'vit' is not a model for sequence_to_sequence, text_classification"):
        load_trained(tmp_path)


SHARED, NORM = "encoder.embed_tokens.weight", "encoder.final_norm.bias"


@pytest.mark.parametrize(
    "harm, message",
    [
        (change("config.json", encoder_layers=2), r"has no weights for encoder.layers.1.* and 13 more"),
        (change("config.json", d_model=32), "weights of other sizes than its config.json says: decoder"),
        (change("config.json", d_model="x"), "'d_model' expected int"),
        (change("config.json", encoder_layers=10**9), "encoder_layers=1000000000 is more than 1000"),
        (change("config.json", d_model=10**6), r"describes [\d,]+ weights, more than model.safetensors can hold"),
        (change("config.json", activation_function="zz"), "config.json: 'zz' is unknown"),
        (change("config.json", dtype="float99"), "names the type 'float99'"),
        (change("config.json", model_type="bart"), "describes a BartFor.* but the weights are those of Seq2Seq"),
        (write("config.json", "[]"), "config.json must hold a JSON object, not a list"),
        (write("config.json", "{"), "config.json is not valid JSON"),
        (write("config.json", "[" * 100_000), "config.json is not valid JSON"),
        (halve("model.safetensors"), "the weights cannot be read: "),
        (remove("model.safetensors"), "no complete checkpoint .* model.safetensors"),
        (change_weights(lambda weights: weights.pop(NORM)), f"has no weights for {NORM}; put it back"),
        (change_weights(lambda weights: weights.pop(SHARED)), f"has no weights for .*{SHARED}, lm_head.weight; put"),
        (rename(NORM, "other"), f"has no weights for {NORM}"),
        (change_weights(lambda weights: weights.update(other=weights[NORM].clone())), "does not describe: other;"),
        (change_weights(lambda weights: weights[NORM].fill_(math.nan)), f"not finite: {NORM}; load another"),
        (write("generation_config.json", ""), "generation_config.json is not valid JSON"),
        (write("generation_config.json", "{}"), "generation_config.json names no max_new_tokens"),
        (write("generation_config.json", "[]"), "generation_config.json must hold a JSON object"),
        (change("generation_config.json", num_beams=-2), "generation.num_beams: .* -2"),
        (change("generation_config.json", eos_token_id="x"), "generation.eos_token_id"),
        (change("generation_config.json", eos_token_id=9999), "eos_token_id: 9999 is not below"),
        (change("generation_config.json", num_beams=5000), "generation.num_beams: .* less than or equal to 1000"),
        (
            change("generation_config.json", do_sample=True, temperature=0),
            "generation.temperature: .* greater than or equal to 0.001",
        ),
        (change("generation_config.json", stop_strings=["."]), "generation.stop_strings has no use here"),
        (
            change("generation_config.json", decoder_start_token_id=10**6),
            "start_token_id: 1000000 is not below",
        ),
        (remove("generation_config.json"), "generation_config.json is missing"),
        (remove("tokenizer.json"), "the tokenizer cannot be loaded"),
        (halve("tokenizer.json"), "tokenizer.json is not valid JSON"),
        (change("tokenizer.json", model=3), "tokenizer.json is not a tokenizer"),
        (remove("tokenizer_config.json"), "pad_token_id of the tokenizer is None, but that of the model 0"),
        (write("tokenizer_config.json", "[]"), "tokenizer_config.json must hold a JSON object"),
    ],
)
def test_a_checkpoint_loads_whole_or_not_at_all(checkpoint, harm, message):
    harm(checkpoint)
    with pytest.raises(ConfigError, match=message) as caught:
        load_trained(checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("index", [{}, {"metadata": {}, "weight_map": {SHARED: "../other.safetensors"}}])
def test_the_list_of_files_of_weights_is_checked(checkpoint, index):
    (checkpoint / "model.safetensors").rename(checkpoint / "part.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"model.safetensors.index.json (has no metadata|names '../other)"):
        load_trained(checkpoint)


@pytest.mark.parametrize("name", [SHARED, "lm_head.weight", "decoder.embed_tokens.weight"])
def test_a_tied_weight_counts_under_each_of_its_names(checkpoint, name):
    rename(SHARED, name)(checkpoint)
    model, _ = load_trained(checkpoint)
    assert model.lm_head.weight.equal(load_file(WHOLE / "model.safetensors")[SHARED])


def test_a_manifest_finds_what_the_weights_do_not_show(tmp_path):
    """Four heads or two: the weights have the same sizes."""
    folder = shutil.copytree(WHOLE, tmp_path / "run")
    load_trained(folder)
    change("config.json", attention_heads=2)(folder)
    with pytest.raises(ConfigError, match=r"is damaged: config.json has .* or remove manifest.json if the change was"):
        load_trained(folder)
    (folder / "manifest.json").unlink()
    load_trained(folder)


@pytest.fixture
def bert(tmp_path):
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_only_a_new_head_may_be_missing_and_is_named(bert, caplog):
    caplog.set_level("INFO", "pipeline")
    load_whole(BertForSequenceClassification, bert, allow_new_head=True)
    assert (
        "has no weights for bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias and 1 more" in caplog.text
    )
    assert "cls." not in caplog.text  # the head that it had
    with pytest.raises(ConfigError, match="describes a BertForSequenceClassification, but the weights"):
        load_whole(BertForSequenceClassification, bert)
    change_weights(lambda weights: weights.pop("bert.embeddings.LayerNorm.bias"))(bert)
    with pytest.raises(ConfigError, match=r"has no weights for bert.embeddings.LayerNorm.bias;"):
        load_whole(BertForSequenceClassification, bert, allow_new_head=True)


def test_a_layer_too_many_is_not_the_head_of_another_task(bert):
    change("config.json", num_hidden_layers=0)(bert)
    with pytest.raises(ConfigError, match=r"does not describe: bert.encoder.layer.0"):
        load_whole(BertForSequenceClassification, bert, allow_new_head=True)


def test_a_head_of_the_same_task_may_not_be_missing(bert):
    folder = bert.with_name("classifier")
    BertForSequenceClassification(BertConfig.from_pretrained(bert)).save_pretrained(folder)
    change_weights(lambda weights: weights.pop("classifier.bias"))(folder)
    with pytest.raises(ConfigError, match=r"has no weights for classifier.bias"):
        load_whole(BertForSequenceClassification, folder, allow_new_head=True)
