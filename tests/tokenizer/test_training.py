"""Trained tokenizers keep their promises once saved and loaded; imported ones segment as SentencePiece does."""

import io
import itertools
import json
import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SentencePieceExtractor

from tokenizer.checks import TokenizerError, check
from tokenizer.training import KINDS, SPECIAL_TOKENS, import_sentencepiece, train

REAL_LINES = Path(__file__).parents[2] / "shared" / "data" / "multi30k" / "train.jsonl"
WORDS = (
    "der Hund läuft über die Straße . un café déjà vu , l'été naïve mother's well-known (a b) 3,14 < / s p a d u n k >"
)
SYLLABLES = ["ba", "dé", "ku", "löw", "mi", "ra", "sto", "ting", "un", "ver"]
# Fragments that normalisers, white-space rules and byte fallback are likely to get wrong.
ODD = [
    *(" ", "  ", "\t", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff", "\n", "\r\n", "\r", "\x00", "\x07", "\ufffd"),
    *(
        "e\u0301",
        "u\u0308",
        "A\u030a",
        "Å",
        "X\u0301",
        "か\u3099",
        "が",
        "ｶﾞ",
        "\u1100\u1161\u11a8",
        "각",
        "क्षि",
        "ß",
        "Ω",
    ),
    *("Ａ", "１", "½", "ﬁ", "ﷺ", "①", "㍿", "～", "…", "“", "’", "👍", "👩‍👩‍👧", "❤️", "©️", "🇫🇷", "한국어", "漢字", "▁"),
    *("<0x41>", "-----", "!!"),  # no letters that repeat: their paths tie
]


def corpus(size: int = 400) -> list[str]:
    """Sentences of known words and of words made up, the same ones each time."""
    generator = random.Random(0)
    known = WORDS.split()

    def one() -> str:
        made_up = "".join(generator.choices(SYLLABLES, k=generator.randint(1, 3)))
        return made_up if generator.random() < 0.6 else generator.choice(known)

    return [" ".join(one() for _ in range(generator.randint(2, 9))) for _ in range(size)]


def odd_lines(size: int) -> list[str]:
    generator = random.Random(1)
    words = [*WORDS.split(), *SYLLABLES]
    return [
        "".join(generator.choice(ODD if generator.random() < 0.6 else words) for _ in range(generator.randint(1, 12)))
        for _ in range(size)
    ]


def reloaded(tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedTokenizerFast:
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def trained() -> dict[str, PreTrainedTokenizerFast]:
    """One tokenizer of each kind."""
    return {kind: train(corpus(), kind, 600) for kind in KINDS}


@pytest.fixture(scope="module")
def loaded(trained, tmp_path_factory) -> dict[str, PreTrainedTokenizerFast]:
    """The same, saved and loaded."""
    return {kind: reloaded(trained[kind], tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_equals_trained(kind, trained, loaded):
    texts = [*corpus(50), *odd_lines(50), "a </s> <s>b<pad> <unk>", ""]
    assert loaded[kind](texts)["input_ids"] == trained[kind](texts)["input_ids"]
    assert len(loaded[kind]) == len(trained[kind]) <= 600
    check(loaded[kind], corpus())


@pytest.mark.parametrize("kind", KINDS)
def test_settings_survive_saving(kind, tmp_path):
    tokenizer = reloaded(train(corpus(50), kind, 600, max_length=77), tmp_path)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert [tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token] == list(SPECIAL_TOKENS)
    assert tokenizer.model_max_length == 77
    assert tokenizer.padding_side == "right"
    assert tokenizer.split_special_tokens is True
    assert tokenizer.clean_up_tokenization_spaces is False
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}
    written = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert written["truncation"] is None and written["padding"] is None
    assert written["model"].get("dropout") is None


@pytest.mark.parametrize("kind", KINDS)
def test_end_is_appended_and_start_is_not(kind, loaded):
    ids = loaded[kind]("un café")["input_ids"]
    assert ids[-1] == 2 and ids.count(2) == 1 and 1 not in ids
    assert loaded[kind]("")["input_ids"] == [2]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_written_in_a_text_are_text(kind, loaded):
    for text in ("</s>", "un</s> <pad>café<s> <unk></s></s>"):
        ids = loaded[kind](text)["input_ids"]
        assert ids.count(2) == 1 and 0 not in ids and 1 not in ids


def test_split_special_tokens_alone_would_not_keep_them_out():
    """The reason for the guard: when this fails, it can go."""
    bare = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bare.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>", split_special_tokens=True)
    assert tokenizer("</s>")["input_ids"] == [1]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(text=st.lists(st.one_of(st.text(max_size=12), st.sampled_from([*ODD, *SPECIAL_TOKENS]))).map("".join))
def test_bpe_gives_back_any_text(loaded, text):
    tokenizer = loaded["bpe"]
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids.count(2) == 1


def test_bytes_unseen_in_training_vanish_without_the_alphabet():
    """The reason for `initial_alphabet`: when this fails, it can go."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.train_from_iterator(["abc"], trainers.BpeTrainer(show_progress=False))
    assert bare.encode("a漢").tokens == ["a"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bpe"])
def test_unseen_characters_become_unknown(kind, loaded):
    ids = loaded[kind]("un 漢 café")["input_ids"]
    assert 3 in ids
    assert 3 not in loaded[kind]("un café")["input_ids"]


@pytest.mark.parametrize(
    ("kind", "text", "decoded"),
    [
        ("unigram", " un   café\tvu ", "un café vu"),
        ("wordpiece", "der  Hund , un café.", "der Hund, un café."),
        ("wordpiece", "(well-known), mother's", "( well - known ), mother ' s"),
        ("word", " un   café\tvu .", "un café vu ."),
        ("word_punct", "  un \n\n café\tvu . ", "un café vu ."),
        ("character", "  un  café vu ", "  un  café vu "),
    ],
)
def test_spacing_of_decoded_text(kind, text, decoded, loaded):
    tokenizer = loaded[kind]
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == decoded


PROSE = [
    '"Well," said Anna; "don\'t!" (She—or he--left; it’s 3,14.)',
    "…«Déjà vu», l'été: naïve_mother's well-known! ?",
    "Stepan Arkadyevitch...  a</s>b 漢字。",
]


def test_words_and_punctuation_come_back_with_their_spaces(tmp_path):
    tokenizer = reloaded(train(PROSE, "word_punct", 200, min_frequency=1), tmp_path)
    for text in PROSE:
        ids = tokenizer(text.replace(" ", " \n "))["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == " ".join(text.split())
    assert tokenizer.tokenize(PROSE[0])[:10] == ['▁"', "Well", ",", '"', "▁said", "▁Anna", ";", '▁"', "don't", "!"]
    assert tokenizer.tokenize("it’s l'été Anna▁said") == ["▁it’s", "▁l'été", "▁Anna", "▁said"]
    check(tokenizer, PROSE)


@pytest.mark.parametrize("kind", KINDS)
def test_eos_in_front(kind, tmp_path):
    tokenizer = reloaded(train(corpus(), kind, 600, eos_position="start"), tmp_path)
    ids = tokenizer("un café")["input_ids"]
    assert ids[0] == 2 and ids.count(2) == 1 and 1 not in ids
    assert tokenizer("")["input_ids"] == [2]
    assert tokenizer.padding_side == "left"
    check(tokenizer, corpus(50), "start")


@pytest.mark.parametrize("kind", ["bpe", "word_punct"])
def test_lowercase(kind, tmp_path):
    tokenizer = reloaded(train(corpus(50), kind, 600, lowercase=True), tmp_path)
    assert tokenizer("Un CAFÉ")["input_ids"] == tokenizer("un café")["input_ids"]
    assert tokenizer.decode(tokenizer("Un CAFÉ")["input_ids"], skip_special_tokens=True) == "un café"


def test_wordpiece_continues_words_with_hashes(loaded):
    tokens = loaded["wordpiece"].tokenize("stotingmilöw")
    assert len(tokens) > 1 and all(token.startswith("##") for token in tokens[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_trailing_newlines_are_not_learned(kind):
    tokenizer = train((f"{text}\r\n" for text in corpus(100)), kind, 600)
    vocabulary = [tokenizer.convert_ids_to_tokens(number) for number in range(len(tokenizer))]
    with_newline = [token for token in vocabulary if any(mark in token for mark in "\r\nĊč")]
    assert with_newline == (["Ċ", "č"] if kind == "bpe" else [])  # the bytes themselves, in GPT-2's writing


def test_reading_is_bounded():
    texts = iter(corpus(100))
    train(texts, "word", 50, max_texts=10)
    assert len(list(texts)) == 90


@pytest.mark.parametrize("kind", KINDS)
def test_bars_are_drawn_only_when_asked_for(kind, capfd):
    train(["a b c a b c"] * 20, kind, 300)
    assert capfd.readouterr().err == ""
    train(["a b c a b c"] * 20, kind, 300, show_progress=True)
    assert capfd.readouterr().err.endswith("\r\x1b[2K")  # what tokenizers leaves of its last bar is erased


def test_min_frequency():
    assert "rare" not in train(["often often rare"], "word", 50).get_vocab()
    assert "rare" in train(["often often rare"], "word", 50, min_frequency=1).get_vocab()
    assert "Ġrare" not in train(["often often rare"], "bpe", 300).get_vocab()
    assert "Ġrare" in train(["often often rare"], "bpe", 300, min_frequency=1).get_vocab()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "wordpeice"}, "did you mean 'wordpiece'.*bpe, unigram, wordpiece, word, word_punct, character"),
        ({"kind": "zzz"}, "'zzz' is unknown; choose from bpe"),
        ({"texts": []}, "no text"),
        ({"texts": ["", "\n", "  "]}, "no text"),
        ({"vocab_size": 259}, "259 is too small.*at least 260"),
        ({"kind": "unigram", "vocab_size": 20}, "20 is too small"),
        ({"kind": "wordpiece", "vocab_size": 20}, r"20 is too small.*at least \d\d"),
        ({"kind": "word", "vocab_size": 4}, r"vocab_size \(4\)"),
        ({"kind": "word", "texts": ["a b c"]}, "min_frequency"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(TokenizerError, match=message):
        train(**{"texts": corpus(50), **arguments})


def test_errors_of_the_texts_are_not_taken_for_the_trainers():
    def broken():
        yield "a text"
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        train(broken(), "unigram")


# SentencePiece


def sentencepiece_model(
    path: Path, lines: list[str], model_type: str, **options
) -> sentencepiece.SentencePieceProcessor:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        model_type=model_type,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **{"vocab_size": 700, **options},
    )
    path.write_bytes(written.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def assert_same_pieces(tokenizer, processor, lines: list[str]) -> None:
    wrong = [
        (line, processor.id_to_piece(expected), tokenizer.convert_ids_to_tokens(ids[:-1]))
        for line, ids in zip(lines, tokenizer(lines)["input_ids"], strict=True)
        if ids != [*(expected := processor.encode(line)), tokenizer.eos_token_id]
    ]
    assert not wrong, f"{len(wrong)} of {len(lines)} differ, such as {wrong[:3]}"


OPTIONS: dict[str, dict[str, object]] = {
    "default": {},
    "byte_fallback": {"byte_fallback": True},
    "identity": {"normalization_rule_name": "identity", "split_by_whitespace": False},
    "nfkc": {"normalization_rule_name": "nfkc", "add_dummy_prefix": False},
    "case_folding": {"normalization_rule_name": "nmt_nfkc_cf", "pad_id": 0, "unk_id": 3, "bos_id": -1},
    "all_spaces_kept": {"remove_extra_whitespaces": False},
    "symbols": {"user_defined_symbols": ["<sep>", "ing", "ba"], "control_symbols": ["<mask>"], "pad_id": 3},
    "space_symbols": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["▁▁", "▁▁▁▁", "\n"],
        "byte_fallback": True,
    },
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_import_segments_as_sentencepiece(model_type, options, tmp_path):
    odd = odd_lines(600)
    processor = sentencepiece_model(tmp_path / "m.model", corpus() + odd[:100], model_type, **OPTIONS[options])
    tokenizer = reloaded(import_sentencepiece(tmp_path / "m.model", max_length=64), tmp_path / "saved")
    lines = [*corpus(100), *odd, "", " ", "a<sep>b <sep>  ingba", "tingun", "un    ba     un      ba"]
    if "remove_extra_whitespaces" in OPTIONS[options]:
        # Of a text that its rules empty, SentencePiece leaves a lone ▁.
        lines = [line for line in lines if line.strip("\x07\x00")]
    assert_same_pieces(tokenizer, processor, lines)
    check(tokenizer, corpus(100))
    assert tokenizer.model_max_length == 64


@pytest.mark.parametrize("byte_fallback", [False, True])
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_import_segments_real_lines_as_sentencepiece(model_type, byte_fallback, tmp_path):
    if not REAL_LINES.is_file():
        pytest.skip(f"real data is not on this machine: {REAL_LINES}")
    with REAL_LINES.open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in itertools.islice(stream, 1000)]
    lines = [row[language] for row in rows for language in ("en", "de", "fr")]
    processor = sentencepiece_model(
        tmp_path / "m.model", lines[:1500], model_type, vocab_size=1500, byte_fallback=byte_fallback
    )
    tokenizer = import_sentencepiece(tmp_path / "m.model", max_length=80)
    assert_same_pieces(tokenizer, processor, lines[-1000:])
    if byte_fallback:
        assert tokenizer.decode(tokenizer("漢字 👍")["input_ids"], skip_special_tokens=True) == "漢字 👍"


def test_import_favours_symbols_whatever_score_was_written_for_them(tmp_path):
    sentencepiece_model(tmp_path / "m.model", corpus(), "unigram", user_defined_symbols=["un"])
    proto = SentencePieceExtractor(str(tmp_path / "m.model")).proto
    next(piece for piece in proto.pieces if piece.piece == "un").score = -99.0
    (tmp_path / "m.model").write_bytes(proto.SerializeToString())
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    assert "un" in processor.encode("raunku", out_type=str)
    assert_same_pieces(import_sentencepiece(tmp_path / "m.model"), processor, ["raunku", "unra un"])


def test_import_keeps_ids_and_adds_what_is_missing(tmp_path):
    processor = sentencepiece_model(
        tmp_path / "m.model", corpus(), "unigram", bos_id=-1, unk_id=0, eos_id=1, control_symbols=["<mask>"]
    )
    tokenizer = import_sentencepiece(tmp_path / "m.model")
    size = processor.get_piece_size()
    assert tokenizer.convert_ids_to_tokens(list(range(size))) == [processor.id_to_piece(i) for i in range(size)]
    assert (tokenizer.unk_token_id, tokenizer.eos_token_id) == (0, 1)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, len(tokenizer)) == (size, size + 1, size + 2)
    text = "un</s> <mask>café<unk><pad><s>"
    ids = tokenizer(text)["input_ids"]
    assert not {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("<mask>")} & set(ids)
    assert ids.count(tokenizer.eos_token_id) == 1
    mask = tokenizer.convert_tokens_to_ids("<mask>")
    assert tokenizer.decode([mask, *tokenizer("café")["input_ids"]], skip_special_tokens=True) == "café"


def test_precompiled_charsmap_alone_would_lose_accents(tmp_path):
    """The reason for what comes before it in the normalizer: when this fails, that can go."""
    sentencepiece_model(tmp_path / "m.model", corpus(), "bpe", normalization_rule_name="nmt_nfkc_cf")
    charsmap = SentencePieceExtractor(str(tmp_path / "m.model")).proto.normalizer_spec.precompiled_charsmap
    assert normalizers.Precompiled(charsmap).normalize_str("A\u030a") == "a"  # SentencePiece: å


def test_import_errors(tmp_path):
    text = tmp_path / "not_a_model.txt"
    text.write_text("some text\n" * 20)
    with pytest.raises(TokenizerError, match=r"not_a_model\.txt: this is not a SentencePiece model"):
        import_sentencepiece(text)
    (tmp_path / "empty.model").touch()
    with pytest.raises(TokenizerError, match=r"empty\.model.*no pieces"):
        import_sentencepiece(tmp_path / "empty.model")
    with pytest.raises(TokenizerError, match=r"nowhere\.model: cannot be read"):
        import_sentencepiece(tmp_path / "nowhere.model")
    sentencepiece_model(tmp_path / "word.model", corpus(), "word")
    with pytest.raises(TokenizerError, match="only SentencePiece models of type unigram or bpe"):
        import_sentencepiece(tmp_path / "word.model")
    sentencepiece_model(tmp_path / "suffix.model", corpus(), "bpe", treat_whitespace_as_suffix=True)
    with pytest.raises(TokenizerError, match="treat_whitespace_as_suffix"):
        import_sentencepiece(tmp_path / "suffix.model")
    sentencepiece_model(tmp_path / "symbol.model", corpus(), "bpe", user_defined_symbols=["Ａ"])
    with pytest.raises(TokenizerError, match="user-defined symbol 'Ａ'"):
        import_sentencepiece(tmp_path / "symbol.model")
