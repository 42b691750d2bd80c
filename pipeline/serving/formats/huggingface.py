"""The task API of Hugging Face's Inference Endpoints, as `huggingface_hub.InferenceClient(model=URL)` speaks it.

https://huggingface.co/docs/inference-providers/tasks/translation, .../text-classification, .../text-generation
"""

import math
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers

from pipeline.inference.hypotheses import Wanted
from pipeline.serving.answering import Said
from pipeline.serving.asking import Refused, Service, service_of, token_of_headers

NAME = "huggingface"
DENIED = 401
GENERATION = ("max_new_tokens", "do_sample", "num_beams", "repetition_penalty", "temperature", "top_k", "top_p")
NOT_THERE = (  # parameters that would change the answer
    *("adapter_id", "best_of", "candidate_labels", "details", "frequency_penalty", "grammar", "hypothesis_template"),
    *("stop", "stop_sequences", "top_n_tokens", "truncate", "typical_p", "watermark"),
)
router = APIRouter(tags=["Hugging Face"])


class Parameters(BaseModel):
    """Those of several tasks; others that clients send, such as `clean_up_tokenization_spaces`, are passed over."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    src_lang: str | None = None
    tgt_lang: str | None = None
    top_k: int | None = Field(None, ge=0, description="classes of a classifier, or tokens to sample from")
    generate_parameters: dict[Annotated[str, Field(max_length=64)], Any] | None = None
    max_new_tokens: int | None = Field(None, ge=1)
    do_sample: bool | None = None
    num_beams: int | None = Field(None, ge=1)
    repetition_penalty: float | None = Field(None, gt=0)
    temperature: float | None = Field(None, gt=0)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**32)
    return_full_text: bool | None = None
    function_to_apply: Literal["softmax"] | None = None


class Inputs(BaseModel):
    inputs: str | list[str]
    parameters: Parameters | None = None
    stream: Literal[False] | None = Field(None, description="only whole answers are sent")


def owns(path: str) -> bool:
    return path == "/" or path.startswith("/models/")


def describe_error(status: int, message: str) -> dict[str, Any]:
    return {"error": message}


def find_token(headers: Headers, body: bytes) -> str:
    return token_of_headers(headers)


@router.post("/")
async def answer(request: Request, body: Inputs) -> list[Any]:
    service, parameters = service_of(request), body.parameters or Parameters()
    for name in NOT_THERE:
        if getattr(parameters, name, None):
            raise Refused(400, f"{name}: this server has no such thing; leave it out")
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    if service.served.labels:
        ranked = await rank_classes(request, service, texts)
        return [classes[: parameters.top_k or None] for classes in ranked]
    generation = {name: getattr(parameters, name) for name in GENERATION} | (parameters.generate_parameters or {})
    if generation["do_sample"] is None and any(generation[name] is not None for name in ("temperature", "top_p")):
        generation["do_sample"] = True
    settings = service.settings(
        source_lang=parameters.src_lang,
        target_lang=parameters.tgt_lang,
        wanted=Wanted(seed=parameters.seed if generation["do_sample"] else None),
        generation=generation,
    )
    said = await service.say(request, texts, settings)
    if service.served.is_translator:
        return [{"translation_text": one.text} for one in said]
    whole = parameters.return_full_text is not False
    return [{"generated_text": one.text if whole else one.text.removeprefix(one.prompt)} for one in said]


@router.post("/models/{name:path}")
async def answer_named(request: Request, name: str, body: Inputs) -> list[Any]:
    """Answer by the one model that is served, whatever its name is here."""
    return await answer(request, body)


async def rank_classes(request: Request, service: Service, texts: list[str]) -> list[list[dict[str, Any]]]:
    """Return the classes of each text, the most probable first."""
    if any(not text.strip() for text in texts):
        raise Refused(400, "a text is empty: there is nothing to classify")
    wanted = Wanted(num_best=len(service.served.labels), scores=True)
    said = await service.say(request, texts, service.settings(wanted=wanted))
    return [_name_classes(one) for one in said]


def _name_classes(said: Said) -> list[dict[str, Any]]:
    return [
        {"label": hypothesis.text, "score": math.exp(hypothesis.score or 0.0)} for hypothesis in said.answer.hypotheses
    ]
