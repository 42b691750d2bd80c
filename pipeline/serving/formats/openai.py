"""OpenAI's chat and text completions (https://platform.openai.com/docs/api-reference), as its clients speak them.

The last message of a user is the text; a model that translates holds no conversation. Languages can be named beside
OpenAI's own fields: `extra_body={"target_lang": "fr"}`. Without `temperature` the model generates as it does elsewhere.
"""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.responses import Response

from pipeline.inference.hypotheses import Wanted
from pipeline.serving.answering import Said
from pipeline.serving.asking import Refused, Service, service_of, token_of_headers

NAME = "openai"
DENIED = 401
KINDS = {401: "authentication_error", 429: "rate_limit_error"}
NOT_THERE = ("tools", "functions", "logprobs", "top_logprobs", "audio", "suffix", "logit_bias")
router = APIRouter(tags=["OpenAI"])


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class Completion(BaseModel):
    """What both have in common; fields that change nothing here, such as `user`, are passed over."""

    model_config = ConfigDict(allow_inf_nan=False)

    model: str = ""
    n: int | None = Field(None, ge=1, le=10)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    source_lang: str | None = None
    target_lang: str | None = None
    tools: Any = Field(None, description="not there: refused")
    functions: Any = Field(None, description="not there: refused")
    logprobs: Any = Field(None, description="not there: refused")
    top_logprobs: Any = Field(None, description="not there: refused")
    audio: Any = Field(None, description="not there: refused")
    suffix: Any = Field(None, description="not there: refused")
    logit_bias: Any = Field(None, description="not there: refused")


class Part(BaseModel):
    type: str
    text: str = ""


class Message(BaseModel):
    role: str
    content: str | list[Part] | None = None


class Chat(Completion):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class Prompts(Completion):
    prompt: str | list[str]
    echo: bool | None = None


def owns(path: str) -> bool:
    return path.startswith("/v1/")


def describe_error(status: int, message: str) -> dict[str, Any]:
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def find_token(headers: Headers, body: bytes) -> str:
    return token_of_headers(headers)


@router.post("/v1/chat/completions")
async def chat(request: Request, body: Chat) -> Response:
    texts = [message.content for message in body.messages if message.role == "user"]
    if not texts or texts[-1] is None:
        raise Refused(400, "messages: there is none with the role user and a content; the last such is the text")
    said = await _say(request, body, [_join_parts(texts[-1])], body.max_completion_tokens or body.max_tokens)
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for index, text in enumerate(_texts(service_of(request), said[0], body))
    ]
    return _respond(request, body, "chat.completion", choices, said)


@router.post("/v1/completions")
async def complete(request: Request, body: Prompts) -> Response:
    """Go on from prompts; of a model that translates, or classifies, answer them."""
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    said = await _say(request, body, prompts, body.max_tokens)
    texts = [
        prompt * bool(body.echo) + text
        for prompt, one in zip(prompts, said, strict=True)
        for text in _texts(service_of(request), one, body)
    ]
    choices = [
        {"index": index, "text": text, "finish_reason": "stop", "logprobs": None} for index, text in enumerate(texts)
    ]
    return _respond(request, body, "text_completion", choices, said)


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [_describe_model(service_of(request))]}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """Describe the one model that is served, whatever its name is here."""
    return _describe_model(service_of(request))


async def _say(request: Request, body: Completion, texts: list[str], max_new_tokens: int | None) -> list[Said]:
    for name in NOT_THERE:
        if getattr(body, name):
            raise Refused(400, f"{name}: this server has no such thing; leave it out")
    service = service_of(request)
    generation: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    if body.temperature == 0:
        generation["do_sample"] = False
    elif body.temperature is not None or body.top_p is not None:
        generation |= {"do_sample": True, "temperature": body.temperature, "top_p": body.top_p}
    seed = None if body.seed is None or not generation.get("do_sample") else body.seed % 2**32
    settings = service.settings(
        source_lang=body.source_lang,
        target_lang=body.target_lang,
        wanted=Wanted(num_best=body.n or 1, seed=seed),
        generation=generation,
    )
    return await service.say(request, texts, settings)


def _join_parts(content: str | list[Part]) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if part.type != "text":
            raise Refused(400, f"messages: a part of type {part.type} is not a text; nothing else is read or opened")
    return "".join(part.text for part in content)


def _texts(service: Service, said: Said, body: Completion) -> list[str]:
    """Return the answers to a text, a language model's without their prompt, each up to the first stop."""
    texts = [hypothesis.text.removeprefix(said.prompt) for hypothesis in said.answer.hypotheses] or [""]
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    for stop in filter(None, stops):
        texts = [text.partition(stop)[0] for text in texts]
    return texts


def _respond(request: Request, body: Completion, kind: str, choices: list[dict], said: list[Said]) -> Response:
    prompt, answers = sum(one.source_tokens for one in said), sum(one.answer_tokens for one in said)
    usage = {"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers}
    shared = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": service_of(request).served.name}
    if not body.stream:
        return JSONResponse({**shared, "object": kind, "choices": choices, "usage": usage})
    chunk = {**shared, "object": "chat.completion.chunk" if kind == "chat.completion" else kind}
    chunks = [{**chunk, "choices": [_as_delta(choice) for choice in choices]}]
    if body.stream_options is not None and body.stream_options.include_usage:
        chunks.append({**chunk, "choices": [], "usage": usage})
    return StreamingResponse(_events(chunks), media_type="text/event-stream")


def _as_delta(choice: dict[str, Any]) -> dict[str, Any]:
    return {"delta" if name == "message" else name: value for name, value in choice.items()}


def _events(chunks: list[dict[str, Any]]) -> Iterator[str]:
    for chunk in chunks:
        yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
    yield "data: [DONE]\n\n"


def _describe_model(service: Service) -> dict[str, Any]:
    return {"id": service.served.name, "object": "model", "created": 0, "owned_by": "teacher-forcing"}
