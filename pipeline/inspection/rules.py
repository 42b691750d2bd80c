"""What each rule of `data.filters` would take by itself: those of the config, and the others at a usual value."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.data.filters import RULES, Candidate
from pipeline.data.rows import first_text
from pipeline.data_config import FiltersConfig
from pipeline.inspection.rows import Example, Found, Row, Sample

USUAL = {
    "drop_identical": True,
    "max_word_length": 40,  # as OpusFilter's LongWordFilter
    "min_script_share": 0.5,  # of the scripts that the first rows are written in
    "match_digits": True,
    "max_length_ratio": 3,  # as OpusFilter's LengthRatioFilter
    "drop_held_out": True,
    "drop_duplicates": True,
}
OF_ALL_ROWS = ("drop_held_out", "drop_duplicates")  # which no row shows by itself
SCRIPTS = (  # that a side may be written in
    "Arabic Armenian Bengali Cyrillic Devanagari Ethiopic Georgian Greek Gujarati Gurmukhi Han Hangul Hebrew Hiragana "
    "Kannada Katakana Khmer Lao Latin Malayalam Myanmar Oriya Sinhala Tamil Telugu Thai Tibetan"
)
MIN_SCRIPT = 0.1  # of the letters, from which on a script belongs to a side


@dataclass(frozen=True)
class Trial:
    """What a rule of `data.filters` would take by itself.

    Attributes:
        is_on: whether the config asks for it; else a usual value was tried.
    """

    value: Any
    is_on: bool
    found: Found


class Rules:
    """The rules that are tried on the rows of a corpus.

    Args:
        filters: those of the corpus.
        names: of the columns with texts.
        first_rows: which show the scripts.
    """

    def __init__(self, filters: FiltersConfig, names: Sequence[str], first_rows: Sequence[Row]):
        usual = USUAL | {"min_script_share": {name: _usual_scripts(name, first_rows) for name in names}}
        self.values = {
            name: (filters.rules.get(name, usual[name]), name in filters.rules)
            for name, rule in RULES.items()
            if len(names) > 1 or not rule.compares_sides
        }
        self.taken = {name: Sample() for name in self.values if name not in OF_ALL_ROWS}

    def add(self, number: int, example: Example, candidate: Candidate) -> None:
        """Try all rules on a row."""
        for name, sample in self.taken.items():
            if (reason := RULES[name].find(candidate, self.values[name][0])) is not None:
                sample.add((number, replace(example, reason=reason)))

    def describe(self, **of_all_rows: Found) -> dict[str, Trial]:
        """Return what each rule would take; the names of `OF_ALL_ROWS` are given what was found elsewhere."""
        found = {name: sample.found() for name, sample in self.taken.items()} | of_all_rows
        return {name: Trial(*value, found[name]) for name, value in self.values.items()}


def _usual_scripts(name: str, rows: Iterable[Row]) -> dict[str, float]:
    """Return the scripts in which most letters of some rows are, with the usual share."""
    letters = Counter(
        _script(character)
        for row in rows
        if isinstance(text := first_text(row.get(name)), str)
        for character in text
        if character.isalpha()
    )
    least = MIN_SCRIPT * letters.total()
    scripts = [script for script in SCRIPTS.split() if letters[script] and letters[script] >= least]
    return {"+".join(scripts): USUAL["min_script_share"]} if scripts else {}


def _script(letter: str) -> str:
    """Return the script of a letter by the first word of its name."""
    word = unicodedata.name(letter, "").split(" ")[0].title()
    return "Han" if word == "Cjk" else word
