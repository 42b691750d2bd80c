"""Texts cut into words in any language, to count and to compare them; scores have their own rules."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from itertools import groupby, pairwise
from operator import itemgetter

# Scripts that are written without spaces between words, as the names of their letters begin in Unicode.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
MOST_PLACES = 4_000_000  # of two texts' words, each of which is compared with each
LETTERS, UNSPACED_LETTER, SPACE, SIGN, MARK = "letters", "unspaced letter", "space", "sign", "mark"


@dataclass(frozen=True)
class Piece:
    """A part of a text, and whether the other system's text lacks it there."""

    text: str
    differs: bool


def split_words(text: str) -> list[str]:
    """Cut a text into words, spaces and signs, which joined are the text.

    A word is a run of letters and digits; where a script has no spaces between words, each letter is one. Marks, such
    as accents and vowel signs, stay with what they stand on.
    """
    starts: list[int] = []
    previous = None
    for place, character in enumerate(text):
        kind = _kind(character)
        joins = place > 0 and (kind == MARK or (kind == previous and kind in (LETTERS, SPACE)))
        if not joins:
            starts.append(place)
        if kind != MARK:
            previous = kind
    return [text[start:end] for start, end in pairwise([*starts, len(text)])]


def is_word(part: str) -> bool:
    """Tell whether a part of a text is a word, not spaces or a sign."""
    return _kind(part[0]) in (LETTERS, UNSPACED_LETTER)


@cache
def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] == "M" or category == "Cf":  # joiners and marks of direction as well
        return MARK
    if category[0] in "LN":
        is_unspaced = unicodedata.name(character, "").startswith(UNSPACED)
        return UNSPACED_LETTER if is_unspaced else LETTERS
    return SPACE if category[0] == "Z" or category == "Cc" else SIGN


def mark_differences(first: str, second: str) -> tuple[list[Piece], list[Piece]]:
    """Cut two texts into pieces that both have, in order, and pieces that only one has; words stay whole."""
    words = split_words(first), split_words(second)
    start = _count_equal(*words)
    end = _count_equal(words[0][start:][::-1], words[1][start:][::-1])
    middle = [text[start : len(text) - end] for text in words]
    matcher = SequenceMatcher(None, middle[0], middle[1], autojunk=False)
    is_long = len(middle[0]) * len(middle[1]) > MOST_PLACES  # it would take minutes
    pieces = []
    for side, text in enumerate(words):
        differs = [start <= place < len(text) - end for place in range(len(text))]
        for block in [] if is_long else matcher.get_matching_blocks():
            place = start + block[side]
            differs[place : place + block.size] = [False] * block.size
        pieces.append(_join(text, differs))
    return pieces[0], pieces[1]


def _join(words: Sequence[str], differs: Sequence[bool]) -> list[Piece]:
    """Join words to pieces; a space differs where the words on both its sides do."""
    around = [
        all([*differs[max(place - 1, 0) : place], *differs[place + 1 : place + 2]]) if word.isspace() else is_different
        for place, (word, is_different) in enumerate(zip(words, differs, strict=True))
    ]
    runs = groupby(zip(words, around, strict=True), key=itemgetter(1))
    return [Piece("".join(word for word, _ in run), is_different) for is_different, run in runs]


def _count_equal(first: Sequence[str], second: Sequence[str]) -> int:
    """Return how many words two texts begin with together."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
