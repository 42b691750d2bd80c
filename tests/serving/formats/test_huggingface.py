"""Hugging Face's tasks: classes, by `/` and by any name."""

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")


def test_a_classifier_ranks_its_classes(client):
    model = client("classifier")
    classes = model.post("/api/classify", json={"text": "a b"}).json()["classes"]
    assert {one["name"] for one in classes} == {"good", "bad", "odd"}
    assert abs(sum(one["probability"] for one in classes) - 1) < 1e-4
    best = model.post("/models/any/name", json={"inputs": ["a b", "c"], "parameters": {"top_k": 1}}).json()
    assert best[0] == [{"label": classes[0]["name"], "score": pytest.approx(classes[0]["probability"])}]
    assert model.post("/", json={"inputs": ""}).status_code == 400
    assert model.post("/translate", json={"q": "a", "target": "fr"}).status_code == 400
    assert model.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a b"}]}).json()["choices"]


@pytest.mark.parametrize(
    "asked",
    [{"stream": True}, {"parameters": {"stop": ["a"]}}, {"parameters": {"function_to_apply": "sigmoid"}}],
)
def test_what_would_change_the_answer_and_is_not_there_is_refused(client, asked):
    refused = client("language model").post("/", json={"inputs": "a b"} | asked)
    name = next(iter(asked.get("parameters", asked)))
    assert refused.status_code == 400 and name in refused.json()["error"]
