"""The manual of the keys of a config: it names every key, and what can be written there."""

import dataclasses
import re

import pytest

from pipeline import reference
from pipeline.config import Config, Section
from pipeline.inference.metrics import METRICS
from pipeline.models.configuration_classifier import TransformerClassifierConfig
from pipeline.models.configuration_forecaster import TransformerForecasterConfig
from pipeline.models.configuration_lstm import LSTMConfig
from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.tasks.registry import MODELS, TASKS
from tests.conftest import ROOT
from tokenizer.training import KINDS

NOT_FOR_CONFIGS = {  # of a model's config: set by what the model is, or by the tokenizer
    *("is_encoder_decoder", "use_cache", "model_type", "keys_to_ignore_at_inference", "attribute_map"),
    *("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "label_smoothing"),
    *("r_drop", "adversarial_epsilon"),
    *("series", "means", "stds", "static_embeddings", "languages", "target_lang_in"),  # by the data
}


def keys() -> list[str]:
    """Every key of every section, of every task, and of every model."""
    names = []
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            names += [f"{name}.{key}" for key in field.annotation.model_fields]
        else:
            names.append(name)
    names += [f"{name}.{key}" for name, task in TASKS.items() for key in task.settings.model_fields]
    return names


@pytest.mark.parametrize("text", [reference.as_text(), reference.as_markdown()], ids=["text", "markdown"])
def test_every_key_is_named(text):
    assert len(keys()) > 40
    for key in keys():
        assert key in text, key
    for name, spec in MODELS.items():
        assert name in text
        for field in {*spec.config.__annotations__} - NOT_FOR_CONFIGS:
            assert f"model.{field}" in text, (name, field)
    for name in (*TASKS, *METRICS, *KINDS):
        assert name in text, name
    assert "{tasks}" not in text and "{metrics}" not in text and "{kinds}" not in text


def test_the_page_is_what_the_code_says():
    page = (ROOT / "configs" / "REFERENCE.md").read_text(encoding="utf-8")
    assert page == reference.as_markdown(), "run: python -m pipeline.reference"


def test_help_names_the_keys_of_the_page():
    text = reference.as_text()
    keys = re.findall(r"^\| `([\w.]+)` \|", reference.as_markdown(), re.M)
    assert len(keys) > 90
    for key in keys:
        assert f"  {key}: " in text


SET_BY_THE_RUN = {"is_encoder_decoder", "use_cache"} | {
    f"{name}_token_id" for name in ("pad", "bos", "eos", "decoder_start")
}


@pytest.mark.parametrize(
    "config", [Seq2SeqTransformerConfig, TransformerClassifierConfig, LSTMConfig, TransformerForecasterConfig]
)
def test_every_size_of_a_model_is_explained(config):
    fields = {
        name for ancestor in config.__mro__ if "models" in ancestor.__module__.split(".") for name in vars(ancestor)
    }
    fields &= {field.name for field in dataclasses.fields(config)}
    meanings = reference.argument_meanings(config)
    assert fields - SET_BY_THE_RUN - {*meanings} == set()
    assert all(re.match(r"\S", meaning) for meaning in meanings.values())
