"""DeepL: forms and JSON, and what is refused."""

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")


def test_deepl_takes_a_form_and_refuses_what_it_lacks(client):
    translator = client()
    form = translator.post("/v2/translate", data={"text": ["a b", "c"], "target_lang": "FR"}).json()["translations"]
    assert [one["billed_characters"] for one in form] == [3, 1]
    refused = translator.post("/v2/translate", json={"text": ["a"], "target_lang": "FR", "tag_handling": "html"})
    assert refused.status_code == 400 and "tag_handling" in refused.json()["message"]
    assert translator.get("/v2/usage").json()["character_count"] == 4
