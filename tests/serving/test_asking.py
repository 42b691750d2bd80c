"""Bounds of the queue and of time, and bodies that cannot be read: each in the format asked."""

import threading
from dataclasses import replace

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from pipeline.serving.answering import NoMemory
from tests.serving.samples import FORMATS, QUICK, ROUTES, error_of, make_served, post


def test_a_bound_on_the_texts_of_a_request(client):
    refused = client(limits=replace(QUICK, texts=2)).post("/v2/translate", json={"text": [*"abc"], "target_lang": "FR"})
    assert refused.status_code == 413 and "3 texts" in refused.json()["message"]


@pytest.fixture
def stuck(client, monkeypatch):
    """A client of a model that answers nothing before the test is over."""
    made = make_served()
    busy, free = threading.Event(), threading.Event()
    answer = made.answer

    def wait(settings, contents):
        busy.set()
        free.wait(10)
        return answer(settings, contents)

    monkeypatch.setattr(made, "answer", wait)
    yield lambda limits: (client(model=made, limits=limits), busy)
    free.set()


@FORMATS
def test_a_full_queue_and_an_answer_that_is_late(stuck, name):
    model, busy = stuck(replace(QUICK, seconds=0.05, waiting=1))
    refused = post(model, name)
    assert refused.status_code == 504 and "0.05 seconds" in error_of(name, refused)
    assert busy.is_set()
    model.app.state.service.batcher.submit(None, ["waits behind it"], [1])
    refused = post(model, name)
    assert refused.status_code == 429 and refused.headers["retry-after"] and error_of(name, refused)


@FORMATS
def test_a_server_that_stops_or_has_no_memory(client, name, served, monkeypatch):
    def fail(settings, contents):
        raise NoMemory

    model = client()
    monkeypatch.setattr(model.app.state.service.batcher, "answer", fail)
    refused = post(model, name)
    assert refused.status_code == 503 and "memory" in error_of(name, refused)
    model.app.state.service.batcher.stop()
    refused = post(model, name)
    assert refused.status_code == 503 and "stopping" in error_of(name, refused)
    assert model.get("/health").status_code == 503


@pytest.mark.parametrize("content_type", ["", "application/x-www-form-urlencoded"])  # curl sends the second
def test_what_is_not_sent_as_json_is_told_how(client, content_type):
    sent = client().post("/", content='{"inputs": "a"}', headers={"Content-Type": content_type})
    assert sent.status_code == 400 and "application/json" in sent.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 5000,
        b"1" * 5000,
        b'{"text": "\\ud800"}',
        b'{"text": 1}',
        b"\xff",
        b'{"text": "a", "text": NaN}',
    ],
)
@FORMATS
def test_broken_bodies_are_refused_in_the_format(client, name, body):
    path, example, *_ = ROUTES[name]
    key = next(key for key in ("q", "text", "inputs", "messages") if key in example)
    if name == "openai":
        body = body.replace(b"1}", b'[{"role": "user", "content": 1}]}').replace(
            b'"\\ud800"', b'[{"role": "user", "content": "\\ud800"}]'
        )
    body = body.replace(b'"text"', f'"{key}"'.encode())
    refused = client().post(path, content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code == 400 and error_of(name, refused)
