"""The app: a service, the formats, and the gate around them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from pipeline.errors import ConfigError, DataError
from pipeline.serving.answering import ServedModel
from pipeline.serving.asking import Limits, Refused, Service, explain
from pipeline.serving.formats import deepl, huggingface, libretranslate, openai, own
from pipeline.serving.gate import Gate
from pipeline.serving.page import render_page

FORMATS: tuple[Any, ...] = (libretranslate, deepl, huggingface, openai, own)  # the last owns what no other does
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def make_app(served: ServedModel, limits: Limits | None = None, token: str | None = None) -> FastAPI:
    """Make the app that serves a model.

    Args:
        token: that each request must carry; without one, requests must call this machine by a local name.
    """
    service = Service(served, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.batcher.stop)

    app = FastAPI(
        title="teacher-forcing",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # behind a proxy a redirect would lead past it, to the address that it calls
    )
    app.state.service = service
    for style in FORMATS:
        app.include_router(style.router)
    html, headers = render_page()

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    app.add_api_route("/metrics", _metrics, methods=["GET"], response_class=Response)
    app.add_exception_handler(RequestValidationError, _explain_fields)
    app.add_exception_handler(HTTPException, _explain_http)
    for kind in (ConfigError, DataError):
        app.add_exception_handler(kind, _explain_request)
    app.add_middleware(Gate, service=service, formats=FORMATS, token=token)
    return app


async def _metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    return Response(service.metrics.as_text(), media_type=METRICS_TYPE)


async def _explain_fields(request: Request, error: Exception) -> NoReturn:
    assert isinstance(error, RequestValidationError)
    raise Refused(400, explain(error.errors())) from error


async def _explain_http(request: Request, error: Exception) -> NoReturn:
    assert isinstance(error, HTTPException)
    detail = "there is no such route; /openapi.json lists them" if error.status_code == 404 else str(error.detail)
    raise Refused(error.status_code, detail) from error


async def _explain_request(request: Request, error: Exception) -> NoReturn:
    raise Refused(400, str(error)) from error
