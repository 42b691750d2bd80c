"""The app in this process: each format's routes, its errors, the token, the bounds, the metrics and the log."""

import json
import logging
import threading

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from dataclasses import replace

from pipeline.inference.hypotheses import Hypothesis
from pipeline.serving.answering import NoMemory
from tests.serving.conftest import QUICK, make_served

ROUTES = {  # format -> a request that it answers, where its error is, and its status for a wrong token
    "libretranslate": ("/translate", {"q": "{text}", "source": "en", "target": "fr"}, ["error"], 403),
    "deepl": ("/v2/translate", {"text": ["{text}"], "target_lang": "FR"}, ["message"], 403),
    "huggingface": ("/", {"inputs": "{text}"}, ["error"], 401),
    "openai": (
        "/v1/chat/completions",
        {"model": "any", "messages": [{"role": "user", "content": "{text}"}]},
        ["error", "message"],
        401,
    ),
    "own": ("/api/answer", {"text": "{text}"}, ["error"], 401),
}
FORMATS = pytest.mark.parametrize("name", ROUTES)


def post(client, name: str, text: str = "a b c", **options):
    path, body, *_ = ROUTES[name]
    filled = json.loads(json.dumps(body).replace("{text}", json.dumps(text)[1:-1]))
    return client.post(path, json=filled, **options)


def error_of(name: str, response) -> str:
    value = response.json()
    for key in ROUTES[name][2]:
        value = value[key]
    return value


def text_of(name: str, response) -> str:
    assert response.status_code == 200, response.text
    body = response.json()
    return {
        "libretranslate": lambda: body["translatedText"],
        "deepl": lambda: body["translations"][0]["text"],
        "huggingface": lambda: body[0]["translation_text"],
        "openai": lambda: body["choices"][0]["message"]["content"],
        "own": lambda: body["answers"][0]["text"],
    }[name]()


def test_all_formats_give_the_same_answer(client):
    translator = client()
    answers = {text_of(name, post(translator, name)) for name in ROUTES}
    assert len(answers) == 1 and answers != {""}
    assert text_of("own", post(translator, "own", "c a")) not in answers


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


def test_deepl_takes_a_form_and_refuses_what_it_lacks(client):
    translator = client()
    form = translator.post("/v2/translate", data={"text": ["a b", "c"], "target_lang": "FR"}).json()["translations"]
    assert [one["billed_characters"] for one in form] == [3, 1]
    refused = translator.post("/v2/translate", json={"text": ["a"], "target_lang": "FR", "tag_handling": "html"})
    assert refused.status_code == 400 and "tag_handling" in refused.json()["message"]
    assert translator.get("/v2/usage").json()["character_count"] == 4


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


def test_the_page_gets_scores_tokens_and_attention(client):
    asked = {"text": "a b c", "num_alternatives": 3, "attention": True}
    answer = client().post("/api/answer", json=asked).json()
    best = answer["answers"][0]
    assert len(answer["answers"]) == 3
    assert [one["score"] for one in answer["answers"]] == sorted(one["score"] for one in answer["answers"])[::-1]
    assert len(best["tokens"]) == len(best["probabilities"]) == len(answer["attention"])
    assert {len(row) for row in answer["attention"]} == {len(answer["source_tokens"])} == {4}
    assert all(abs(sum(row) - 1) < 1e-3 for row in answer["attention"])


def test_sampling_by_a_seed_repeats(client):
    model = client()

    def sample(seed):
        settings = {"do_sample": True, "temperature": 3.0, "seed": seed}
        asked = {"text": "a b c", "num_alternatives": 4, "settings": settings}
        return [one["text"] for one in model.post("/api/answer", json=asked).json()["answers"]]

    assert sample(1) == sample(1) != sample(2)


def test_the_page_knows_what_is_served(client):
    facts = client(languages=("fr", "de")).get("/api/model").json()
    assert facts["task"] == "sequence_to_sequence" and facts["languages"] == {"source": [], "target": ["fr", "de"]}
    assert facts["has_attention"] and facts["engine"] == "torch" and facts["generation"]["max_new_tokens"] == 6
    series = client("forecaster").get("/api/model").json()
    assert series["series"] == ["up", "down"] and series["context_length"] == 8 and not series["has_attention"]


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


def test_a_forecaster_reads_a_table(client):
    model = client("forecaster")
    lines = ["time,down,up", *[f"2020-01-{day:02},{-day},{day}" for day in range(1, 13)]]
    series = model.post("/api/forecast", json={"csv": "\n".join(lines)}).json()["series"]
    assert series["up"]["past"] == [*map(float, range(5, 13))] and series["down"]["past"][-1] == -12
    assert len(series["up"]["forecast"]) == 3
    for table, message in (
        ("", "the first line must name"),
        ("up,down\n1,2", "1 rows, where a forecast needs 8"),
        ("\n".join(lines).replace("12", "x"), "not a number"),
        ("\n".join(lines).replace("-9", "1e308"), "too large"),
    ):
        refused = model.post("/api/forecast", json={"csv": table})
        assert refused.status_code == 400 and message in refused.json()["error"], refused.text
    assert model.post("/", json={"inputs": "a"}).status_code == 400


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


# ---- bounds, each in the format asked


@FORMATS
def test_bounds_on_body_and_text(client, name):
    model = client(limits=replace(QUICK, body=3000, characters=100, texts=2))
    for text in ("a " * 2000, "a " * 60):
        refused = post(model, name, text)
        assert refused.status_code == 413 and error_of(name, refused)
    assert post(model, name).status_code == 200


def test_a_bound_on_the_texts_of_a_request(client):
    refused = client(limits=replace(QUICK, texts=2)).post("/v2/translate", json={"text": [*"abc"], "target_lang": "FR"})
    assert refused.status_code == 413 and "3 texts" in refused.json()["message"]


@pytest.fixture
def stuck(client):
    """A client of a model that answers nothing before the test is over."""
    made = make_served()
    busy, free = threading.Event(), threading.Event()
    answer = made.answer

    def wait(settings, contents):
        busy.set()
        free.wait(10)
        return answer(settings, contents)

    made.answer = wait
    yield lambda limits: (client(model=made, limits=limits), busy)
    free.set()


@FORMATS
def test_a_full_queue_and_an_answer_that_is_late(stuck, name):
    model, busy = stuck(replace(QUICK, seconds=0.05, waiting=1))
    refused = post(model, name)
    assert refused.status_code == 504 and "0.05 seconds" in error_of(name, refused)
    assert busy.is_set()
    two = {"deepl": {"text": ["a", "b"]}, "libretranslate": {"q": ["a", "b"]}, "huggingface": {"inputs": ["a", "b"]}}
    if name in two:  # others hold one text
        path, body, *_ = ROUTES[name]
        refused = model.post(path, json={**body, **two[name]})
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


@FORMATS
def test_a_bug_is_an_error_in_the_format_and_its_log_has_no_text(client, name, monkeypatch, caplog):
    def fail(settings, contents):
        raise KeyError(contents[0].content)

    model = client()
    monkeypatch.setattr(model.app.state.service.batcher, "answer", fail)
    with caplog.at_level(logging.INFO, "pipeline.serving"):
        refused = post(model, name, "secret words")
    assert refused.status_code == 500 and error_of(name, refused) == "internal error"
    assert "KeyError" in caplog.text and "test_app.py" in caplog.text and "secret" not in caplog.text


# ---- who may ask


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


def test_libretranslate_carries_the_token_in_its_body(client):
    model = client(token="s3cret")
    asked = {"q": "a", "source": "en", "target": "fr"}
    for key, status in (("s3cret", 200), ("wrong", 403), (["s3cret"], 403)):
        assert model.post("/translate", json={**asked, "api_key": key}).status_code == status
    assert model.post("/translate", data={**asked, "api_key": "s3cret"}).status_code == 200
    assert model.request("GET", "/languages", data={"api_key": "s3cret"}).status_code == 200
    assert model.get("/languages").status_code == 403


@FORMATS
def test_without_a_token_any_key_is_taken_from_this_machine_only(client, name):
    model = client()
    assert post(model, name, headers={"Authorization": "Bearer whatever"}).status_code == 200
    for host, status in (("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("evil.example", 403), ("localhost.evil", 403)):
        assert post(model, name, headers={"Host": host}).status_code == status, host


def test_other_origins_are_not_told_that_they_may(client):
    response = post(client(), "own", headers={"Origin": "https://evil.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert client().options("/api/answer", headers=preflight).status_code == 405
    plain = client().post("/api/answer", content='{"text": "a"}', headers={"Content-Type": "text/plain"})
    assert plain.status_code == 400, "what a form of another page can send"


# ---- what is told of it


def test_metrics_and_log_count_and_quote_nothing(client, caplog):
    model = client()
    with caplog.at_level(logging.INFO, "pipeline.serving"):
        post(model, "deepl", "a b c")
        model.get("/no/secret")
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "pipeline.serving"]
    assert [(line["format"], line["status"], line["texts"]) for line in lines] == [("deepl", 200, 1), ("own", 404, 0)]
    assert "a b c" not in caplog.text and "secret" not in caplog.text
    metrics = model.get("/metrics").text
    for line in (
        'teacher_forcing_requests_total{format="deepl",status="200"} 1.0',
        "teacher_forcing_texts_total 1.0",
        "teacher_forcing_batch_size_count 1.0",
        "teacher_forcing_waiting_texts 0.0",
    ):
        assert line in metrics


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


def test_settings_that_the_model_cannot_honour_are_refused(client):
    model = client()
    for settings in ({"num_beams": 99}, {"max_new_tokens": 10**6}, {"top_p": 2}, {"nothing": 1}, {"temperature": 0}):
        refused = model.post("/api/answer", json={"text": "a", "settings": settings})
        assert refused.status_code == 400 and next(iter(settings)) in refused.json()["error"], refused.text
    wrong = {"generate_parameters": {"num_beans": 3}}
    refused = model.post("/", json={"inputs": "a", "parameters": wrong})
    assert refused.status_code == 400 and "did you mean num_beams" in refused.json()["error"]


def test_an_empty_hypothesis_has_no_attention(client):
    answer = client().post("/api/answer", json={"text": "  ", "attention": True}).json()
    assert answer == {"answers": [], "source_tokens": None, "attention": None} and Hypothesis("").attention is None
