import pytest
from transformers import GenerationConfig

from pipeline.errors import ConfigError, DataError
from pipeline.inference.generation import generate
from pipeline.tasks.forecasting import Forecasting
from pipeline.tasks.language_modeling import LanguageModeling
from pipeline.tasks.sequence_to_sequence import SequenceToSequence


def test_generate_answers_every_line(make_model, task):
    model = make_model(vocab_size=len(task.tokenizer))
    generation = GenerationConfig(max_new_tokens=5, pad_token_id=0, eos_token_id=2, decoder_start_token_id=1)
    answers = generate(model, task, ["a b", "", "  ", "c"], generation, batch_size=3)
    assert len(answers) == 4 and answers[1] == answers[2] == ""
    assert answers[3] == generate(model, task, ["c"], generation)[0]
    assert generate(model, task, [], generation) == []


def test_a_blank_prompt_cannot_be_gone_on_from(make_model, task):
    with pytest.raises(ConfigError, match="prompt 2 is empty: give a word at least to go on from"):
        generate(make_model(), LanguageModeling(task.tokenizer), ["a", " \t"])


def test_a_task_without_texts_generates_none(make_model):
    with pytest.raises(ConfigError, match="this model takes no texts; call it from Python"):
        generate(make_model(), Forecasting(8, 4, ["value"], [1.0]), ["a"])


def test_a_text_longer_than_the_positions_is_named(make_model, task):
    short = SequenceToSequence(task.tokenizer, (3, 3))
    with pytest.raises(DataError, match="text 3: source has 4 tokens, and the model has positions for 3; shorten it"):
        generate(make_model(), short, ["a b", "", "a b c"])
