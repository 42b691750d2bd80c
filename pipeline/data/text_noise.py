"""Noise on the texts of training rows, before they are encoded: casing, dropped end punctuation, swapped letters.

Systems that saw clean sentences only fail on headlines, chat and typing errors. The kinds are those of OpusTrainer
(UpperCase, TitleCase, RemoveEndPunct, Typos), with which Mozilla trains its translators; for its rates see its
configs: https://github.com/hplt-project/OpusTrainer, https://arxiv.org/abs/2311.14838 and
https://github.com/mozilla/translations/tree/main/pipeline/train/configs/opustrainer.

    upper_case              a dog runs. | ein Hund läuft.  ->  A DOG RUNS. | EIN HUND LÄUFT.
    title_case              a dog runs. | ein Hund läuft.  ->  A Dog Runs. | Ein Hund Läuft.
    drop_end_punctuation    a dog runs. | ein Hund läuft.  ->  a dog runs | ein Hund läuft
    swap_letters            a black dog | ein Hund         ->  a balck dog | ein Hund

What a translation shows as well is changed on both sides; typing errors are to be translated as if they were none.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import regex

from pipeline.config import AugmentationConfig
from pipeline.data.rows import Columns, Encode, Feature, first_text, separate
from pipeline.data_config import DataConfig
from pipeline.languages import known_code

DOTTED = ("az", "tr")  # languages whose i is İ in upper case: https://www.unicode.org/Public/UNIDATA/SpecialCasing.txt
# https://unicode-org.github.io/icu/userguide/transforms/casemappings.html
GREEK_LETTER = regex.compile(r"\p{Greek}\p{M}*")
GREEK_ACCENTS = "\u0300\u0301\u0313\u0314\u0342"  # grave, acute, breathings, circumflex; the diaeresis stays
# The accent on the first of two vowels says that they are two sounds; without it the second has a diaeresis: μάιος.
GREEK_HIATUS = regex.compile(r"(?<=[άέόΆΈΌ]|[αεοΑΕΟ]\u0301)[ιυΙΥ](?!\u0308)")
FIRST_LETTER = regex.compile(r"(?<!\S)([^\p{L}\p{N}\s]*)(\p{L}\u0307?)")  # behind quotes and brackets, if any
# Letters as a reader sees them, with their accents, in scripts that put spaces between words.
LETTER = r"(?:(?=\p{L})(?!\p{LB=Ideographic}|\p{LB=Conditional_Japanese_Starter}|\p{LB=Complex_Context})\X)"
WORD = regex.compile(rf"{LETTER}{{4,}}")
CLUSTER = regex.compile(r"\X")
# Ends of sentences of all scripts, the three dots, and Greek question marks.
END = r"(?:[\p{Sentence_Terminal}…\u037e]|(?<=\p{Greek}\p{P}?);)"
ENDS = regex.compile(rf"(?<!\s)\s*+{END}+")
TAIL = regex.compile(
    rf"(?r)(?:{END}|[\s\p{{Pe}}\p{{Pf}}\p{{Quotation_Mark}}])*\Z"
)  # read from its end, or it takes long
OPENED = regex.compile(r"[¿¡](?=[^?!]*$)")  # and not closed

Texts = Mapping[str, Any]


class TextNoise:
    """Change the texts of a row, each kind of noise at its own rate.

    Rates are shares of the rows, but that of `swap_letters`, which is the share of words of four letters or more. A row
    is put in upper case or in title case, not both.

    Args:
        rates: by the names of `TEXT_RATES`.
        columns: those of the texts; letters are swapped in "source" only.
        languages: of a column's texts, as far as known, in rows that do not name theirs.
    """

    def __init__(self, rates: Mapping[str, float], columns: Sequence[str], languages: Mapping[str, str | None]):
        self.rates, self.columns, self.languages = rates, columns, languages

    def __call__(self, row: Texts, generator: np.random.Generator) -> dict[str, Any]:
        """Return the columns that are changed, with their texts; none where the row stays as it is."""
        case_draw, end_draw = generator.random(2)
        recase = self._choose_case(case_draw)
        changed = {}
        for column in self.columns:
            text = before = first_text(row[column])
            if not isinstance(text, str):  # a bad row
                return {}
            if end_draw < self.rates["drop_end_punctuation"]:
                text = drop_end_punctuation(text)
            if column == "source":
                text = swap_letters(text, self.rates["swap_letters"], generator)
            if recase is not None:
                text = recase(text, self._language(row, column))
            if text != before:
                changed[column] = text
        return changed

    def _language(self, row: Texts, column: str) -> str | None:
        code = row.get(f"{column}_lang")
        return (known_code(code) if isinstance(code, str) else None) or self.languages.get(column)

    def _choose_case(self, draw: float) -> Callable[[str, str | None], str] | None:
        if draw < self.rates["upper_case"]:
            return upper_case
        return title_case if draw < self.rates["upper_case"] + self.rates["title_case"] else None


def make_noise(augmentation: AugmentationConfig, data: DataConfig, columns: Sequence[str]) -> dict[str, TextNoise]:
    """Return the noise of each corpus, by its name, where a config has any.

    The language of a side is that of the row or of the corpus, or that by which its column is named.

    Args:
        columns: those of the texts.
    """
    noise = {}
    for name, corpus in data.corpora.items():
        rates = augmentation.text_rates(name)
        if any(rates.values()):
            languages = {side: known_code(getattr(corpus, side).split(".")[-1]) for side in ("source", "target")}
            noise[name] = TextNoise(rates, columns, languages)
    return noise


def add_noise(
    features: list[Feature], columns: Columns, noise: TextNoise, encode: Encode, seed: Sequence[int]
) -> list[Feature]:
    """Encode anew the rows that noise changes; one that would be too long or empty stays as it is.

    Args:
        features: of the good rows among `columns`, as they are without noise.
        encode: what made them of the columns.
        seed: of the pass; a row's noise follows from this and its number.
    """
    places = {row: place for place, row in enumerate(columns["row"])}
    noisy: Columns = {name: [] for name in columns}
    for feature in features:
        number = feature["sample_id"]
        row = {name: values[places[number]] for name, values in columns.items()}
        # The 2 keeps these seeds apart from others.
        if changed := noise(row, np.random.default_rng((*seed, number, 2))):
            for name, value in (row | changed).items():
                noisy[name].append(value)
    good, _ = separate(encode(noisy))
    new = {feature["sample_id"]: feature for feature in good}
    return [new.get(feature["sample_id"], feature) for feature in features]


def upper_case(text: str, language: str | None = None) -> str:
    """Put a text in upper case, as its language does: `straße` STRASSE, Turkish `ilk` İLK, Greek `μάιος` ΜΑΪΟΣ.

    Greek has no accents there, which Python leaves. Scripts without case stay.
    """
    text = _dot(text, language)
    text = GREEK_HIATUS.sub(lambda vowel: vowel[0] + "\u0308", text)
    return GREEK_LETTER.sub(lambda letter: _without_accents(letter[0]), text.upper())


def title_case(text: str, language: str | None = None) -> str:
    """Put the first letter of each word in upper case, and leave the others as they are, as in `NATO` or `McDonald`."""

    def begin(word: regex.Match[str]) -> str:
        return word[1] + _dot(word[2], language).title()

    if language == "nl":  # IJsland
        text = regex.sub(r"(?<![\p{L}\p{N}])ij(?=\p{L})", "IJ", text)
    return FIRST_LETTER.sub(begin, text)


def _dot(text: str, language: str | None) -> str:
    return regex.sub("i\u0307?", "İ", text) if language in DOTTED else text


def _without_accents(letter: str) -> str:
    decomposed = unicodedata.normalize("NFD", letter)
    return unicodedata.normalize("NFC", "".join(mark for mark in decomposed if mark not in GREEK_ACCENTS))


def drop_end_punctuation(text: str) -> str:
    """Leave out what ends the last sentence, in any script, with the space before it.

    Closing quotes and brackets behind it stay, and a `¿` that it closed goes: `¿Qué? (¿Quién?)` -> `¿Qué? (Quién)`.
    """
    dropped = ENDS.sub("", text, pos=TAIL.search(text).start())
    return text if dropped == text else OPENED.sub("", dropped).rstrip()


def swap_letters(text: str, rate: float, generator: np.random.Generator) -> str:
    """Swap two neighbours in some words of four letters or more, not the first letter nor the last.

    So Belinkov & Bisk 2018 (https://arxiv.org/abs/1711.02173) do. A letter is one with all its accents, as a reader
    sees it. Scripts without spaces between words have no such typing errors, and stay.

    Args:
        rate: share of these words that are changed.
    """
    if not rate:
        return text
    pieces, end = [], 0
    words = [*WORD.finditer(text)]
    for word, draw in zip(words, generator.random((len(words), 2)), strict=True):
        if draw[0] < rate:
            pieces += [text[end : word.start()], _swap(CLUSTER.findall(word[0]), draw[1])]
            end = word.end()
    return "".join([*pieces, text[end:]])


def _swap(letters: list[str], draw: float) -> str:
    """Swap one pair of neighbours that differ, drawn from all of them by a number from 0 to 1."""
    places = [place for place in range(1, len(letters) - 2) if letters[place] != letters[place + 1]]
    if places:
        place = places[int(draw * len(places))]
        letters[place], letters[place + 1] = letters[place + 1], letters[place]
    return "".join(letters)
