"""Every setting of `training` and `generation` with odd values: refused in one line, or it works."""

import logging
import os
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import GenerationConfig

from pipeline.config import RESERVED_TRAINING_KEYS
from pipeline.errors import ConfigError, TeacherForcingError
from pipeline.library_settings import TRAINING, GenerationSettings, training_types
from pipeline.run import train
from pipeline.setup.generation_setup import generation_config
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from pipeline.training.arguments import check_settings, training_arguments
from tokenizer.training import train as train_tokenizer

ODD: list[Any] = [0, -1, 1, 2, 0.5, -0.5, float("nan"), float("inf"), 10**12, 10**30, True, False, None]
ODD += ["", "x", "no", "1", "a\0", [], [1], ["a"], [[1]], [[[1], 2]], [2, 3], [-1], {}, {"a": 1}, [None]]
GENERATION = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
MODES = [{}, {"do_sample": True}, {"num_beams": 2}, {"num_beams": 2, "do_sample": True}]
COMPILED = {"torch_compile", "torch_compile_backend", "torch_compile_mode"}  # each takes half a minute


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a folder called x may be made
    logging.disable(logging.CRITICAL)
    with mock.patch.dict(os.environ):
        yield
    logging.disable(logging.NOTSET)


@pytest.fixture(params=[MODES[0], *(pytest.param(mode, marks=pytest.mark.slow) for mode in MODES[1:])], ids=str)
def mode(request):
    return request.param


def test_every_setting_of_generation_is_refused_or_generates(make_config, make_model, batch, mode):
    model, task = make_model(), SequenceToSequence(train_tokenizer(["a b"] * 2, "word", 40, max_length=20))
    del batch["labels"]
    taken = set()
    for name in GENERATION:
        for value in ODD:
            try:
                generation = generation_config(make_config(generation={**mode, name: value}), model, task)
            except ConfigError:
                continue
            torch.manual_seed(0)
            answers = model.generate(**batch, generation_config=generation)
            assert len(answers) == len(batch["input_ids"]), f"{name}: {value!r}"
            taken.add(name)
    assert {"max_new_tokens", "repetition_penalty", "suppress_tokens", "sequence_bias", "eos_token_id"} <= taken
    assert taken <= GenerationSettings.model_fields.keys()


def test_every_setting_of_training_is_refused_or_taken(make_config):
    taken = set()
    for name in training_types():
        for value in ODD:
            try:
                config = make_config(training={name: value})
                check_settings(config, training_arguments(config))
            except ConfigError:
                continue
            taken.add(name)
    assert {"learning_rate", "seed", "report_to", "lr_scheduler_kwargs", "save_steps"} <= taken
    assert not taken & RESERVED_TRAINING_KEYS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(training_types().keys() - RESERVED_TRAINING_KEYS.keys() - COMPILED))
def test_every_setting_of_training_is_refused_or_trains(make_config, tmp_path, name):
    for number, value in enumerate(ODD):
        try:
            config = make_config(training={"max_steps": 2, "output_dir": str(tmp_path / str(number)), name: value})
            if config.training.get("max_steps") in (1, 2):
                train(config)
        except TeacherForcingError:
            continue


@pytest.mark.parametrize(
    "section, name, value, message",
    [
        ("training", "per_device_train_batch_size", 0, "greater than or equal to 1"),
        ("training", "per_device_train_batch_size", -1, "greater than or equal to 1"),
        ("training", "per_device_train_batch_size", 10**9, "less than or equal to 1000000"),
        ("training", "per_device_eval_batch_size", 0, "greater than or equal to 1"),
        ("training", "gradient_accumulation_steps", 0, "greater than or equal to 1"),
        ("training", "max_steps", 0, "at least 1, or -1 to count by num_train_epochs"),
        ("training", "max_steps", -2, "at least 1, or -1"),
        ("training", "max_steps", "3", "valid integer"),
        ("training", "num_train_epochs", 0, "greater than 0"),
        ("training", "logging_steps", 0, "greater than 0"),
        ("training", "save_steps", 0, "greater than 0"),
        ("training", "weight_decay", -0.1, "greater than or equal to 0"),
        ("training", "adam_beta1", 1.0, "less than 1"),
        ("training", "save_total_limit", 0, "greater than or equal to 1"),
        ("training", "seed", -1, "greater than or equal to 0"),
        ("training", "dataloader_num_workers", 1000, "less than or equal to 256"),
        ("training", "gradient_checkpointing_kwargs", {"a": 1}, "use_reentrant"),
        ("generation", "max_new_tokens", 10**9, "less than or equal to 1000000"),
        ("generation", "num_beams", 5000, "less than or equal to 1000"),
        ("generation", "num_return_sequences", 2, "should be 1"),
        ("generation", "temperature", 1e-40, "greater than or equal to 0.001"),
        ("generation", "repetition_penalty", 1e300, "less than or equal to 1000"),
        ("generation", "return_dict_in_generate", True, "has no use here"),
        ("generation", "stop_strings", ["."], "has no use here"),
        ("generation", "force_words_ids", [[5]], "has no use here"),
        ("generation", "penalty_alpha", 0.5, "has no use here"),
        ("generation", "dola_layers", "high", "has no use here"),
        ("generation", "topk", 5, "is not one of GenerationConfig; did you mean top_k"),
    ],
)
def test_settings_that_would_hang_crash_or_do_nothing(make_config, section, name, value, message):
    with pytest.raises(ConfigError) as caught:
        make_config(**{section: {name: value}})
    assert str(caught.value).startswith(f"{section}.{name}") and message in str(caught.value)


def test_whole_numbers_become_the_floats_that_libraries_want(make_config):
    """transformers refuses a repetition penalty of 2, and Adam a beta of 0."""
    config = make_config(
        training={"adam_beta1": 0, "max_steps": 4}, generation={"repetition_penalty": 2, "num_beams": 2}
    )
    assert type(config.training["adam_beta1"]) is float and type(config.training["max_steps"]) is int
    assert type(config.generation["repetition_penalty"]) is float and type(config.generation["num_beams"]) is int


def test_the_bounds_are_of_settings_that_exist():
    assert TRAINING.keys() <= training_types().keys()
    assert GenerationSettings.model_fields.keys() <= {*GENERATION}
