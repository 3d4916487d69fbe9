"""The ASGI application: routes behind the gate."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from fastkernels import __version__
from fastkernels.server.api import router
from fastkernels.server.errors import ApiError, from_validation
from fastkernels.server.middleware import Gate
from fastkernels.server.service import Service


def build_app(service: Service) -> FastAPI:
    app = FastAPI(title="FastKernels", version=__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(router)
    service.routes = frozenset(app.openapi()["paths"])
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_middleware(Gate, service=service)
    if service.config.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=service.config.allowed_origins, allow_methods=["*"], allow_headers=["*"]
        )
    return app


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    failure = from_validation(error.errors())
    request.state.record.error = failure.message
    return failure.response()


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"There is no route {request.method} {request.url.path[:200]}."
    else:
        message = f"{error.detail}."
    request.state.record.error = message
    return ApiError(error.status_code, message).response()
