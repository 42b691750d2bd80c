"""Which languages and settings a model takes."""

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from tests.serving.samples import post, text_of


def test_languages_are_known_by_any_of_their_names(client):
    model = client(languages=("fr", "de_DE"))
    answers = {}
    for code in ("fr", "FR", "fr-CA", "de", "DE", "de_DE"):
        response = model.post("/v2/translate", json={"text": ["a b c"], "target_lang": code})
        answers[code] = text_of("deepl", response)
    assert answers["fr"] == answers["FR"] == answers["fr-CA"] != answers["de"]
    assert answers["de"] == answers["DE"] == answers["de_DE"]
    for code, message in (("ja", "'ja'; choose from fr"), ("", "missing")):
        refused = model.post("/translate", json={"q": "a", "source": "xx", "target": code})
        assert refused.status_code == 400 and message in refused.json()["error"], refused.text
    assert [one["language"] for one in model.get("/v2/languages?type=target").json()] == ["FR", "DE_DE"]
    assert post(client(), "deepl").status_code == 200, "a model without languages takes any"


def test_settings_that_the_model_cannot_honour_are_refused(client):
    model = client()
    for settings in ({"num_beams": 99}, {"max_new_tokens": 10**6}, {"top_p": 2}, {"nothing": 1}, {"temperature": 0}):
        refused = model.post("/api/answer", json={"text": "a", "settings": settings})
        assert refused.status_code == 400 and next(iter(settings)) in refused.json()["error"], refused.text
    for name, value in (
        ("bad_words_ids", [[5]]),
        ("cache_implementation", "static"),
        ("max_time", 1.0),
        ("max_length", 3),
    ):
        refused = model.post("/", json={"inputs": "a", "parameters": {"generate_parameters": {name: value}}})
        assert refused.status_code == 400 and f"{name} cannot be set" in refused.json()["error"], refused.text
    wrong = {"generate_parameters": {"num_beans": 3}}
    refused = model.post("/", json={"inputs": "a", "parameters": wrong})
    assert refused.status_code == 400 and "did you mean num_beams" in refused.json()["error"]
