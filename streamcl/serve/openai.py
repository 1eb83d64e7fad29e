"""OpenAI's chat completions over HTTP, for one model name.

    POST /v1/chat/completions    text and images; streamed as it is made, if asked for             scope predict
    GET  /v1/models              the name, and the versions that may be asked for as NAME@7        predict
    GET  /metrics                for Prometheus                                                    admin
    GET  /healthz                200 while a token goes through the live version                   no key
    GET  /openapi.json           this, for machines                                                no key

Every answer names its version three times: in `model` ("name@7") and `system_fingerprint` ("v7-<12 of digest>"), in
`version` and `digest`, and in the headers x-streamcl-version and x-streamcl-digest.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.responses import Response as HttpResponse

from streamcl.serve import replies
from streamcl.serve.errors import ApiError
from streamcl.serve.keys import Keys
from streamcl.serve.metrics import Measured
from streamcl.serve.routes import Api, Backend
from streamcl.serve.wire import ChatRequest, schemas
from streamcl.stream.limits import Limits

REQUEST = f"#/components/schemas/{ChatRequest.__name__}"
KEY: list[dict[str, list[str]]] = [{"key": []}]


async def _api_error(http: HttpRequest, error: Exception) -> HttpResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(http: HttpRequest, error: Exception) -> HttpResponse:
    """Unknown paths and methods, in the same shape."""
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path}: {error.detail}"
    return ApiError(error.status_code, message, code="no_such_route").response()


async def _our_error(http: HttpRequest, error: Exception) -> HttpResponse:
    """Our mistake, whose details are in the log and nobody else's business."""
    return ApiError(500, "the server made a mistake; its log says which", code="internal").response()


def build_app(
    backend: Backend,
    name: str,
    *,
    limits: Limits | None = None,
    body_bytes: int = 32 * 2**20,
    max_tokens: int = 1024,
    keys: Keys | None = None,
    replica: str = "0",
) -> FastAPI:
    """The HTTP face of an engine under the model name `name`.

    `limits` bounds a request as it bounds a sample; `body_bytes` the whole body; `max_tokens` an answer. `keys`: who
    may ask. `replica` tells this app's metrics from those of others.
    """
    api = Api(
        backend, name, limits=limits or Limits(), body_bytes=body_bytes, max_tokens=max_tokens, keys=keys or Keys(),
        replica=replica,
    )  # fmt: skip
    app = FastAPI(title="streamcl", openapi_url=None)
    errors: dict[int | str, Any] = {"default": {"model": replies.Error}}
    chat: dict[int | str, Any] = {200: {"model": replies.Completion, "content": {"text/event-stream": {}}}}
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": REQUEST}}}}
    app.add_api_route(
        "/v1/chat/completions", api.chat, methods=["POST"], response_model=None, responses={**errors, **chat},
        openapi_extra={"requestBody": body, "security": KEY},
    )  # fmt: skip
    for path, route, reply in (
        ("/v1/models", api.list_models, {"model": replies.Models}),
        ("/metrics", api.show_metrics, {"content": {"text/plain": {}}}),
        ("/healthz", api.health, {"model": replies.Health}),
    ):
        extra = {} if path == "/healthz" else {"security": KEY}
        app.add_api_route(
            path, route, methods=["GET"], response_model=None, responses={**errors, 200: reply}, openapi_extra=extra,
            response_class=PlainTextResponse if path == "/metrics" else JSONResponse,
        )  # fmt: skip
    finish(app)
    app.add_middleware(Measured, metrics=api.metrics, paths=frozenset(described(app)["paths"]))
    return app


def finish(app: FastAPI) -> None:
    """Errors in one shape, and the schema."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _our_error)
    app.add_api_route("/openapi.json", lambda: JSONResponse(described(app)), include_in_schema=False)


def described(app: FastAPI) -> dict[str, Any]:
    """The app as OpenAPI, the request's body included, which the app reads by itself."""
    schema = get_openapi(title="streamcl", version="1", routes=app.routes)
    components = schema.setdefault("components", {})
    components["schemas"] = components.get("schemas", {}) | schemas()
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return schema
