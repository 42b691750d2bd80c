"""The pipeline that lies beside a checkpoint; tests/publishing/test_hub.py has it from the Hub, in a fresh process."""

import pytest
import transformers

from pipeline.data.rows import Columns, separate
from pipeline.models.translation_pipeline import TranslationPipeline
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from tests.families import make_model as make_other_model
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


PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁b", -1.0)]
CODES = [(code, 0.0) for code in ("en_XX", "fr_XX", "de_DE")]


@pytest.mark.parametrize(
    "tokenizer",
    [
        transformers.MBartTokenizer(vocab=[*PIECES, *CODES, ("<mask>", 0.0)]),
        transformers.MBart50Tokenizer(vocab=PIECES),
        transformers.NllbTokenizer(),
    ],
)
def test_models_of_others_translate_by_their_own_languages(tokenizer):
    """As the task does, which marks each row."""
    family, codes = ("mbart", ("en_XX", "fr_XX", "de_DE"))
    if isinstance(tokenizer, transformers.NllbTokenizer):
        family, codes = "m2m_100", ("eng_Latn", "fra_Latn", "deu_Latn")
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": 2, "decoder_start_token_id": 2}
    model = make_other_model(family, len(tokenizer), **ids)
    model.generation_config.update(max_new_tokens=6, **ids)
    task = SequenceToSequence.from_model(tokenizer, model.config)
    translate = TranslationPipeline(model=model, tokenizer=tokenizer)
    for target in codes[1:]:
        rows: Columns = {
            "source": ["a b", "b"],
            "source_lang": [codes[0]] * 2,
            "target_lang": [target] * 2,
            "row": [0, 1],
        }
        features, _ = separate(task.encode(rows))
        batches = [task.collate([feature]) for feature in features]
        (expected,) = zip(*(task.predict(model, batch, model.generation_config) for batch in batches), strict=True)
        tokens = 7 if family == "m2m_100" or tokenizer.prefix_tokens else 6  # with the language that is forced
        answers = translate(rows["source"], src_lang=codes[0], tgt_lang=target, max_new_tokens=tokens)
        assert [answer["translation_text"] for answer in answers] == [*expected]
    with pytest.raises(ValueError, match="tgt_lang: the tokenizer knows no 'xx'; give one of its languages"):
        translate("a", src_lang=codes[0], tgt_lang="xx")
