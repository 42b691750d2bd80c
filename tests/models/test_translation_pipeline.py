"""The pipeline that lies beside a checkpoint; tests/publishing/test_hub.py has it from the Hub, in a fresh process."""

import pytest
import transformers

from pipeline.models.translation_pipeline import TranslationPipeline
from tokenizer.training import train


@pytest.fixture
def tokenizer():
    return train(["a b c d"] * 2, "word", 40, max_length=16)


@pytest.fixture
def translate(make_model, tokenizer):
    model = make_model(vocab_size=len(tokenizer))
    model.generation_config.max_new_tokens = 5
    return TranslationPipeline(model=model, tokenizer=tokenizer)


def test_an_answer_is_the_models_own(translate, tokenizer):
    """For one text or several, each as if it was alone."""
    texts = ["a b", "c", "d c b a"]
    answers = translate(texts)
    for text, answer in zip(texts, answers, strict=True):
        ids = translate.model.generate(**tokenizer(text, return_tensors="pt"))
        assert answer == {"translation_text": tokenizer.decode(ids[0], skip_special_tokens=True)}
        assert translate(text) == [answer]


def test_keyword_arguments_are_those_of_generate(translate, monkeypatch):
    received = []
    generate = translate.model.generate

    def record(**arguments):
        received.append(arguments)
        return generate(**arguments)

    monkeypatch.setattr(translate.model, "generate", record)
    translate("a b", num_beams=2, max_new_tokens=3)
    translate("a b")
    assert {"num_beams": 2, "max_new_tokens": 3}.items() <= received[0].items()
    assert "num_beams" not in received[1]


def test_transformers_finds_it_in_a_folder(translate, tmp_path):
    translate.model.save_pretrained(tmp_path)
    translate.tokenizer.save_pretrained(tmp_path)
    loaded = transformers.pipeline("translation", model=str(tmp_path), trust_remote_code=True)
    assert type(loaded).__name__ == "TranslationPipeline"
    assert loaded(["a b", "c"]) == translate(["a b", "c"])
