"""The routes of the page, below `/api`: what no other format can ask, such as scores and attention."""

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers

from pipeline.inference.hypotheses import Hypothesis, Wanted
from pipeline.serving.asking import Refused, service_of, token_of_headers
from pipeline.serving.formats.huggingface import rank_classes

NAME = "own"
DENIED = 401
router = APIRouter(prefix="/api", tags=["teacher-forcing"])


class AnswerSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    do_sample: bool | None = None
    temperature: float | None = Field(None, gt=0, le=100)
    top_k: int | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    num_beams: int | None = Field(None, ge=1)
    max_new_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**32)


class Asked(BaseModel):
    text: str
    source_lang: str | None = None
    target_lang: str | None = None
    num_alternatives: int = Field(1, ge=1, le=10)
    settings: AnswerSettings = AnswerSettings()
    attention: bool = False


class Classified(BaseModel):
    text: str


class Table(BaseModel):
    csv: str


def owns(path: str) -> bool:
    return True


def describe_error(status: int, message: str) -> dict[str, Any]:
    return {"error": message}


def find_token(headers: Headers, body: bytes) -> str:
    return token_of_headers(headers)


@router.get("/model")
async def model(request: Request) -> dict[str, Any]:
    return service_of(request).served.describe()


@router.post("/answer")
async def answer(request: Request, body: Asked) -> dict[str, Any]:
    service = service_of(request)
    if service.served.labels or not service.served.model.can_generate():
        raise Refused(400, f"this model generates no text: its task is {service.served.task_name}")
    changes = body.settings.model_dump(exclude={"seed"})
    seed = body.settings.seed if body.settings.do_sample else None
    wanted = Wanted(
        num_best=body.num_alternatives, scores=True, token_probabilities=True, attentions=body.attention, seed=seed
    )
    settings = service.settings(
        source_lang=body.source_lang, target_lang=body.target_lang, wanted=wanted, generation=changes
    )
    (said,) = await service.say(request, [body.text], settings)
    best = said.answer.hypotheses[0] if said.answer.hypotheses else Hypothesis("")
    return {
        "answers": [
            {"text": one.text, "score": one.score, "tokens": one.tokens, "probabilities": one.probabilities}
            for one in said.answer.hypotheses
        ],
        "source_tokens": best.source_tokens,
        "attention": best.attention,
    }


@router.post("/classify")
async def classify(request: Request, body: Classified) -> dict[str, Any]:
    service = service_of(request)
    if not service.served.labels:
        raise Refused(400, f"this model classifies nothing: its task is {service.served.task_name}")
    (classes,) = await rank_classes(request, service, [body.text])
    return {"classes": [{"name": one["label"], "probability": one["score"]} for one in classes]}


@router.post("/forecast")
async def forecast(request: Request, body: Table) -> dict[str, Any]:
    service = service_of(request)
    if service.served.task_name != "forecasting":
        raise Refused(400, f"this model forecasts nothing: its task is {service.served.task_name}")
    past = service.served.read_csv(body.csv)  # (L, C)
    future = await service.forecast(request, past)  # (H, C)
    if not np.isfinite(future).all():
        raise Refused(400, "csv: its values are too large for this model; give them in another unit")
    series = service.served.task.series  # type: ignore[attr-defined]
    return {
        "series": {
            name: {"past": past[:, column].tolist(), "forecast": future[:, column].tolist()}
            for column, name in enumerate(series)
        }
    }
