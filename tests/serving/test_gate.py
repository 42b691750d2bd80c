"""Who may enter with what, and what becomes of a bug."""

import logging
from dataclasses import replace

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from tests.serving.samples import FORMATS, QUICK, ROUTES, error_of, post


@FORMATS
def test_bounds_on_body_and_text(client, name):
    model = client(limits=replace(QUICK, body=3000, characters=100, texts=2))
    for text in ("a " * 2000, "a " * 60):
        refused = post(model, name, text)
        assert refused.status_code == 413 and error_of(name, refused)
    assert post(model, name).status_code == 200


@FORMATS
def test_a_bug_is_an_error_in_the_format_and_its_log_has_no_text(client, name, monkeypatch, caplog):
    def fail(settings, contents):
        raise KeyError(contents[0].content)

    model = client()
    monkeypatch.setattr(model.app.state.service.batcher, "answer", fail)
    with caplog.at_level(logging.INFO, "pipeline.serving"):
        refused = post(model, name, "secret words")
    assert refused.status_code == 500 and error_of(name, refused) == "internal error"
    assert "KeyError" in caplog.text and "test_gate.py" in caplog.text and "secret" not in caplog.text


@FORMATS
def test_a_token_is_required_where_there_is_one(client, name):
    model = client(token="s3cret")
    denied = ROUTES[name][3]
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
        refused = post(model, name, headers=headers)
        assert refused.status_code == denied and "key" in error_of(name, refused)
    kind = "DeepL-Auth-Key" if name == "deepl" else "Bearer"
    assert post(model, name, headers={"Authorization": f"{kind} s3cret"}).status_code == 200
    assert model.get("/health").status_code == 200
    assert model.get("/metrics").status_code == model.get("/openapi.json").status_code == 401


@FORMATS
def test_without_a_token_any_key_is_taken_from_this_machine_only(client, name):
    model = client()
    assert post(model, name, headers={"Authorization": "Bearer whatever"}).status_code == 200
    for host, status in (("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("evil.example", 403), ("localhost.evil", 403)):
        assert post(model, name, headers={"Host": host}).status_code == status, host


TOKEN = {"Authorization": "Bearer s3cret"}


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:3000", "null"])
def test_without_a_token_a_form_of_another_page_is_refused(client, origin):
    model, form = client(), {"q": "a", "target": "fr"}
    assert model.post("/translate", data=form, headers={"Origin": origin}).status_code == 403
    assert model.post("/translate", data=form, headers={"Origin": "http://localhost"}).status_code == 200


def test_other_origins_are_not_told_that_they_may(client):
    model = client(token="s3cret", headers=TOKEN)
    response = post(model, "own", headers={"Origin": "https://evil.example"})
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control")]
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert model.options("/api/answer", headers=preflight).status_code == 405
    plain = client().post("/api/answer", content='{"text": "a"}', headers={"Content-Type": "text/plain"})
    assert plain.status_code == 400, "what a form of another page can send"
