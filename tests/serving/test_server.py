"""A real server under clients that mean no good, and its end; all on this machine, and bounded."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

import httpx

from pipeline.serving.app import make_app
from tests.conftest import ROOT
from tests.serving.samples import QUICK, make_served, running

IMPATIENT = replace(QUICK, head_seconds=0.3, seconds=0.5)
ASK = b'{"text": "a b c"}'
HEAD = b"POST /api/answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def connect(address: str) -> socket.socket:
    parts = urlsplit(address)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def answer(address: str) -> int:
    return httpx.post(f"{address}/api/answer", json={"text": "a b c"}).status_code


@pytest.fixture(scope="module")
def address():
    with running(make_app(make_served(), IMPATIENT), IMPATIENT) as address:
        yield address


def test_connections_that_say_nothing_or_speak_slowly_are_ended(address):
    with ExitStack() as stack:
        connections = [stack.enter_context(closing(connect(address))) for _ in range(4)]
        connections[1].sendall(HEAD)
        connections[2].sendall(HEAD + b"Content-Length: 17\r\n\r\n" + ASK)
        connections[3].sendall(HEAD + b"Content-Length: 17\r\n\r\n" + ASK[:5])
        begin = time.monotonic()
        assert answer(address) == 200, "others are served meanwhile"
        answered = b""
        while not answered.endswith(b"}"):  # head and body may come one by one
            part = connections[2].recv(65536)
            assert part, "it was ended too early"
            answered += part
        assert answered.startswith(b"HTTP/1.1 200")
        connections[2].sendall(HEAD)  # the second request of a connection may not dawdle either
        assert read_all(connections[0]) == b""
        assert read_all(connections[1]) == b""
        assert read_all(connections[2]) == b""
        assert read_all(connections[3]).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - begin < 3


def test_a_client_that_goes_away_leaves_the_queue(monkeypatch):
    served = make_served()
    busy, free = threading.Event(), threading.Event()
    texts: list[str] = []
    said = served.answer

    def wait(settings, contents):
        texts.extend(content.content for content in contents)
        busy.set()
        assert free.wait(10)
        return said(settings, contents)

    monkeypatch.setattr(served, "answer", wait)
    app = make_app(served, QUICK)
    with running(app) as address, ThreadPoolExecutor(2) as pool:
        first = pool.submit(answer, address)
        assert busy.wait(10)
        with closing(connect(address)) as gone:
            body = b'{"text": "h h h"}'
            gone.sendall(HEAD + b"Content-Length: 17\r\n\r\n" + body)
            while not app.state.service.batcher.num_waiting:
                time.sleep(0.001)
        second = pool.submit(answer, address)
        while app.state.service.metrics.running._value.get() > 2:
            time.sleep(0.001)
        free.set()
        assert first.result(10) == second.result(10) == 200
    assert texts == ["a b c", "a b c"]


def test_a_body_of_ten_megabytes_is_refused_and_not_kept(address):
    for headers in ({}, {"Transfer-Encoding": "chunked"}):
        body = b"x" * 10_000_000
        content = iter([body]) if headers else body
        refused = httpx.post(f"{address}/translate", content=content, headers={"Content-Type": "application/json"})
        assert refused.status_code == 413 and "larger than" in refused.json()["error"]
    assert answer(address) == 200


def test_a_response_does_not_wait_for_its_head_to_be_acknowledged(address):
    with httpx.Client(base_url=address) as client:
        seconds = []
        for _ in range(5):
            begin = time.monotonic()
            assert client.get("/health").status_code == 200
            seconds.append(time.monotonic() - begin)
    assert min(seconds) < 0.03


def test_two_hundred_connections_at_once():
    with running(make_app(make_served())) as address, ExitStack() as stack:
        connections = [stack.enter_context(closing(connect(address))) for _ in range(200)]
        for connection in connections:
            connection.sendall(HEAD + b"Connection: close\r\nContent-Length: 17\r\n\r\n" + ASK)
        assert all(read_all(connection).startswith(b"HTTP/1.1 200") for connection in connections)


def test_more_requests_than_may_run_are_refused():
    limits = replace(QUICK, requests=2)
    with running(make_app(make_served(), limits), limits) as address, ExitStack() as stack:
        held = [stack.enter_context(closing(connect(address))) for _ in range(2)]
        for connection in held:
            connection.sendall(HEAD + b"Content-Length: 17\r\n\r\n")
        time.sleep(0.05)
        refused = httpx.post(f"{address}/v2/translate", json={"text": ["a"]})
        assert refused.status_code == 503 and "too many requests" in refused.json()["message"]
        for connection in held:
            connection.sendall(ASK)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


SERVE = """
import sys, time
from tests.serving.samples import make_served
from pipeline.serving import answering
served = make_served()
answer = served.answer
def slowly(settings, contents):
    print("busy", flush=True)
    time.sleep(0.5)
    return answer(settings, contents)
served.answer = slowly
answering.load_served = lambda *_: served
from pipeline import cli
sys.exit(cli.main(["serve", "tiny", "--port", "0"]))
"""


def test_a_stop_lets_it_finish_what_it_took(monkeypatch):
    served = make_served()
    busy = threading.Event()
    said = served.answer

    def slowly(settings, contents):
        busy.set()
        time.sleep(0.3)
        return said(settings, contents)

    monkeypatch.setattr(served, "answer", slowly)
    with ThreadPoolExecutor(1) as pool:
        with running(make_app(served)) as address:
            asked = pool.submit(answer, address)
            assert busy.wait(10)
        assert asked.result(1) == 200
    with pytest.raises(httpx.ConnectError):
        answer(address)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_finish_what_it_took(number):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        address = next(line for line in process.stderr if line.startswith("serving")).split()[-1]
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(answer, address)
            assert process.stdout.readline() == "busy\n"
            process.send_signal(number)
            assert asked.result(20) == 200
        assert process.wait(20) == 0
        lines = [json.loads(line) for line in process.stderr if line.startswith("{")]
        assert [line["status"] for line in lines] == [200]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["translator", "classifier", "language model", "forecaster"])
def test_no_request_that_the_openapi_page_allows_is_an_internal_error(kind):
    """Some hundreds of requests that schemathesis makes of it, right and wrong ones."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable

    app = make_app(make_served(kind), QUICK)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "localhost"})
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 14
    modes = []
    for operation in operations:
        for mode in schemathesis.GenerationMode:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=20,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=[*HealthCheck],
            )
            def check(case):
                response = case.call(headers={"Host": "localhost"})
                assert response.status_code < 500, (case.path, response.text)

            with suppress(Unsatisfiable):  # nothing can be wrong with a route that takes nothing
                check()
                modes.append(mode)
    assert len(modes) > len(operations)


@pytest.mark.slow
def test_memory_does_not_grow_with_requests():
    """After 10,000 requests it is within 5 % of what it was after 1,000."""
    psutil = pytest.importorskip("psutil")
    app = make_app(make_served(), QUICK)
    own = psutil.Process()
    with running(app) as address, ThreadPoolExecutor(8) as pool, httpx.Client(base_url=address) as client:

        def ask(number: int) -> int:
            text = " ".join("abcdefgh"[number >> shift & 7] for shift in range(0, 12, 3))
            settings = {"num_beams": 1 + number % 3}
            return client.post("/api/answer", json={"text": text, "settings": settings}).status_code

        assert {*pool.map(ask, range(1000))} == {200}
        before = own.memory_info().rss
        assert {*pool.map(ask, range(1000, 10_000))} == {200}
        after = own.memory_info().rss
    assert after < 1.05 * before, (before, after)
