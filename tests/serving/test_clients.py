"""The clients that people have, unmodified, against a real server on a port of this machine."""

from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from pipeline.serving.app import make_app
from tests.serving.samples import make_served, running

TOKEN = "s3cret"
TEXTS = ["a b c", "c a", "h g f e"]


@pytest.fixture(scope="module")
def address():
    with running(make_app(make_served(languages=("fr", "de")), token=TOKEN)) as address:
        yield address


@pytest.fixture(scope="module")
def answers(address) -> dict[str, str]:
    """What the server says, by a request of our own."""
    httpx = pytest.importorskip("httpx")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    said = httpx.post(f"{address}/translate", json={"q": TEXTS, "target": "fr"}, headers=headers).json()
    assert len({*said["translatedText"]}) > 1
    return dict(zip(TEXTS, said["translatedText"], strict=True))


def test_libretranslatepy(address, answers):
    library = pytest.importorskip("libretranslatepy")
    client = library.LibreTranslateAPI(address, TOKEN)
    assert client.translate("a b c", "en", "fr") == answers["a b c"]
    assert client.languages() == [{"code": "en", "name": "en", "targets": ["fr", "de"]}]
    with pytest.raises(Exception, match="403"):
        library.LibreTranslateAPI(address, "wrong").translate("a b c", "en", "fr")


def test_deepl(address, answers):
    deepl = pytest.importorskip("deepl")
    client = deepl.DeepLClient(TOKEN, server_url=address)
    one = client.translate_text("a b c", target_lang="FR", source_lang="EN")
    assert (one.text, one.detected_source_lang, one.billed_characters) == (answers["a b c"], "EN", 5)
    assert [one.text for one in client.translate_text(TEXTS, target_lang="FR")] == [*answers.values()]
    assert [language.code for language in client.get_target_languages()] == ["FR", "DE"]
    assert [language.code for language in client.get_source_languages()] == ["EN"]
    assert not client.get_usage().any_limit_reached
    with pytest.raises(deepl.DeepLException, match="choose from fr, de"):
        client.translate_text("a", target_lang="JA")
    with pytest.raises(deepl.AuthorizationException, match="missing or wrong"):
        deepl.DeepLClient("wrong", server_url=address).translate_text("a", target_lang="FR")


def test_huggingface_hub(address, answers):
    hub = pytest.importorskip("huggingface_hub")
    client = hub.InferenceClient(model=address, token=TOKEN)
    said = client.translation("a b c", src_lang="en", tgt_lang="fr")
    assert said.translation_text == answers["a b c"]
    named = hub.InferenceClient(model=f"{address}/models/any/name", token=TOKEN)
    settings = {"num_beams": 2}
    assert named.translation("a b c", src_lang="en", tgt_lang="fr", generate_parameters=settings).translation_text
    with pytest.raises(hub.errors.HfHubHTTPError, match="choose from fr, de"):
        client.translation("a", src_lang="en", tgt_lang="ja")


def test_huggingface_hub_with_a_classifier_and_a_language_model():
    hub = pytest.importorskip("huggingface_hub")
    with running(make_app(make_served("classifier"))) as address:
        classes = hub.InferenceClient(model=address).text_classification("a b", top_k=2)
    assert len(classes) == 2 and classes[0].score >= classes[1].score and classes[0].label in ("good", "bad", "odd")
    with running(make_app(make_served("language model"))) as address:
        assert hub.InferenceClient(model=address).text_generation("a b", max_new_tokens=3).startswith("a b")


def test_openai(address, answers):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=TOKEN, max_retries=0)
    asked = {
        "model": "any",
        "messages": [{"role": "system", "content": "Translate."}, {"role": "user", "content": "a b c"}],
        "extra_body": {"target_lang": "fr"},
    }
    said = client.chat.completions.create(**asked)
    assert said.choices[0].message.content == answers["a b c"] and said.choices[0].finish_reason == "stop"
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens > 4
    chunks = [*client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})]
    assert len(chunks) == 2 and chunks[0].choices[0].delta.content == answers["a b c"]
    assert chunks[1].usage == said.usage
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("any/name").id == "tiny"
    assert client.completions.create(model="any", prompt="a b c", extra_body={"target_lang": "fr"}).choices[0].text
    with pytest.raises(openai.BadRequestError, match="missing"):
        client.chat.completions.create(model="any", messages=asked["messages"])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()


def test_formats_share_batches(address, answers):
    """Many at a time, through different clients: each gets its own answer, in fewer batches than there are requests."""
    deepl, openai, httpx = (pytest.importorskip(name) for name in ("deepl", "openai", "httpx"))
    headers = {"Authorization": f"Bearer {TOKEN}"}

    def count_batches() -> float:
        lines = httpx.get(f"{address}/metrics", headers=headers).text.splitlines()
        return float(next(line for line in lines if line.startswith("teacher_forcing_batch_size_count")).split()[1])

    translator = deepl.DeepLClient(TOKEN, server_url=address)
    chat = openai.OpenAI(base_url=f"{address}/v1", api_key=TOKEN)

    def ask(number: int) -> bool:
        text = TEXTS[number % 3]
        if number % 2:
            return translator.translate_text(text, target_lang="FR").text == answers[text]
        message, language = {"role": "user", "content": text}, {"target_lang": "fr"}
        said = chat.chat.completions.create(model="any", messages=[message], extra_body=language)
        return said.choices[0].message.content == answers[text]

    before = count_batches()
    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(36)))
    assert count_batches() - before < 30
