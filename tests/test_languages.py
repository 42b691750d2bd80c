"""Codes of languages, as the Hub's filters know them."""

import pytest

from pipeline.languages import CODES, check_languages, hub_code, known_code


def test_two_letters_are_known_and_three_have_a_form():
    assert len(CODES) == 184 and {"en", "fr", "no", "zh"} <= CODES
    tags = ["no", "ceb", "pt-BR", "zh-Hant-TW", "multilingual"]
    assert check_languages(tags) == tags and check_languages(None) is None


@pytest.mark.parametrize("tag", ["english", "EN", "xx", "e", "", "en_US", "en fr", "en-", "en\n", "fr, en"])
def test_what_is_no_language_is_refused(tag):
    with pytest.raises(ValueError, match="is not the code of a language; write two or three small letters of ISO 639"):
        check_languages(["en", tag])


def test_the_hub_has_the_shortest_code_without_region():
    tags = {"pt-BR": "pt", "eng": "en", "arb": "ar", "ceb": "ceb", "no": "no"}
    assert {tag: hub_code(tag) for tag in tags} == tags


def test_names_of_columns_and_tags_of_tokenizers_may_be_languages():
    names = {
        "fr": "fr",
        "fr_XX": "fr",
        "fra_Latn": "fr",
        "ceb_Latn": "ceb",
        "zho_Hans": "zh",
        "pt-BR": "pt",
        "eng": "en",
    }
    assert {name: known_code(name) for name in names} == names
    for name in ("source", "text", "french", "php", "go", "__java__", "sum_a", "", "_", "EN"):
        assert known_code(name) is None, name
