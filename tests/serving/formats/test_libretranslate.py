"""LibreTranslate: forms and JSON, lists, alternatives, and the key in a body."""

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")


def test_libretranslate_takes_forms_and_lists_and_gives_alternatives(client):
    translator = client()
    one = translator.post("/translate", data={"q": "a b", "source": "en", "target": "fr", "alternatives": "2"}).json()
    assert len(one["alternatives"]) == 2
    several = translator.post("/translate", json={"q": ["a b", "", "c"], "target": "fr"}).json()
    plain = translator.post("/translate", json={"q": "a b", "target": "fr"}).json()
    assert several["translatedText"][:2] == [plain["translatedText"], ""]
    assert plain["detectedLanguage"]["language"] == "en" and "alternatives" not in plain
    assert translator.get("/languages").json() == [{"code": "en", "name": "en", "targets": ["fr"]}]
    assert translator.get("/health").json() == {"status": "ok"}
    assert translator.post("/translate", json={"q": "a", "target": "fr", "format": "html"}).status_code == 400


def test_libretranslate_carries_the_token_in_its_body(client):
    model = client(token="s3cret")
    asked = {"q": "a", "source": "en", "target": "fr"}
    for key, status in (("s3cret", 200), ("wrong", 403), (["s3cret"], 403)):
        assert model.post("/translate", json={**asked, "api_key": key}).status_code == status
    assert model.post("/translate", data={**asked, "api_key": "s3cret"}).status_code == 200
    assert model.request("GET", "/languages", data={"api_key": "s3cret"}).status_code == 200
    assert model.get("/languages").status_code == 403
