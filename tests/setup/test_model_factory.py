"""A config's model: other models, from a folder or from the Hub, to train on."""

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
    TrainerState,
)

from pipeline.config import HubConfig
from pipeline.errors import ConfigError, DataError
from pipeline.models.configuration_classifier import TransformerClassifierConfig
from pipeline.models.configuration_forecaster import TransformerForecasterConfig
from pipeline.publishing import hub
from pipeline.run import train
from pipeline.setup.model_factory import stored_settings
from tests.conftest import HUB
from tokenizer.training import train as train_tokenizer

pytestmark = pytest.mark.usefixtures("little_sleep")


@pytest.fixture
def pretrained(tmp_path):
    """A small random model of a family, with a tokenizer, as a folder."""
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
    common = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "dropout": 0.0}

    def make(family: str):
        tokenizer = train_tokenizer([f"a b {number}" for number in range(300)] * 2, "word", 400, max_length=64)
        size = {"vocab_size": len(tokenizer), **common}
        torch.manual_seed(0)
        if family == "marian":
            model = MarianMTModel(MarianConfig(**size, **sizes, decoder_start_token_id=0, forced_eos_token_id=None))
        elif family == "bart":
            model = BartForConditionalGeneration(BartConfig(**size, **sizes, decoder_start_token_id=2))
        else:
            t5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
            model = T5ForConditionalGeneration(T5Config(**(size | t5), decoder_start_token_id=0))
        folder = tmp_path / family
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def make_other(make_config):
    """Makes the config of a small run with this model section; other models do not know the sizes of ours."""

    def make(model: dict, **changes):
        return make_config(**changes).model_copy(update={"model": model})

    return make


def fine_tune(make_other, pairs, source, folder, rows: int, accumulation: int):
    training = {
        "output_dir": str(folder),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulation,
        "optim": "sgd",
        "learning_rate": 0.5,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "eval_strategy": "no",
        "label_smoothing_factor": 0.1,
    }
    data: dict[str, object] = {"path": str(pairs), "options": {}, "validation": None, "test": "test"}
    data |= {"max_source_length": 60, "max_target_length": 60}
    return train(make_other({"from": str(source)}, training=training, data=data))


@pytest.mark.parametrize("family", ["marian", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bart", "t5"))])
def test_micro_batches_change_nothing_for_other_models(make_other, make_pairs, pretrained, tmp_path, family):
    """Steps of the same eight rows as 8 x 1 and 2 x 4: their own losses would grow with the accumulation."""
    source, pairs = pretrained(family), make_pairs(rows=8)
    whole = fine_tune(make_other, pairs, source, tmp_path / "whole", 8, 1)
    parts = fine_tune(make_other, pairs, source, tmp_path / "parts", 2, 4)
    expected, before = (load_file(path / "model.safetensors") for path in (whole.output_dir, source))
    got = load_file(parts.output_dir / "model.safetensors")
    assert any(not torch.equal(got[name], before[name]) for name in before)
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-4)
    losses = [
        [
            line["loss"]
            for line in TrainerState.load_from_json(
                result.output_dir / "checkpoint-4" / "trainer_state.json"
            ).log_history
            if "loss" in line
        ]
        for result in (whole, parts)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][-1] < losses[0][0]
    assert parts.scores["test"]["loss"] == pytest.approx(whole.scores["test"]["loss"], rel=1e-4)


def test_fine_tuning_from_the_hub(make_other, finished_run, hub_name):
    """A published model of our own: its weights, its tokenizer, and a card that says so."""
    published = HubConfig(push=True, model_id=hub_name)
    hub.prepare(published)
    hub.publish_result(finished_run, published)
    model = {"from": hub_name, "dropout": 0.0}
    training = {"max_steps": 2, "learning_rate": 0.0}
    folder = train(make_other(model, training=training, hub={"push": True, "model_id": f"{hub_name}-2"})).output_dir
    before, after = (load_file(path / "model.safetensors") for path in (finished_run, folder))
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert json.loads((folder / "config.json").read_text())["dropout"] == 0.0
    assert (
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False).get_vocab()
        == AutoTokenizer.from_pretrained(finished_run, trust_remote_code=False).get_vocab()
    )
    text = (folder / "README.md").read_text()
    assert f"fine-tuned from `{hub_name}`" in text and ModelCard(text).data.base_model == hub_name
    assert set(HUB.commits(f"{hub_name}-2")[-1]["files"]) == set(HUB.commits(hub_name)[-1]["files"])
    HUB.stop()  # a resumed run does not need the pretrained model any more
    (folder / "metrics.json").unlink()
    assert train(make_other(model, training=training)).output_dir == folder


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    "model, message",
    [
        ({"from": "me/no-such-model"}, "model.from: there is no me/no-such-model on the Hub, or it is private"),
        ({"from": "no-such-folder"}, "model.from: 'no-such-folder' is neither a folder on this machine"),
        ({"from": 7}, "model.from: 7 is neither a folder nor owner/name"),
        ({"from": "me/picked"}, "me/picked has no weights in safetensors"),
    ],
)
def test_a_pretrained_model_that_cannot_be_had(make_other, model, message):
    HUB.add("me/picked", {"config.json": b"{}", "pytorch_model.bin": b"x"}, "models")
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(make_other(model, training={"eval_strategy": "no"}))


def test_settings_of_a_pretrained_model_are_checked(make_other, pretrained):
    source = str(pretrained("marian"))
    config = make_other({"from": source, "droput": 0.2}, data={"max_source_length": 60, "max_target_length": 60})
    with pytest.raises(ConfigError, match=r"model.droput: MarianConfig has no such field; did you mean dropout\?"):
        train(config)
    config = make_other({"from": source}, data={"max_source_length": 128})
    with pytest.raises(ConfigError, match=r"data.max_source_length: 128 is more than the 64 positions of model.from"):
        train(config)


@pytest.mark.parametrize("evaluates", [False, True])
def test_a_row_longer_than_the_positions_ends_before_the_first_step(
    make_other, make_pairs, pretrained, no_step, evaluates
):
    """Of validation, whose rows may be longer than those of training."""
    pairs = make_pairs()
    with (pairs / "validation.jsonl").open("a") as stream:
        stream.write(json.dumps({"source": "a " * 70, "target": "b"}) + "\n")
    data: dict[str, object] = {"path": str(pairs), "options": {}, "max_source_length": 60, "max_target_length": 60}
    training = {"eval_strategy": "steps" if evaluates else "no"}
    config = make_other({"from": str(pretrained("marian"))}, data=data, training=training)
    message = r"validation.jsonl:7: source has 71 tokens, and the model has positions for 64; fix or remove the row"
    with pytest.raises(DataError, match=message):
        train(config)


@pytest.mark.parametrize(
    "model, message",
    [
        ({"encoder_layers": 10**9}, "model.encoder_layers: 1000000000 is more than 1000"),
        ({"d_model": 10**9}, "model.d_model: 1000000000 is more than 16777216"),
        ({"vocab_size": 10**12}, "model.vocab_size: 1000000000000 is more than"),
        ({"d_model": 2**22, "attention_heads": 4}, r"weights take [\d,.]+ GB with gradients .* choose smaller sizes"),
        ({"dropout": "x"}, "model.dropout: 'x' is not of the kind of 0.1"),
        ({"is_encoder_decoder": False}, "model.is_encoder_decoder: .* has no such field"),
        ({"dtype": "foo"}, "model.dtype: .* has no such field"),
        ({"activation_function": "foo"}, "model: 'foo' is unknown"),
        ({"from": "x" * 300}, "model.from: x+: File name too long"),
    ],
)
def test_models_that_cannot_be_are_refused_before_they_are_built(make_config, no_step, model, message):
    with pytest.raises(ConfigError, match=message):
        train(make_config(model=model))


def test_memory_is_that_which_this_process_may_take(make_config, no_step, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (10_000, 10_000))
    with pytest.raises(ConfigError, match=r"of 0\.0 GB that there are"):
        train(make_config())


def test_tokens_of_generation_are_those_of_the_model(make_config, no_step):
    for settings in ({"forced_bos_token_id": 500}, {"suppress_tokens": [1, 500]}, {"sequence_bias": [[[1, 500], 2.0]]}):
        with pytest.raises(ConfigError, match=rf"generation\.{next(iter(settings))}: 500 is not below the 12 tokens"):
            train(make_config(generation=settings))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("config.json", "[]", r"config.json must hold a JSON object, not a list"),
        ("generation_config.json", "", r"^model.from: .*generation_config.json is not valid JSON"),
        ("model.safetensors", "", r"^model.from: .*the weights cannot be read"),
        ("tokenizer.json", "[", r"^tokenizer.path: .*tokenizer.json is not valid JSON"),
    ],
)
def test_a_damaged_model_to_start_from_is_named(make_other, pretrained, no_step, name, text, message):
    folder = pretrained("marian")
    (folder / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        train(make_other({"from": str(folder)}))


def test_a_model_to_start_from_has_all_its_weights(make_other, pretrained, no_step):
    folder = pretrained("marian")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"encoder_layers": 2}))
    with pytest.raises(ConfigError, match=r"^model.from: .* has no weights for model.encoder.layers.1.* and 13 more"):
        train(make_other({"from": str(folder)}))


def test_what_the_data_determined_stays_but_not_the_classes(tmp_path):
    names = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    TransformerClassifierConfig(vocab_size=9, **names).save_pretrained(tmp_path)
    assert stored_settings(tmp_path, names) == names
    for classes in (["b", "a"], ["a", "c"], ["a", "b", "c"]):
        changed = {"id2label": dict(enumerate(classes)), "label2id": {name: n for n, name in enumerate(classes)}}
        with pytest.raises(
            ConfigError, match=f"the classes are now {', '.join(classes)}, but those of .* are a, b; put"
        ):
            stored_settings(tmp_path, changed)
    series = {"series": ["load"], "means": [0.1], "stds": [1 / 3]}
    TransformerForecasterConfig(**series).save_pretrained(tmp_path)
    assert stored_settings(tmp_path, {**series, "means": [7.0]}) == series


def test_r_drop_needs_a_model_that_makes_two_passes(make_config, no_step):
    with pytest.raises(ConfigError, match=r"training.r_drop: LSTMConfig makes one pass only; leave it out"):
        train(make_config("language_modeling", training={"r_drop": 5.0}))


@pytest.mark.parametrize("task", ["sequence_to_sequence", "language_modeling"])
def test_adversarial_training_is_for_classifiers(make_config, no_step, task):
    with pytest.raises(ConfigError, match=r"training.adversarial_epsilon: \w+Config does not take it; leave it out"):
        train(make_config(task, training={"adversarial_epsilon": 0.5}))


def test_r_drop_is_not_for_models_of_others(make_other, pretrained, no_step):
    with pytest.raises(ConfigError, match=r"training.r_drop: MarianConfig makes one pass only"):
        train(make_other({"from": str(pretrained("marian"))}, training={"r_drop": 5.0}))
