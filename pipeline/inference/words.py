"""Texts cut into words in any language, for counting and for showing; scores have their own rules."""

import unicodedata
from collections.abc import Sequence
from functools import cache

# Scripts that are written without spaces between words, as the names of their letters begin in Unicode.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
LETTERS, UNSPACED_LETTER, SPACE, SIGN, MARK = "letters", "unspaced letter", "space", "sign", "mark"


def split_words(text: str) -> Sequence[str]:
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
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


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
