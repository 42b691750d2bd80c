"""All formats in one app."""

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from tests.serving.samples import ROUTES, post, text_of


def test_heads_are_answered_and_nothing_is_redirected(client):
    model = client()
    assert [model.head(path).status_code for path in ("/", "/health", "/translate/")] == [200, 200, 404]


def test_all_formats_give_the_same_answer(client):
    translator = client()
    answers = {text_of(name, post(translator, name)) for name in ROUTES}
    assert len(answers) == 1 and answers != {""}
    assert text_of("own", post(translator, "own", "c a")) not in answers
