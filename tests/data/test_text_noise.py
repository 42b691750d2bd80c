"""Noise on texts: what it does in several scripts, and which rows of which corpus have it."""

import time

import numpy as np
import pytest

from pipeline.config import AugmentationConfig, DataConfig
from pipeline.data.rows import BadRow, Columns
from pipeline.data.text_noise import (
    TextNoise,
    add_noise,
    drop_end_punctuation,
    make_noise,
    swap_letters,
    title_case,
    upper_case,
)

NONE = {"upper_case": 0.0, "title_case": 0.0, "drop_end_punctuation": 0.0, "swap_letters": 0.0}
PAIR = {"source": "a black dog runs.", "target": "ein schwarzer Hund läuft."}


def make(**rates) -> TextNoise:
    return TextNoise({**NONE, **rates}, ("source", "target"), {})


@pytest.mark.parametrize(
    "text, language, expected",
    [
        ("straße, ﬁn", None, "STRASSE, FIN"),
        ("ilk ışık i\u0307n", "tr", "İLK IŞIK İN"),
        ("ilk", "en", "ILK"),
        ("Οδυσσεύς, μάιος, μα\u0301ιος, Ταΐζω, ᾠδή", None, "ΟΔΥΣΣΕΥΣ, ΜΑΪΟΣ, ΜΑΪΟΣ, ΤΑΪΖΩ, ΩΙΔΗ"),
        ("e\u0301te\u0301", "fr", "E\u0301TE\u0301"),  # only Greek is composed
        ("東京 สวัสดี مرحبا नमस्ते", None, "東京 สวัสดี مرحبا नमस्ते"),
    ],
)
def test_upper_case(text, language, expected):
    assert upper_case(text, language) == expected


@pytest.mark.parametrize(
    "text, language, expected",
    [
        ("l'homme «la vie»  (le chat)\tmcDonald NATO 3rd", "fr", "L'homme «La Vie»  (Le Chat)\tMcDonald NATO 3rd"),
        ("ilk ışık", "tr", "İlk Işık"),
        ("ijs bij zij", "nl", "IJs Bij Zij"),
        ("e\u0301te\u0301 ǆep άλφα ßa", None, "E\u0301te\u0301 ǅep Άλφα Ssa"),
        ("東京 สวัสดี", None, "東京 สวัสดี"),
    ],
)
def test_title_case(text, language, expected):
    assert title_case(text, language) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A dog.", "A dog"),
        ("Quoi ?", "Quoi"),
        ("« Bonjour\u202f! »", "« Bonjour »"),
        ('He said "go!".', 'He said "go"'),
        ("Wait... ", "Wait"),
        ("¿Qué? ¡Hola, ¿quién?!", "¿Qué? Hola, quién"),
        ("(走！)", "(走)"),
        ("走。」", "走」"),
        ("ठीक है।", "ठीक है"),
        ("كيف؟", "كيف"),
        ("Τι κάνεις;", "Τι κάνεις"),
        ("He paid;", "He paid;"),
        ("3.5 of a.b", "3.5 of a.b"),
        (" none ", " none "),
        ("...", ""),
    ],
)
def test_end_punctuation(text, expected):
    assert drop_end_punctuation(text) == expected


def test_swapped_letters_are_two_neighbours_inside_a_word():
    seen = {swap_letters("a black dog, aaaa", 1.0, np.random.default_rng(seed)) for seed in range(20)}
    assert seen == {"a balck dog, aaaa", "a blcak dog, aaaa"}


def test_letters_stay_whole():
    """With their accents, and in scripts without spaces as they are."""
    generator = np.random.default_rng(0)
    assert swap_letters("ne\u0301te", 1.0, generator) == "nte\u0301e"
    assert swap_letters("안녕하세", 1.0, generator) == "안하녕세"
    for text in ("東京都庁舎", "สวัสดีครับ", "👩‍👩‍👧👩‍👩‍👦🇫🇷🇩🇪", "नमस्ते", "12345", ""):
        assert swap_letters(text, 1.0, generator) == text


def test_swaps_are_a_share_of_the_words():
    words = swap_letters("black " * 2000, 0.1, np.random.default_rng(0)).split()
    assert 0.08 < np.mean([word != "black" for word in words]) < 0.12


@pytest.mark.parametrize(
    "text", ["." * 5000 + "x", " " * 5000 + "x", "x" + " " * 5000, ".)" * 5000, "¿" * 2000, "a" * 5000]
)
def test_strange_texts_take_no_time(text):
    start = time.process_time()
    for change in (drop_end_punctuation, title_case, upper_case):
        change(text)
    swap_letters(text, 1.0, np.random.default_rng(0))
    assert time.process_time() - start < 1


def test_both_sides_are_recased_together_and_only_sources_misspelt():
    noise = make(upper_case=0.2, title_case=0.2, drop_end_punctuation=0.3, swap_letters=0.1)
    changed = [PAIR | noise(PAIR, np.random.default_rng(seed)) for seed in range(2000)]
    sides = [(row["source"], row["target"]) for row in changed]
    for is_so, share in ((str.isupper, 0.2), (lambda text: text[0].isupper() and not text.isupper(), 0.2)):
        assert abs(np.mean([is_so(source) for source, _ in sides]) - share) < 0.03
    assert all(source.isupper() == target.isupper() for source, target in sides)
    assert all(source.endswith(".") == target.endswith(".") for source, target in sides)
    assert abs(np.mean([not source.endswith(".") for source, _ in sides]) - 0.3) < 0.03
    assert {target.lower().rstrip(".") for _, target in sides} == {"ein schwarzer hund läuft"}
    assert len({source.lower().rstrip(".") for source, _ in sides}) > 3


def test_a_rate_does_not_change_what_another_draws():
    alone = [make(upper_case=0.5)(PAIR, np.random.default_rng(seed)) for seed in range(50)]
    beside = [make(upper_case=0.5, swap_letters=0.5)(PAIR, np.random.default_rng(seed)) for seed in range(50)]
    assert [row.get("target") for row in alone] == [row.get("target") for row in beside]


def test_rows_that_stay():
    generator = np.random.default_rng(0)
    noise = make(upper_case=1.0, drop_end_punctuation=1.0)
    assert make()(PAIR, generator) == {} == noise({"source": "東京", "target": "1"}, generator)
    assert noise({"source": "a.", "target": None}, generator) == {}
    assert noise({"source": "A", "target": ["b.", "c."]}, generator) == {"target": "B"}  # the one that is learned


def test_languages_of_rows_and_columns():
    noise = make_noise(AugmentationConfig(upper_case=1.0), DataConfig(path="x", source="text.tr"), ("source", "target"))
    generator = np.random.default_rng(0)
    row = {"source": "ilk", "target": "ilk"}
    assert noise[""](row, generator) == {"source": "İLK", "target": "ILK"}
    row |= {"source_lang": "de", "target_lang": "azj_Latn"}
    assert noise[""](row, generator) == {"source": "ILK", "target": "İLK"}
    assert noise[""](row | {"source_lang": 5}, generator)["source"] == "İLK"  # a bad row, which a tokenizer may see


def test_rates_of_a_mixture():
    data = DataConfig.model_validate({"mix": {name: {"path": name} for name in ("clean", "mined", "back")}})
    augmentation = AugmentationConfig(upper_case={"mined": 0.5, "back": 0.0}, swap_letters={"mined": 0.1})
    noise = make_noise(augmentation, data, ("source",))
    assert {name: of_corpus.rates for name, of_corpus in noise.items()} == {
        "mined": {**NONE, "upper_case": 0.5, "swap_letters": 0.1}
    }
    assert {*make_noise(AugmentationConfig(upper_case=0.5), data, ("source",))} == {"clean", "mined", "back"}
    assert not make_noise(AugmentationConfig(swap=0.5), data, ("source",))


def test_what_becomes_too_long_or_empty_stays():
    def encode(columns):
        rows = zip(columns["row"], columns["source"], strict=True)
        return [
            {"sample_id": number, "source": text} if 0 < len(text) < 7 else BadRow(f"row {number}", "length")
            for number, text in rows
        ]

    columns: Columns = {"row": [5, 3, 8, 2], "source": ["ab.", "ßßßß.", "...", "bad one"]}
    before = [feature for feature in encode(columns) if not isinstance(feature, BadRow)]
    noise = TextNoise({**NONE, "upper_case": 1.0, "drop_end_punctuation": 1.0}, ("source",), {})
    after = add_noise(before, columns, noise, encode, (0, 0))
    assert [(feature["sample_id"], feature["source"]) for feature in after] == [(5, "AB"), (3, "ßßßß."), (8, "...")]
    assert before[0]["source"] == "ab." == columns["source"][0]
