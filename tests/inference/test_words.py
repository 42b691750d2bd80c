"""Texts cut into words, and two of them compared."""

import pytest

from pipeline.inference.words import Piece, is_word, mark_differences, split_words


@pytest.mark.parametrize(
    "text, words",
    [
        ("A dog's 2 toys, red.", ["A", "dog", "s", "2", "toys", "red"]),
        ("我爱 Python。", ["我", "爱", "Python"]),
        ("ひらカナ", ["ひ", "ら", "カ", "ナ"]),
        ("ที่", ["ที่"]),  # a letter with its vowel sign and its tone
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("مرحبا، يا عالم", ["مرحبا", "يا", "عالم"]),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),  # accents of their own
        ("", []),
        ("\u0301 \n", []),  # a mark on nothing
        ("👩‍👩‍👧 ok", ["ok"]),
    ],
)
def test_words_of_any_script(text, words):
    parts = split_words(text)
    assert "".join(parts) == text
    assert [part for part in parts if is_word(part)] == words


def marked(pieces: list[Piece]) -> str:
    return "".join(f"[{piece.text}]" if piece.differs else piece.text for piece in pieces)


@pytest.mark.parametrize(
    "first, second, marks",
    [
        ("a big red dog", "a small dog", ("a [big red] dog", "a [small] dog")),
        ("a dog", "a dog", ("a dog", "a dog")),
        ("a dog", "a very big dog", ("a dog", "a [very big] dog")),
        ("one cat", "two dogs", ("[one cat]", "[two dogs]")),
        ("", "a dog", ("", "[a dog]")),
        ("", "", ("", "")),
        ("a  dog", "a dog", ("a  dog", "a dog")),  # spaces are not shown
        ("我爱猫", "我爱狗", ("我爱[猫]", "我爱[狗]")),
        ("a a a", "a a", ("a a [a]", "a a")),
    ],
)
def test_what_only_one_text_has_is_marked(first, second, marks):
    pieces = mark_differences(first, second)
    assert tuple("".join(piece.text for piece in side) for side in pieces) == (first, second)
    assert (marked(pieces[0]), marked(pieces[1])) == marks


def test_very_long_texts_end_soon():
    first, second = "start " + "a b " * 3000 + "end", "start " + "b c " * 3000 + "end"
    pieces = mark_differences(first, second)
    assert pieces[0][0] == Piece("start ", False) and pieces[0][-1] == Piece(" end", False)
    assert sum(len(piece.text) for piece in pieces[0] if piece.differs) > 10_000
