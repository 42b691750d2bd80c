"""What every request passes before and after the app: bounds, the token, the log, and errors in the format asked."""

import asyncio
import hmac
import json
import logging
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.asking import CLIENT_GONE, Refused, Service
from pipeline.serving.hosts import is_loopback

LOG = logging.getLogger("pipeline.serving")
DRAINED = 64 << 20  # bytes of a body that is too large, read and forgotten so that its sender reads why
OPEN = {("GET", "/health"), ("GET", "/"), ("HEAD", "/health"), ("HEAD", "/")}  # these tell nothing that needs a token


class Format(Protocol):
    """What the module of a wire format offers, beside its `router`."""

    NAME: str
    DENIED: int  # status where the token is wrong

    def owns(self, path: str) -> bool:
        """Tell whether a path is one of this format's."""

    def describe_error(self, status: int, message: str) -> dict[str, Any]:
        """Return the body of a response that is an error."""

    def find_token(self, headers: Headers, body: bytes) -> str:
        """Return the token that a request carries; "" where it has none."""


class Gate:
    """The outermost part of the app that is ours."""

    def __init__(self, app: ASGIApp, service: Service, formats: Sequence[Format], token: str | None):
        """Guard an app.

        Args:
            formats: the last one owns all paths.
            token: that each request must carry; None lets everybody in who calls this machine by a local name.
        """
        self.app, self.service, self.formats, self.token = app, service, formats, token
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        style = next(style for style in self.formats if style.owns(scope["path"]))
        begin, sent = time.monotonic(), Sent(send, self.service.limits.seconds)
        self._count_running(1)
        try:
            body = await self._admit(scope, receive, style)
            await self.app(scope, Replay(body, receive), sent)
        except Refused as refused:
            await self._refuse(refused, style, scope, receive, sent)
        except Unread:
            sent.status = CLIENT_GONE
        except Exception as error:
            _log_bug(error)
            await self._refuse(Refused(500, "internal error"), style, scope, receive, sent)
        finally:
            self._count_running(-1)
            self._record(scope, style, sent.status, time.monotonic() - begin)

    def _count_running(self, change: int) -> None:
        self.running += change
        self.service.metrics.running.set(self.running)

    async def _admit(self, scope: Scope, receive: Receive, style: Format) -> bytes:
        """Read the body of a request that may enter.

        Raises:
            Refused: where it may not.
        """
        headers = Headers(scope=scope)
        if self.running > self.service.limits.requests:
            raise Refused(503, "too many requests are being answered; try again in a moment")
        limits = self.service.limits
        try:
            body = await asyncio.wait_for(read_body(receive, limits.body), limits.seconds)
        except TimeoutError as error:
            raise Refused(408, f"the body did not arrive in {limits.seconds:g} seconds") from error
        self._check_caller(scope, headers, body, style)
        return body

    def _check_caller(self, scope: Scope, headers: Headers, body: bytes, style: Format) -> None:
        if self.token is None:
            # A page from elsewhere that has its name resolved to this machine calls it by that name (DNS rebinding).
            host = headers.get("host", "").lower()
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if not is_loopback(name):
                raise Refused(403, "without a token, call this server as localhost; see --token-file")
            # A form of a page from elsewhere may be sent here without asking (CSRF); the browser names that page.
            if headers.get("origin", f"http://{host}").lower() != f"http://{host}":
                raise Refused(403, "without a token, pages of other origins may not call this server; see --token-file")
        elif (scope["method"], scope["path"]) not in OPEN:
            token = style.find_token(headers, body)
            if not hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode()):
                raise Refused(style.DENIED, "the key is missing or wrong")

    async def _refuse(self, refused: Refused, style: Format, scope: Scope, receive: Receive, sent: "Sent") -> None:
        if sent.status is None and refused.status != CLIENT_GONE:
            await error_response(style, refused.status, refused.message)(scope, receive, sent)
        elif refused.status == CLIENT_GONE:
            sent.status = CLIENT_GONE

    def _record(self, scope: Scope, style: Format, status: int | None, seconds: float) -> None:
        metrics = self.service.metrics
        metrics.requests.labels(style.NAME, str(status)).inc()
        metrics.seconds.labels(style.NAME).observe(seconds)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "format": style.NAME,
            "method": scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other",
            "status": status,
            "milliseconds": round(1000 * seconds, 1),
            "texts": scope.get("texts", 0),
            "characters": scope.get("characters", 0),
        }
        LOG.info(json.dumps(line))


class Unread(Exception):
    """Nobody reads the response."""


class Sent:
    """Sends a response, each part within a time, and remembers its status."""

    def __init__(self, send: Send, seconds: float):
        self.send, self.seconds = send, seconds
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        try:
            await asyncio.wait_for(self.send(message), self.seconds)
        except TimeoutError as error:
            raise Unread from error


class Replay:
    """Gives the app a body that was read before, and then what else comes of the request."""

    def __init__(self, body: bytes, receive: Receive):
        self.receive = receive
        self.first: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def __call__(self) -> Message:
        if (first := self.first) is not None:
            self.first = None
            return first
        return await self.receive()


async def read_body(receive: Receive, most: int) -> bytes:
    """Read a body of so many bytes at most.

    Raises:
        Refused: for a larger one, or where the client goes away.
    """
    parts, size, more = [], 0, True
    while more and size <= DRAINED:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(CLIENT_GONE, "the client is gone")
        part = message.get("body", b"")
        size += len(part)
        more = message.get("more_body", False)
        if size <= most:
            parts.append(part)
        else:
            parts.clear()
    if size > most:
        raise Refused(413, f"the body is larger than {most} bytes; send less at a time")
    return b"".join(parts)


def error_response(style: Format, status: int, message: str) -> Response:
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    if status in (408, 413, 503):  # there may be more of the body
        headers["Connection"] = "close"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(style.describe_error(status, message), status, headers)


def _log_bug(error: Exception) -> None:
    """Log where a bug is, without its message, which may quote a text."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    LOG.error(json.dumps({"bug": type(error).__name__, "where": places}))
