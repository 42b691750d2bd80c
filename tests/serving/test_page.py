"""The page of a served model: what it is made of, and, in a browser, what it does with the answers of a server."""

import asyncio
import base64
import hashlib
import math
import re
import shutil
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
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc"
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


def test_the_app_sends_it_with_its_policy_and_without_a_token(request):
    for name in ("fastapi", "prometheus_client"):
        pytest.importorskip(name, reason="needs the extra serve")
    client = request.getfixturevalue("client")
    html, headers = render_page()
    guarded = client(token="secret")
    response = guarded.get("/")
    assert response.status_code == 200 and response.text == html and guarded.get("/api/model").status_code == 401
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert {name: response.headers[name] for name in headers} == headers


# ---- in a browser, before a server that answers as a model would


class Stub:
    """What the server says, and what it was asked."""

    def __init__(self, model):
        self.model = model
        self.asked: list[dict] = []
        self.authorizations: list[str | None] = []
        self.token: str | None = None
        self.refusal: tuple[int, str] | None = None
        self.delays: dict[str, float] = {}  # text -> seconds
        self.answers: dict[str, dict] = {}  # text -> answer, where it is not that of `answer_of`
        self.gone: list[str] = []  # texts whose client went away before it was answered

    async def describe(self, request):
        self.authorizations.append(request.headers.get("authorization"))
        if self.token and self.authorizations[-1] != f"Bearer {self.token}":
            return 401, {"error": "This server asks for its access token."}
        return 200, self.model

    async def answer(self, request):
        body = await request.json()
        self.asked.append(body)
        if self.refusal:
            return self.refusal[0], {"error": self.refusal[1]}
        text = body.get("text") or body["csv"]
        end = time.monotonic() + self.delays.get(text, 0)
        while time.monotonic() < end and text not in self.gone:
            await asyncio.sleep(0.02)
            if await request.is_disconnected():
                self.gone.append(text)
        return 200, self.answers.get(text) or answer_of(text, body.get("num_alternatives", 1))


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


def app_of(stub):
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    html, headers = render_page()

    def page(request):
        return HTMLResponse(html, headers=headers)

    async def describe(request):
        status, answer = await stub.describe(request)
        return JSONResponse(answer, status)

    async def answer(request):
        status, answer = await stub.answer(request)
        return JSONResponse(answer, status)

    posts = [Route(f"/api/{name}", answer, methods=["POST"]) for name in ("answer", "classify", "forecast")]
    return Starlette(routes=[Route("/", page), Route("/api/model", describe), *posts])


@pytest.fixture(scope="module")
def browser():
    for name in ("fastapi", "prometheus_client"):
        pytest.importorskip(name, reason="needs the extra serve")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium on the PATH")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, server, **options):
    """Open the page of a stub or an app; fails where it logs an error, breaks its policy or asks any other server."""
    from tests.serving.samples import running

    with running(app_of(server) if isinstance(server, Stub) else server) as address:
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if is_a_problem(line) else None)
        page.on(
            "request", lambda request: None if request.url.startswith(f"{address}/") else problems.append(request.url)
        )
        page.goto(address)
        try:
            yield page
        finally:
            page.close()
        assert problems == []


def is_a_problem(line):
    return line.type == "error" and "Failed to load resource" not in line.text  # which a refusal is, too


def expect_answers(page, summary=" in "):
    from playwright.sync_api import expect

    expect(page.get_by_role("status")).to_contain_text(summary)


def shown(page, selector):
    return page.locator(selector).all_text_contents()


@pytest.mark.slow
def test_typing_asks_and_shows_the_best_answers(browser):
    stub = Stub(TRANSLATION)
    with opened(browser, stub) as page:
        page.get_by_role("textbox", name="Text").press_sequentially("a dog")
        expect_answers(page, "3 answers in ")
        assert stub.asked[-1] == {
            "text": "a dog",
            "num_alternatives": 3,
            "attention": True,
            "source_lang": "en",
            "target_lang": "fr",
            "settings": {"do_sample": False, "num_beams": 4},
        }
        assert len(stub.asked) == 1  # not one for each letter
        assert shown(page, ".answers .text") == ["A DOG", "A DOG 1", "A DOG 2"]
        assert shown(page, ".answers .score") == ["score −0.250", "score −1.250", "score −2.250"]
        assert page.locator(".answers .text").first.get_attribute("lang") == "fr"
        assert not page.locator(".tokens").first.is_visible()
        page.get_by_role("checkbox", name="Show tokens and their probabilities").check()
        assert shown(page, ".answers li:first-child .tokens bdi") == ["A", "DOG", "</s>"]
        assert shown(page, ".answers li:first-child .tokens .unsure") == ["DOG0.300"]
        assert len(stub.asked) == 1
        assert page.title() == "en-fr" and page.get_by_role("heading", level=1, name="en-fr").is_visible()
        assert page.locator("#target_lang option").all_text_contents() == ["French (fr)", "German (de)"]
        assert page.locator("#source_lang option").last.text_content() == "fra_Latn"


@pytest.mark.slow
def test_settings_are_sent_and_stay_consistent(browser):
    stub = Stub(TRANSLATION)
    with opened(browser, stub) as page:
        text = page.get_by_role("textbox", name="Text")
        text.fill("a dog")
        expect_answers(page)
        for name, value, told in (("Answers", "6", (6, 6)), ("Beams", "2", (2, 2)), ("Beams", "8", (2, 8))):
            page.get_by_role("spinbutton", name=name).fill(value)
            text.press("Control+Enter")
            expect_answers(page, f"{told[0]} answers in")
            assert (stub.asked[-1]["num_alternatives"], stub.asked[-1]["settings"]["num_beams"]) == told
        page.get_by_role("radio", name="Sampling").check()
        assert not page.get_by_role("spinbutton", name="Beams").is_visible()
        for name, value in (("Answers", "3"), ("Temperature", "0.7"), ("Top-k", "0"), ("Top-p", "0.95")):
            page.get_by_role("spinbutton", name=name).fill(value)
        page.get_by_role("button", name="Translate").click()
        expect_answers(page, "3 answers in")
        settings = {"do_sample": True, "num_beams": 1, "temperature": 0.7, "top_k": 0, "top_p": 0.95}
        assert stub.asked[-1]["settings"] == settings
        page.get_by_role("spinbutton", name="Seed").fill("7")
        page.get_by_role("button", name="Translate").click()
        expect_answers(page, "3 answers in")
        assert stub.asked[-1]["settings"] == settings | {"seed": 7}


@pytest.mark.slow
def test_a_wrong_number_is_told_beside_its_field_and_not_sent(browser):
    from playwright.sync_api import expect

    stub = Stub(TRANSLATION)
    with opened(browser, stub) as page:
        beams = page.get_by_role("spinbutton", name="Beams")
        page.get_by_role("textbox", name="Text").fill("a dog")
        for value in ("0", "1.5", ""):
            beams.fill(value)
            page.get_by_role("button", name="Translate").click()
            expect(page.locator("#num_beams-error")).to_have_text("Give a whole number of at least 1.")
            expect(beams).to_have_attribute("aria-invalid", "true")
            expect(beams).to_be_focused()
        assert stub.asked == []
        beams.fill("4")
        expect_answers(page)
        expect(page.locator("#num_beams-error")).to_be_empty()
        assert beams.get_attribute("aria-invalid") is None and len(stub.asked) == 1
        page.get_by_role("textbox", name="Text").fill(" ")
        page.get_by_role("button", name="Translate").click()
        expect(page.locator("#text-error")).to_have_text("Type a text first.")
        assert len(stub.asked) == 1 and shown(page, ".answers .text") == []


@pytest.mark.slow
def test_attention_follows_the_pointer_and_the_keyboard(browser):
    from playwright.sync_api import expect

    stub = Stub(TRANSLATION)
    with opened(browser, stub) as page:
        page.get_by_role("textbox", name="Text").fill("a dog sleeps")
        readout, grid = page.locator("#readout"), page.get_by_role("grid")
        expect(readout).to_have_text(
            "“A” looks most at “a” (0.86), “dog” (0.12). The model gave “A” the probability 0.900."
        )
        assert (
            grid.locator("tbody").get_by_role("gridcell").count() == 16 and grid.get_by_role("rowheader").count() == 4
        )
        page.locator("#map tbody td").nth(5).hover()
        assert readout.text_content() == "“DOG” looks at “dog”: 0.78. The model gave “DOG” the probability 0.300."
        assert shown(page, ".here") == ["DOG", "dog", "dog", "DOG", "0.78"]
        page.locator("#target-strip bdi").nth(2).hover()
        assert "“SLEEPS” looks most at “sleeps” (0.78)" in readout.text_content()
        weights = [
            token.evaluate("e => e.style.getPropertyValue('--w')") for token in page.locator("#source-strip bdi").all()
        ]
        assert [float(weight) for weight in weights] == pytest.approx([0.014, 0.105, 0.775, 0.105], abs=0.002)
        page.locator("#source-strip bdi").first.hover()
        assert readout.text_content().startswith("Most at “a” look “A” (0.86)")
        page.locator("#map thead th").nth(1).hover()
        assert readout.text_content().startswith("Most at “dog” look “DOG”")
        page.mouse.move(0, 0)
        grid.locator("td[tabindex='0']").focus()
        for key, cell in (
            ("ArrowRight", "“A” looks at “dog”"),
            ("ArrowDown", "“DOG” looks at “dog”"),
            ("End", "“DOG” looks at “</s>”"),
            ("ArrowRight", "“DOG” looks at “</s>”"),  # the edge
            ("Control+Home", "“A” looks at “a”"),
            ("ArrowUp", "“A” looks at “a”"),
            ("Control+End", "“</s>” looks at “</s>”"),
        ):
            page.keyboard.press(key)
            assert readout.text_content().startswith(cell)
        assert grid.locator("td[tabindex='0']").count() == 1  # Tab comes back to it, and leaves at once
        stub.answers["none"] = answer_of("none") | {"attention": None}
        page.get_by_role("textbox", name="Text").fill("none")
        expect_answers(page, "1 answer in")
        assert not page.locator("#attention").is_visible()


@pytest.mark.slow
def test_a_newer_request_overtakes_the_older_one(browser):
    from playwright.sync_api import expect

    stub = Stub(TRANSLATION)
    stub.delays = {"slow": 5.0}
    with opened(browser, stub) as page:
        text = page.get_by_role("textbox", name="Text")
        text.fill("slow")
        text.press("Control+Enter")
        expect(page.locator(".said")).to_have_attribute("aria-busy", "true")
        text.fill("fast")
        text.press("Control+Enter")
        expect(page.locator(".answers .text").first).to_have_text("FAST")
        deadline = time.monotonic() + 5
        while not stub.gone and time.monotonic() < deadline:
            page.wait_for_timeout(20)
        assert stub.gone == ["slow"] and shown(page, ".answers .text")[0] == "FAST"
        expect(page.locator(".said")).to_have_attribute("aria-busy", "false")
        text.fill("slow")
        text.press("Control+Enter")
        text.fill("")
        expect(page.get_by_role("status")).to_be_empty()  # and is not computed for nothing
        expect(page.locator(".said")).to_have_attribute("aria-busy", "false")
        assert shown(page, ".answers .text") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "code, message, field",
    [
        (400, "settings.top_k: -1 is below 0; give 0 or more", "text"),  # of a field that is not shown
        (400, "num_beams: 64 is too many; give at most 16", "num_beams"),
        (413, f"The text is too long. {HOSTILE}", "text"),
        (429, "Too many requests wait; try again in 2 s.", "text"),
        (503, "The server is stopping.", "text"),
        (504, "It took longer than 30 s.", "text"),
    ],
)
def test_a_refusal_is_told_beside_its_field(browser, code, message, field):
    from playwright.sync_api import expect

    stub = Stub(TRANSLATION)
    stub.refusal = (code, message)
    with opened(browser, stub) as page:
        page.get_by_role("textbox", name="Text").fill("a dog")
        expect(page.get_by_role("alert").filter(has_text=message)).to_have_count(1)
        expect(page.locator(f"#{field}-error")).to_have_text(message)
        expect(page.locator(f"#{field}")).to_have_attribute("aria-invalid", "true")
        stub.refusal = None
        page.get_by_role("button", name="Translate").click()
        expect_answers(page)
        expect(page.locator(f"#{field}-error")).to_be_empty()


@pytest.mark.slow
def test_a_server_that_is_gone(browser):
    from playwright.sync_api import expect

    stub = Stub(TRANSLATION)
    with opened(browser, stub) as page:
        page.route("**/api/answer", lambda route: route.abort())
        page.get_by_role("textbox", name="Text").fill("a dog")
        expect(page.locator("#text-error")).to_have_text("The server cannot be reached. Is it still running?")
        page.unroute("**/api/answer")
        page.route("**/api/answer", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
        page.get_by_role("button", name="Translate").click()
        expect(page.locator("#text-error")).to_have_text("The server sent an answer that is not understood (502).")


@pytest.mark.slow
def test_a_token_is_asked_for_sent_and_not_kept(browser):
    from playwright.sync_api import expect

    stub = Stub(TRANSLATION)
    stub.token = "secret"
    with opened(browser, stub) as page:
        expect(page.locator("#token-error")).to_have_text("This server asks for its access token.")
        page.get_by_label("Access token").fill("secret")
        page.get_by_role("textbox", name="Text").fill("a dog")
        expect_answers(page)
        assert stub.authorizations[0] is None and stub.authorizations[-1] == "Bearer secret"
        assert page.title() == "en-fr"
        assert "secret" not in page.evaluate("JSON.stringify({...sessionStorage, ...localStorage}) + document.cookie")


@pytest.mark.slow
def test_text_and_settings_survive_a_reload_in_the_tab(browser):
    from playwright.sync_api import expect

    stub = Stub(TRANSLATION)
    with opened(browser, stub) as page:
        page.get_by_role("radio", name="Sampling").check()
        page.get_by_role("spinbutton", name="Seed").fill("7")
        page.get_by_label("To", exact=True).select_option("de")
        page.get_by_role("textbox", name="Text").fill("a dog")
        expect_answers(page)
        stub.asked.clear()
        stub.model = TRANSLATION | {"languages": {"source": ["en"], "target": ["de", "cs"]}}
        page.reload()
        expect_answers(page)
        assert stub.asked[0]["text"] == "a dog" and stub.asked[0]["target_lang"] == "de"
        assert stub.asked[0]["settings"]["seed"] == 7
        stub.model = TRANSLATION | {"languages": {"source": [], "target": []}}  # another model, after a restart
        page.reload()
        expect_answers(page)
        assert "target_lang" not in stub.asked[-1]
        expect(page.get_by_role("button", name="Generate")).to_be_visible()
        assert page.evaluate("localStorage.length") == 0 and page.evaluate("document.cookie") == ""


@pytest.mark.slow
def test_a_language_model_continues(browser):
    stub = Stub(
        TRANSLATION
        | {"task": "language_modeling", "has_attention": False, "languages": {}, "generation": {"do_sample": True}}
    )
    stub.answers["Once"] = {
        "answers": [{"text": "Once upon", "score": None, "tokens": None, "probabilities": None}],
        "source_tokens": None,
        "attention": None,
    }
    with opened(browser, stub) as page:
        page.get_by_role("textbox", name="Beginning of a text").fill("Once")
        page.get_by_role("button", name="Continue").click()
        expect_answers(page, "1 answer in")
        assert shown(page, "#answers") == ["Once upon"] and not page.locator("#of-tokens").is_visible()
        assert stub.asked[-1]["settings"]["do_sample"] and not stub.asked[-1]["attention"]


@pytest.mark.slow
def test_classes_have_probabilities(browser):
    stub = Stub({"name": "sst2", "task": "text_classification", "engine": "torch", "has_attention": False})
    stub.answers["good"] = {
        "classes": [
            {"name": "negative", "probability": 0.25},
            {"name": "positive", "probability": 0.74997},
            {"name": "odd", "probability": 3e-5},
        ]
    }
    with opened(browser, stub) as page:
        page.get_by_role("textbox", name="Text").fill("good")
        expect_answers(page, "3 classes in")
        assert shown(page, ".classes tr") == ["positive0.750", "negative0.250", "odd3e−5"]
        assert page.locator(".classes i").first.evaluate("e => e.style.width") == "75%"
        assert stub.asked == [{"text": "good"}] and not page.locator("#settings").is_visible()


@pytest.mark.slow
def test_a_pasted_csv_is_forecast_and_drawn(browser):
    from playwright.sync_api import expect

    model = {"name": "ett", "task": "forecasting", "engine": "torch", "has_attention": False}
    stub = Stub(model | {"series": ["OT", HOSTILE], "context_length": 4, "prediction_length": 2})
    csv = "OT\n1\n2\n3\n4\n"
    stub.answers[csv] = {
        "series": {
            "OT": {"past": [1, 2, None, 4], "forecast": [-5.25, 6]},
            HOSTILE: {"past": [7, 7, 7, 7], "forecast": [7, 7]},
        }
    }
    with opened(browser, stub) as page:
        page.get_by_role("textbox", name="Past values, as CSV").fill(csv)
        expect_answers(page, "2 steps of 2 series in")
        assert stub.asked == [{"csv": csv}]
        paths = page.locator(".plot").first.locator("path.past, path.forecast")
        drawn = [re.sub(r"[\d. ]+", "", path.get_attribute("d")) for path in paths.all()]
        assert drawn == ["MLM", "MLL"]  # a gap where nothing was measured; the forecast begins at the last value
        assert "NaN" not in page.locator(".plot").evaluate_all("all => all.map((e) => e.outerHTML).join()")
        slider = page.get_by_role("slider", name="Step +1")
        slider.focus()
        assert slider.get_attribute("aria-valuetext") == f"step +1: OT −5.25, {HOSTILE} 7"
        for key, text in (
            ("ArrowRight", "+2: OT 6"),
            ("Home", "−3: OT 1"),
            ("ArrowRight", "−2: OT 2"),
            ("ArrowRight", "−1: OT none"),
        ):
            page.keyboard.press(key)
            assert page.get_by_role("slider").get_attribute("aria-valuetext").startswith(f"step {text}")
        box = page.locator(".plot svg").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] - 9, box["y"] + 50)
        assert shown(page, ".plot figcaption span") == ["forecast +2: 6", "forecast +2: 7"]
        page.set_viewport_size({"width": 390, "height": 800})
        page.wait_for_timeout(200)
        assert page.locator(".plot svg").first.bounding_box()["width"] < 390
        assert shown(page, ".plot figcaption span")[0] == "forecast +2: 6"  # drawn anew, at the same step
        page.get_by_text("The forecast as a table").click()
        expect(page.locator(".numbers tbody tr")).to_have_text(["+1−5.257", "+267"])
        assert len(stub.asked) == 1


@pytest.mark.slow
def test_no_text_of_the_server_becomes_markup(browser):
    """Names of models, languages, classes and series, answers and tokens are shown as they are."""
    stub = Stub(
        TRANSLATION | {"name": HOSTILE, "engine": HOSTILE, "languages": {"source": [HOSTILE], "target": [HOSTILE]}}
    )
    hostile = answer_of(f"{HOSTILE} b", 2)
    hostile["answers"][0]["text"] = HOSTILE
    hostile["answers"][0]["tokens"] = [HOSTILE] * len(hostile["attention"])
    stub.answers["x"] = hostile
    stub.answers["y"] = {"classes": [{"name": HOSTILE, "probability": 1.0}]}
    with opened(browser, stub) as page:
        page.get_by_role("textbox", name="Text").fill("x")
        expect_answers(page, "2 answers in")
        page.locator("[name=show_tokens]").check()
        page.locator("#map td").first.hover()
        assert shown(page, ".answers .text")[0] == HOSTILE and shown(page, "h1") == [HOSTILE] == [page.title()]
        assert HOSTILE in page.locator("#readout").text_content()
        assert page.locator("img, #answers b, #attention b, header b, select b").count() == 0
        stub.model = stub.model | {"task": "text_classification"}
        page.reload()
        page.get_by_role("textbox", name="Text").fill("y")
        expect_answers(page, "1 class in")
        assert shown(page, ".classes bdi") == [HOSTILE] and page.locator("img, #answers b").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, text, summary",
    [
        ("translator", "a b c", "3 answers in"),
        ("language model", "a b", "3 answers in"),
        ("classifier", "a b", "3 classes in"),
        ("forecaster", "up,x,down\n" + "1.5,?,2\n" * 9, "3 steps of 2 series in"),
    ],
)
def test_it_understands_the_real_server(browser, served, kind, text, summary):
    from pipeline.serving.app import make_app

    with opened(browser, make_app(served(kind))) as page:
        page.get_by_role("textbox").first.fill(text)
        if page.get_by_role("radio", name="Sampling").is_visible():
            page.get_by_role("spinbutton", name="Answers").fill("3")
        page.locator("#send").click()
        expect_answers(page, summary)
        assert page.title() == "tiny" and page.locator("#attention").is_visible() == (kind == "translator")
        if kind == "forecaster":
            assert page.locator(".plot").count() == 2
            page.get_by_role("textbox").first.fill("up\n1\n")
            expect_refused(page, "text", "csv: the first line must name the columns up, down; down is missing")
        elif kind != "classifier":
            page.get_by_role("spinbutton", name="Beams").fill("17")
            expect_refused(page, "num_beams", "num_beams: 17 are more than the 16 that a request may ask for")
            page.get_by_role("radio", name="Sampling").check()
            page.get_by_role("spinbutton", name="Seed").fill(str(2**32))
            expect_refused(page, "seed", "settings.seed: Input should be less than 4294967296")
            page.get_by_role("spinbutton", name="Seed").fill("1")
            expect_answers(page, summary)


def expect_refused(page, name, message):
    from playwright.sync_api import expect

    expect(page.locator(f"#{name}-error")).to_have_text(message)


@pytest.mark.slow
def test_the_policy_stops_what_is_not_of_the_page(browser):
    from tests.serving.samples import running

    with running(app_of(Stub(TRANSLATION))) as address:
        page = browser.new_page()
        page.goto(address)
        mark = (
            "() => { try { document.body.innerHTML = '<b>x</b>' } catch (error) { return error.name } return 'made' }"
        )
        assert page.evaluate(mark) == "TypeError"
        for act, directive in (
            ("fetch('http://127.0.0.1:9/').catch(() => {})", "connect-src"),
            ("new Image().src = 'http://127.0.0.1:9/'", "img-src"),
            ("document.body.setAttribute('style', 'color: red')", "style-src-attr"),
        ):
            listen = "document.addEventListener('securitypolicyviolation', (event) => tell(event.effectiveDirective))"
            assert page.evaluate(f"new Promise((tell) => {{ {listen}; {act}; }})") == directive
        page.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_it_fits_and_can_be_read(browser, scheme, width):
    """Nothing but maps and tables scrolls sideways; texts keep the contrast that WCAG 2.2 AA asks for (4.5 to 1)."""
    stub = Stub(TRANSLATION)
    with opened(browser, stub, viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        page.get_by_role("textbox", name="Text").fill("a dog sleeps in the long and cold winter night " * 2)
        expect_answers(page)
        page.locator("[name=show_tokens]").check()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 20 and min(contrasts.values()) >= 4.5


CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((x) => (x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = {};
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const style = getComputedStyle(element);
    if (!text || element.offsetParent === null || style.fontSize === "0px") continue;
    let ground = element;
    const colourOf = () => getComputedStyle(ground).backgroundColor;
    while (ground !== document.body && rgb(colourOf())[3] === 0) ground = ground.parentElement;
    const [a, b] = [style.color, colourOf()].map((colour) => light(rgb(colour).slice(0, 3)));
    const name = `${element.tagName} ${element.className} ${element.textContent.slice(0, 20)}`;
    found[name] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }
  return found;
}"""
