"""DeepL's API, version 2 (https://developers.deepl.com/docs), as its own clients speak it with `server_url`."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.datastructures import Headers

from pipeline.serving.asking import Refused, body_of, read_fields, service_of, token_of_headers

NAME = "deepl"
DENIED = 403
CHARACTER_LIMIT = 10**12  # there is none, and its clients want a number
NOT_THERE = ("glossary_id", "glossary_ids", "tag_handling", "style_id", "translation_memory_id", "custom_instructions")
router = APIRouter(tags=["DeepL"])


class Translation(BaseModel):
    """What is read; hints such as `context` and `formality` are passed over."""

    text: str | list[str]
    source_lang: str | None = None
    target_lang: str = ""
    glossary_id: str | None = Field(None, description="not there: refused")
    glossary_ids: list[str] | None = Field(None, description="not there: refused")
    tag_handling: str | None = Field(None, description="not there: refused")
    style_id: str | None = Field(None, description="not there: refused")
    translation_memory_id: str | None = Field(None, description="not there: refused")
    custom_instructions: list[str] | str | None = Field(None, description="not there: refused")


def owns(path: str) -> bool:
    return path.startswith("/v2/")


def describe_error(status: int, message: str) -> dict[str, Any]:
    return {"message": message}


def find_token(headers: Headers, body: bytes) -> str:
    return token_of_headers(headers)


@router.post("/v2/translate", openapi_extra=body_of(Translation))
async def translate(request: Request) -> dict[str, Any]:
    service, asked = service_of(request), await read_fields(request, Translation)
    if not service.served.is_translator:
        raise Refused(400, f"this model does not translate: its task is {service.served.task_name}")
    for name in NOT_THERE:
        if getattr(asked, name):
            raise Refused(400, f"{name}: this server has no such thing; leave it out")
    texts = [asked.text] if isinstance(asked.text, str) else asked.text
    settings = service.settings(source_lang=asked.source_lang, target_lang=asked.target_lang)
    said = await service.say(request, texts, settings)
    source = (settings.source_lang or asked.source_lang or service.served.source_languages[0]).upper()
    return {
        "translations": [
            {"detected_source_language": source, "text": one.text, "billed_characters": len(text)}
            for one, text in zip(said, texts, strict=True)
        ]
    }


@router.get("/v2/languages")
async def languages(request: Request) -> list[dict[str, Any]]:
    """List the languages; of targets where the query, or the form that its clients send with GET, says so."""
    served = service_of(request).served
    form = await request.form() if request.headers.get("content-type") else {}
    is_target = (request.query_params.get("type") or form.get("type")) == "target"
    codes = served.target_languages if is_target else served.source_languages
    supports = {"supports_formality": False} if is_target else {}
    return [{"language": code.upper(), "name": code, **supports} for code in codes]


@router.get("/v2/usage")
async def usage(request: Request) -> dict[str, int]:
    counted = service_of(request).metrics.count_characters()
    return {"character_count": counted, "character_limit": CHARACTER_LIMIT}
