"""What the tests of the server share; they are skipped where its libraries are not installed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def served() -> Callable[..., Any]:
    """Gives a model of a kind, made once."""
    from tests.serving.samples import make_served

    made: dict[tuple, Any] = {}

    def get(kind: str = "translator", languages: tuple[str, ...] = ()) -> Any:
        if (kind, languages) not in made:
            made[kind, languages] = make_served(kind, languages)
        return made[kind, languages]

    return get


@pytest.fixture
def client(served) -> Iterator[Callable[..., Any]]:
    """Makes a client of an app in this process."""
    from fastapi.testclient import TestClient

    from pipeline.serving.app import make_app
    from tests.serving.samples import QUICK

    opened = []

    def make(kind="translator", languages=(), limits=QUICK, token=None, headers=None, model=None) -> Any:
        app = make_app(model or served(kind, languages), limits, token)
        client = TestClient(app, base_url="http://localhost", headers=headers)
        client.__enter__()
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.__exit__(None, None, None)
