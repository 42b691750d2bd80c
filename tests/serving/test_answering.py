"""Which languages and settings a model takes."""

import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from pipeline.exporting.export import export
from pipeline.serving.answering import load_served
from tests.serving.samples import post, text_of


def test_languages_are_known_by_any_of_their_names(client):
    model = client(languages=("fr", "de_DE"))
    answers = {}
    for code in ("fr", "FR", "fr-CA", "de", "DE", "de_DE"):
        response = model.post("/v2/translate", json={"text": ["a b c"], "target_lang": code})
        answers[code] = text_of("deepl", response)
    assert answers["fr"] == answers["FR"] == answers["fr-CA"] != answers["de"]
    assert answers["de"] == answers["DE"] == answers["de_DE"]
    for code, message in (
        ("ja", "'ja'; choose from fr"),
        ("", "missing"),
        ("f" * 900_000, "is not the code of a language; choose from fr"),
    ):
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


def test_a_checkpoint_is_served_by_the_name_of_its_folder(finished_folder, client):
    served = load_served(str(finished_folder), dtype="bfloat16")
    assert served.name == finished_folder.name and served.model.dtype == torch.bfloat16
    assert client(model=served).post("/", json={"inputs": "1 2 3"}).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ctranslate2", "onnx"])
def test_exports_answer_as_the_model_does(finished_folder, client, engine):
    pytest.importorskip("onnxruntime" if engine == "onnx" else engine)
    export(finished_folder, engine)
    texts = ["1 2 3 4", "4 3", "2 2 5 1"]
    answers = []
    for model in (load_served(str(finished_folder)), load_served(str(finished_folder), engine)):
        server = client(model=model)
        answers.append(server.post("/translate", json={"q": texts, "target": "x"}).json()["translatedText"])
        facts = server.get("/api/model").json()
        page = server.post("/api/answer", json={"text": "1 2 3 4", "attention": facts["has_attention"]}).json()
        assert page["answers"][0]["text"] == answers[-1][0] and (page["attention"] is None) != facts["has_attention"]
    assert answers[0] == answers[1]
    refused = server.post("/api/answer", json={"text": "1", "attention": True})
    assert refused.status_code == 400 and "gives no attentions" in refused.json()["error"]
