"""OpenAI: prompts, seeds, and what is not a text."""

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from tests.serving.samples import error_of


def test_openai_goes_on_from_a_prompt(client):
    model = client("language model")
    body = {"prompt": ["a b", "c"], "max_tokens": 3, "seed": 1, "temperature": 1.0}
    choices = model.post("/v1/completions", json=body).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    again = model.post("/v1/completions", json=body).json()["choices"]
    assert [choice["text"] for choice in again] == [choice["text"] for choice in choices], "by its seed"
    echo = model.post("/v1/completions", json={"prompt": "a b", "max_tokens": 3, "echo": True}).json()
    plain = model.post("/v1/completions", json={"prompt": "a b", "max_tokens": 3}).json()
    assert echo["choices"][0]["text"] == "a b" + plain["choices"][0]["text"]
    assert plain["usage"]["prompt_tokens"] >= 2
    blank = model.post("/v1/completions", json={"prompt": " "})
    assert blank.status_code == 400 and "prompt is empty" in error_of("openai", blank)


def test_openai_refuses_what_is_not_a_text(client):
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}
    refused = client().post("/v1/chat/completions", json={"messages": [image]})
    assert refused.status_code == 400 and "image_url" in error_of("openai", refused)
