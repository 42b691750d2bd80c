"""The page of a served model: what it is made of, and, in a browser, what it does with the answers of a server."""

import base64
import hashlib
import json
import math
import re
import shutil
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from pipeline.serving.page import render_page
from tests.pages.html import Page

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><b>&amp;'"
TRANSLATION = {
    "name": "en-fr",
    "task": "sequence_to_sequence",
    "engine": "torch",
    "languages": {"source": ["en", "fra_Latn"], "target": ["fr", "de"]},
    "has_attention": True,
    "generation": {"num_beams": 4},
}


# ---- without a browser


def test_the_page_stands_alone_and_is_well_formed():
    html, _ = render_page()
    page = Page(html)  # which refuses src, action and on...= attributes
    assert [page.seen.count(tag) for tag in ("h1", "main", "form", "script", "style")] == [1] * 5
    assert len({*page.ids}) == len(page.ids)
    scripts = html.replace('"http://www.w3.org/2000/svg"', "")  # a name, which nothing fetches
    assert not re.search(r"https?:|//\w+\.\w|url\(|@import|<link|\bimport\b", scripts)


def test_every_field_has_a_label_and_its_place_for_errors():
    html, _ = render_page()
    labels = {*re.findall(r'<label[^>]* for="(\w+)"', html)}
    fields = re.findall(r'<(?:input|select|textarea) id="(\w+)" name="(\w+)"[^>]* aria-describedby="([^"]+)"', html)
    assert len(fields) == 10 and labels == {identifier for identifier, _, _ in fields}
    ids = Page(html).ids
    for identifier, name, described in fields:
        assert identifier == name and f"{name}-error" in described.split() and {*described.split()} <= {*ids}
        assert f'<p class="error" id="{name}-error" role="alert"></p>' in html


def test_no_text_can_become_markup():
    """The script has no way to turn a text into elements; and the headers forbid them."""
    html, headers = render_page()
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc|eval\(|Function\("
    assert not re.search(ways, html)
    assert "require-trusted-types-for 'script'; trusted-types 'none'" in headers["Content-Security-Policy"]


def test_the_policy_allows_only_what_is_in_the_page():
    html, headers = render_page()
    policy = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
    for tag in ("script", "style"):
        content = html.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    assert " style=" not in html  # a policy with a hash has no room for style attributes
    assert all(ord(letter) < 128 for value in headers.values() for letter in value)


# ---- in a browser, before a server that answers as a model would


class Stub:
    """What the server says, and what it was asked."""

    def __init__(self, model):
        self.model = model
        self.asked: list[dict] = []
        self.authorizations: list[str | None] = []
        self.token: str | None = None
        self.refusal: tuple[int, str] | None = None
        self.delays: dict[str, float] = {}
        self.answers: dict[str, dict] = {}
        self.gone: list[str] = []  # texts whose client went away before it was answered


def answer_of(text, count=1):
    """Answers with attention, of made-up tokens: each looks mostly at the one in its place."""
    source = [*text.split(), "</s>"]
    target = [*text.upper().split(), "</s>"]
    weights = [[math.exp(-2 * abs(t - s)) for s in range(len(source))] for t in range(len(target))]
    return {
        "answers": [
            {
                "text": f"{text.upper()} {number}" if number else text.upper(),
                "score": -0.25 - number,
                "tokens": target,
                "probabilities": [0.9, 0.3, *[0.99] * len(target)][: len(target)],
            }
            for number in range(count)
        ],
        "source_tokens": source,
        "attention": [[weight / sum(row) for weight in row] for row in weights],
    }


def make_app(stub):
    import asyncio

    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse

    app = FastAPI()
    html, headers = render_page()

    @app.get("/")
    async def page():
        return HTMLResponse(html, headers=headers)

    def refuse(request):
        authorization = request.headers.get("authorization")
        stub.authorizations.append(authorization)
        if stub.token and authorization != f"Bearer {stub.token}":
            return JSONResponse({"error": "This server asks for its access token."}, 401)
        return None

    async def model(request: Request):
        return refuse(request) or JSONResponse(stub.model)

    async def answer(request: Request):
        if refused := refuse(request):
            return refused
        body = await request.json()
        stub.asked.append(body)
        if stub.refusal:
            return JSONResponse({"error": stub.refusal[1]}, stub.refusal[0])
        text = body.get("text") or body["csv"]
        for _ in range(int(stub.delays.get(text, 0) / 0.02)):
            await asyncio.sleep(0.02)
            if await request.is_disconnected():
                stub.gone.append(text)
                break
        return JSONResponse(stub.answers.get(text) or answer_of(text, body.get("num_alternatives", 1)))

    app.get("/api/model", response_model=None)(model)
    for name in ("answer", "classify", "forecast"):
        app.post(f"/api/{name}", response_model=None)(answer)
    return app


@contextmanager
def served(stub):
    """Serve the page and a stub's answers; yields the address."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
    pytest.importorskip("fastapi", reason="needs the extra serve")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_app(stub), log_level="error"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium on the PATH")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, stub, **options):
    """Open the page; fails where it logs an error, breaks its policy or asks anybody but its server."""
    with served(stub) as address:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        page = context.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if is_a_problem(line) else None)
        page.on("request", lambda request: None if request.url.startswith(address) else problems.append(request.url))
        page.goto(address)
        yield page
        context.close()
        assert problems == []


def is_a_problem(line):
    return line.type == "error" and "Failed to load resource" not in line.text  # which a refusal is, too
