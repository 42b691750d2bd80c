"""The checks accept every good tokenizer and name what is broken in a bad one."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tokenizer.checks import TokenizerError, check
from tokenizer.training import KINDS, train

TEXTS = [
    f"Das {word} Café, der {other} Hund's; (naïf) {number}."
    for number, (word, other) in enumerate(
        [("alte", "große"), ("neue", "kleine"), ("schöne", "müde"), ("leere", "alte")] * 5
    )
]


@pytest.fixture
def good() -> PreTrainedTokenizerFast:
    return train(TEXTS, "bpe", 300, max_length=64)


def foreign(backend: Tokenizer, **settings) -> PreTrainedTokenizerFast:
    """As others publish them: BERT's tokens, `[SEP]` at the end, no split_special_tokens."""
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    )
    names = {"pad_token": "[PAD]", "bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**names, "model_max_length": 64, **settings})


def wordpiece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=80, special_tokens=special, show_progress=False)
    )
    return backend


@pytest.mark.parametrize("kind", KINDS)
def test_own_kinds_pass(kind):
    texts = [*TEXTS, "a </s> b", "  odd   spacing ", "", "unseen 漢字 👍", "Das ▁ Hund", "a##b", "x\x00y\u200bz"]
    check(train(TEXTS, kind, 400), texts)


def test_lower_casing_and_accent_stripping_pass():
    backend = wordpiece()
    backend.decoder = decoders.WordPiece()
    tokenizer = foreign(backend)
    assert tokenizer.decode(tokenizer("Das Café").input_ids, skip_special_tokens=True) == "das cafe"
    check(tokenizer, [*TEXTS, "Das\x07 Ca\u200bfé\ufffd"])


def test_no_start_and_no_unknown_token_pass(good):
    good.bos_token = None
    good.unk_token = None
    check(good, TEXTS)


def test_word_pieces_without_their_decoder():
    with pytest.raises(TokenizerError, match=r"##.*give the tokenizer the decoder"):
        check(foreign(wordpiece()), TEXTS)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_other_kinds_without_their_decoder(kind):
    tokenizer = train(TEXTS, kind, 300)
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    with pytest.raises(TokenizerError, match=r"comes back as.*give the tokenizer the decoder"):
        check(tokenizer, TEXTS)


def test_one_text_that_does_not_survive_is_enough(good):
    good.backend_tokenizer.normalizer = normalizers.Replace("müde", "wach")
    with pytest.raises(TokenizerError, match=r"müde.*wach"):
        check(good, TEXTS)
    check(good, TEXTS[:2])


def test_nothing_to_say_where_an_unknown_token_stands():
    tokenizer = train(TEXTS, "word", 400)
    assert tokenizer.decode(tokenizer("Das unseen Café,").input_ids, skip_special_tokens=True) == "Das Café,"
    check(tokenizer, ["Das unseen Café,"])


@pytest.mark.parametrize("name", ["pad_token", "eos_token"])
def test_missing_special_token(name, good):
    setattr(good, name, None)
    with pytest.raises(TokenizerError, match=f"no {name}: add one with tokenizer.add_special_tokens"):
        check(good, TEXTS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pad_token", "pad_token and eos_token are one token"),
        ("bos_token", "eos_token and bos_token are one token"),
        ("unk_token", "eos_token and unk_token are one token"),
    ],
)
def test_special_tokens_that_are_one(name, message, good):
    setattr(good, name, "</s>")
    with pytest.raises(TokenizerError, match=message):
        check(good, TEXTS)


def test_gap_in_the_ids():
    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 9}, unk_token="[UNK]"))
    with pytest.raises(TokenizerError, match=r"an id 9, outside the 5 rows.*without gaps"):
        check(foreign(backend), ["a"])


def test_end_is_missing(good):
    good.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    for texts in (TEXTS, []):  # even without texts
        with pytest.raises(TokenizerError, match=r"without </s> \(2\) at its end.*post-processor"):
            check(good, texts)


def test_end_is_appended_twice(good):
    good.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s> </s>", special_tokens=[("</s>", 2)]
    )
    with pytest.raises(TokenizerError, match=r"2 </s> \(2\) in it, not one: let only one"):
        check(good, TEXTS)


def test_end_on_the_wrong_side(good):
    in_front = train(TEXTS, "bpe", 300, eos_position="start")
    check(in_front, TEXTS, "start")
    with pytest.raises(TokenizerError, match=r"without </s> \(2\) at its end"):
        check(in_front, TEXTS)
    in_front.padding_side = "right"
    with pytest.raises(TokenizerError, match=r"set tokenizer\.padding_side = 'left'"):
        check(in_front, TEXTS, "start")
    good.padding_side = "left"
    with pytest.raises(TokenizerError, match=r"without </s> \(2\) in front"):
        check(good, TEXTS, "start")


def test_end_written_in_a_text(good):
    good.split_special_tokens = False
    good.backend_tokenizer.encode_special_tokens = False
    with pytest.raises(TokenizerError, match="set split_special_tokens=True"):
        check(good, ["a </s> b"])
    good.split_special_tokens = True
    check(good, ["a </s> b"])


def test_truncation_left_on(good):
    good("a long text", truncation=True, max_length=2)
    with pytest.raises(TokenizerError, match=r"truncation is left on.*no_truncation\(\)"):
        check(good, TEXTS)
    good.backend_tokenizer.no_truncation()
    check(good, TEXTS)


def test_padding_left_on(good):
    good(["a", "a long text"], padding=True)
    with pytest.raises(TokenizerError, match=r"padding is left on.*no_padding\(\)"):
        check(good, TEXTS)
    good.backend_tokenizer.no_padding()
    check(good, TEXTS)


def test_dropout_left_on(good):
    good.backend_tokenizer.model.dropout = 0.1
    with pytest.raises(TokenizerError, match=r"BPE dropout is left on.*0\.1"):
        check(good, TEXTS)
    good.backend_tokenizer.model.dropout = None
    check(good, TEXTS)


def test_no_maximum_length(good):
    good.model_max_length = int(1e30)
    with pytest.raises(TokenizerError, match="model_max_length is not set"):
        check(good, TEXTS)
