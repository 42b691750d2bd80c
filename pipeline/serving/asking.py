"""From a request to its answers: what it holds is read and bounded, handed to the batcher, and waited for."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers

from pipeline.data.corpus import Text
from pipeline.errors import ConfigError, DataError, one_line
from pipeline.serving.answering import NoMemory, Said, ServedModel, Settings
from pipeline.serving.batcher import Batcher, Full, Stopping
from pipeline.serving.metrics import Metrics

Body = TypeVar("Body", bound=BaseModel)
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
FIELDS = 1000  # of a form
CLIENT_GONE = 499  # as nginx has it in its log; nobody reads that response


class Refused(Exception):
    """A request that has no answer: a status and a line that says why, in the format that was asked."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, one_line(message)


@dataclass(frozen=True)
class Limits:
    """The bounds of a server.

    Attributes:
        batch_size: texts that are answered together.
        latency: seconds that texts wait for others, at most.
        waiting: texts that wait, of all requests together.
        seconds: until an answer must be there; a body must arrive, and a response leave, in as many.
        body: bytes.
        texts: of a request.
        characters: of a text.
        requests: that are answered at a time.
        head_seconds: until the head of a request must be there.
    """

    batch_size: int = 64
    latency: float = 0.01
    waiting: int = 2048
    seconds: float = 60.0
    body: int = 1 << 20
    texts: int = 256
    characters: int = 20_000
    requests: int = 1024
    head_seconds: float = 10.0


class Service:
    """A served model with its batcher, bounds and counts; one for an app."""

    def __init__(self, served: ServedModel, limits: Limits):
        self.served, self.limits, self.metrics = served, limits, Metrics()
        self.batcher = Batcher(
            served.answer, limits.batch_size, limits.latency, limits.waiting, self.metrics.count_batch
        )
        self.metrics.waiting.set_function(lambda: self.batcher.num_waiting)
        self._numbers = count()

    def settings(self, **asked: Any) -> Settings:
        """Return what `ServedModel.settings` does, with a number that is this request's own."""
        return self.served.settings(**asked, alone=next(self._numbers))

    async def say(self, request: Request, texts: Sequence[str], settings: Settings) -> list[Said]:
        """Return what the model says of each text.

        Raises:
            Refused: for texts that are out of bounds or cannot be answered, and where there are too many requests.
        """
        if not self.served.task.text_columns:
            raise Refused(400, "this model takes no texts; it forecasts series: POST /api/forecast")
        if len(texts) > self.limits.texts:
            raise Refused(413, f"{len(texts)} texts are more than the {self.limits.texts} of a request; send several")
        for number, text in enumerate(texts, start=1):
            if len(text) > self.limits.characters:
                raise Refused(
                    413,
                    f"text {number} has {len(text)} characters, more than the {self.limits.characters} of a text; "
                    "split it",
                )
            if not _is_unicode(text):
                raise Refused(400, f"text {number} is not Unicode: it holds half of a surrogate pair")
        contents = [Text(number, f"text {number + 1}", text) for number, text in enumerate(texts)]
        lengths = [*map(len, texts)]
        said = await self._wait(request, settings, contents, lengths)
        for one in said:
            if one.answer.problem is not None:
                raise Refused(400, f"{one.answer.place}: {one.answer.problem}")
        self.metrics.texts.inc(len(texts))
        self.metrics.characters.inc(sum(lengths))
        self.metrics.source_tokens.inc(sum(one.source_tokens for one in said))
        self.metrics.answer_tokens.inc(sum(one.answer_tokens for one in said))
        request.scope["texts"], request.scope["characters"] = len(texts), sum(lengths)  # for the log
        return said

    async def forecast(self, request: Request, past: Any) -> Any:
        return (await self._wait(request, None, [past], [len(past)]))[0]

    async def _wait(
        self, request: Request, settings: Settings | None, contents: Sequence[Any], lengths: Sequence[int]
    ) -> list[Any]:
        """Wait for the results; a client that goes away, or has waited long enough, leaves the queue."""
        try:
            answered = asyncio.wrap_future(self.batcher.submit(settings, contents, lengths))
        except Full as full:
            raise Refused(429, "too many texts are waiting; try again in a moment") from full
        except Stopping as stopping:
            raise Refused(503, "the server is stopping") from stopping
        gone = asyncio.ensure_future(_wait_for_disconnect(request))
        try:
            either: set[asyncio.Future[Any]] = {answered, gone}
            await asyncio.wait(either, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if answered.done():
                return answered.result()
            if gone.done():
                raise Refused(CLIENT_GONE, "the client is gone")
            raise Refused(504, f"there was no answer in {self.limits.seconds:g} seconds; send fewer or shorter texts")
        except (ConfigError, DataError) as error:
            raise Refused(400, str(error)) from error
        except NoMemory as error:
            raise Refused(503, "there is not enough memory for this; send fewer or shorter texts") from error
        finally:
            answered.cancel()
            gone.cancel()


def service_of(request: Request) -> Service:
    return request.app.state.service


def token_of_headers(headers: Headers) -> str:
    """Return the token behind `Bearer` or `DeepL-Auth-Key`; "" where nothing is."""
    return headers.get("authorization", "").partition(" ")[2].strip()


async def read_fields(request: Request, kind: type[Body]) -> Body:
    """Read a body of JSON or of a form, whose fields may come several times.

    Raises:
        Refused: for any other body, and for fields that are not those of `kind`.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type in FORMS:
        form = await request.form(max_files=0, max_fields=FIELDS)
        values: Any = {}
        for name in form:
            found = form.getlist(name)
            values[name] = found[0] if len(found) == 1 else found
    elif content_type == "application/json":
        try:
            values = await request.json()
        except (ValueError, RecursionError) as error:
            raise Refused(400, "the body is not JSON") from error
    else:
        raise Refused(400, f"send JSON (Content-Type: application/json) or a form, not {content_type or 'nothing'}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise Refused(400, explain(error.errors())) from error


def body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """Describe for the OpenAPI page what `read_fields` reads."""
    schema = {"schema": kind.model_json_schema()}
    content = {"application/json": schema, FORMS[0]: schema}
    return {"requestBody": {"required": True, "content": content}}


def explain(problems: Sequence[Any]) -> str:
    """Return the first problem that pydantic found as a line."""
    problem = problems[0]
    if problem["type"] == "json_invalid":
        return "the body is not JSON"
    if problem["loc"] == ("body",):  # FastAPI reads only what is sent as JSON
        return "send an object as JSON, with Content-Type: application/json"
    place = ".".join(str(part) for part in problem["loc"] if part != "body") or "the body"
    return f"{place}: {problem['msg']}"


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
