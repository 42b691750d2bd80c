"""LibreTranslate (https://docs.libretranslate.com), as libretranslatepy and the plug-ins of many programs speak it.

Forms and JSON are both read. `source` may be "auto" where the model is not told the language of a text.
"""

import json
from typing import Any, Literal
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.datastructures import Headers

from pipeline.inference.hypotheses import Wanted
from pipeline.serving.asking import FORMS, Refused, body_of, read_fields, service_of, token_of_headers

NAME = "libretranslate"
DENIED = 403
PATHS = ("/translate", "/languages", "/health")
router = APIRouter(tags=["LibreTranslate"])


class Translation(BaseModel):
    q: str | list[str]
    source: str = "auto"
    target: str = ""
    format: Literal["text"] = "text"
    alternatives: int = Field(0, ge=0, le=9)
    api_key: str | None = None


def owns(path: str) -> bool:
    return path in PATHS


def describe_error(status: int, message: str) -> dict[str, Any]:
    return {"error": message}


def find_token(headers: Headers, body: bytes) -> str:
    """Find it in the field `api_key` of the body, which its clients send with GET as well."""
    if token := token_of_headers(headers):
        return token
    try:
        if headers.get("content-type", "").startswith(FORMS[0]):
            return parse_qs(body.decode(), max_num_fields=1000).get("api_key", [""])[0]
        values = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    token = values.get("api_key", "") if isinstance(values, dict) else ""
    return token if isinstance(token, str) else ""


@router.post("/translate", openapi_extra=body_of(Translation))
async def translate(request: Request) -> dict[str, Any]:
    service, asked = service_of(request), await read_fields(request, Translation)
    if not service.served.is_translator:
        raise Refused(400, f"this model does not translate: its task is {service.served.task_name}")
    texts = [asked.q] if isinstance(asked.q, str) else asked.q
    settings = service.settings(
        source_lang=asked.source, target_lang=asked.target, wanted=Wanted(num_best=1 + asked.alternatives)
    )
    said = await service.say(request, texts, settings)
    best = [one.text for one in said]
    others = [[hypothesis.text for hypothesis in one.answer.hypotheses[1:]] for one in said]
    is_one = isinstance(asked.q, str)
    answer: dict[str, Any] = {"translatedText": best[0] if is_one else best}
    if asked.alternatives:
        answer["alternatives"] = others[0] if is_one else others
    if asked.source == "auto":
        found = {"confidence": 0, "language": service.served.source_languages[0]}
        answer["detectedLanguage"] = found if is_one else [found] * len(texts)
    return answer


@router.get("/languages")
async def languages(request: Request) -> list[dict[str, Any]]:
    served = service_of(request).served
    return [{"code": code, "name": code, "targets": served.target_languages} for code in served.source_languages]


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request) -> dict[str, str]:
    if service_of(request).batcher.is_stopping:
        raise Refused(503, "the server is stopping")
    return {"status": "ok"}
