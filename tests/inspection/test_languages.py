"""The languages of rows."""

import sys

import pytest

from tests.inspection.faulty import config_of, look, rows_of, write


def test_languages(tmp_path):
    pytest.importorskip("py3langid")
    english = "The man is walking down the street with a dog."
    rows = [{"en": english, "xy": "Der Mann geht mit einem Hund auf der Straße spazieren."} for _ in range(4)]
    rows += [{"en": "Ceci est une phrase en français, pas en anglais.", "xy": english}]
    data = {"source": "en", "target": "xy", "validation": None}
    languages = look(config_of(write(tmp_path / "data", train=rows), data=data))[0].languages
    assert languages["source"].expected == "en" and languages["source"].is_given
    assert languages["source"].counts == {"en": 4, "fr": 1} and rows_of(languages["source"].other) == ["5"]
    assert languages["target"].expected == "de" and not languages["target"].is_given  # as most rows are
    assert languages["target"].other.count == 1


def test_without_the_extra(pairs, monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    assert look(config_of(pairs))[0].languages is None
