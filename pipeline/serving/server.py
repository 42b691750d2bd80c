"""uvicorn around the app: connections that wait for nothing are ended, and a signal stops it behind what it took."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.serving.asking import Limits
from pipeline.signals import STOP_SIGNALS

KEEP_ALIVE = 30  # seconds that a connection may be idle between two requests
BACKLOG = 2048  # connections that wait to be accepted
SPARE = 5  # seconds behind the last answer


def make_server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """Make a server; `run([socket])` serves until SIGTERM or SIGINT, and then finishes the requests that it has."""

    class Protocol(BoundedProtocol):
        head_seconds = limits.head_seconds

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(limits.seconds) + SPARE,
    )
    return uvicorn.Server(config)


@contextmanager
def signals_end_quietly() -> Iterator[None]:
    """Let the signals that uvicorn raises once more when it has stopped change nothing.

    https://github.com/encode/uvicorn/blob/0.34.0/uvicorn/server.py (capture_signals)
    """

    def ignore(number: int, frame: FrameType | None) -> None:
        return

    before = {number: signal.signal(number, ignore) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class BoundedProtocol(H11Protocol):
    """Ends a connection that does not send the head of a request in time; uvicorn itself waits for ever."""

    head_seconds: float
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # asyncio sets it where the socket names its protocol, which those of `accept` do only if the listener did.
        # Without it the end of a response waits 40 ms for the client to acknowledge its head (Nagle's algorithm).
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _is_without_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch_head(self) -> None:
        if not self._is_without_request():
            self._stop_watching()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._end_slow_head)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_slow_head(self) -> None:
        self._head_timer = None
        if self._is_without_request() and not self.transport.is_closing():
            self.transport.close()
