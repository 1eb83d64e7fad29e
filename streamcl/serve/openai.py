"""OpenAI's chat completions over HTTP, for one model name: a subset, and an error wherever the subset ends.

    POST /v1/chat/completions    text, and images as data: URLs; no URL is ever fetched
    GET  /v1/models              the name and the version that answers now
    GET  /healthz                200 once a version answers, 503 before; no key is asked for

Every answer names its version three times: in `model` ("name@7") and `system_fingerprint` ("v7-<12 of digest>"), in
`version` and `digest`, and in the headers x-streamcl-version and x-streamcl-digest.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.responses import Response as HttpResponse

from streamcl.errors import BadSample, StreamclError
from streamcl.serve.errors import ApiError
from streamcl.serve.generate import Request, Response
from streamcl.serve.keys import Keys
from streamcl.stream.decode import escaped
from streamcl.stream.images import checked_image
from streamcl.stream.isolate import CHILD
from streamcl.stream.limits import Limits
from streamcl.types import Message, Part

DATA_URL = re.compile(r"data:image/(?:jpeg|png|webp);base64,")


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Wire):
    type: Literal["text"]
    text: str


class ImageUrl(_Wire):
    url: str
    detail: Literal["auto"] | None = None


class ImagePart(_Wire):
    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(_Wire):
    role: Literal["system", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class StreamOptions(_Wire):
    include_usage: bool = False


class ChatRequest(_Wire):
    """The body of a request. Fields of which one value is allowed are there for clients that send their default."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    """0 when absent, unlike OpenAI's 1: an answer can be made again."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """0 when absent, for the same reason."""
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    n: Literal[1] | None = None
    top_p: float | None = Field(None, ge=1, le=1)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)

    def request(self, limits: Limits, *, max_tokens: int) -> Request:
        """What the engine is asked: images taken from their URLs, special tokens made harmless.  Raises BadSample."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        parts = [part for message in self.messages if not isinstance(message.content, str) for part in message.content]
        urls = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
        messages = tuple(_message(message) for message in self.messages)
        _check_size(messages, len(urls), stop, limits)
        _check_turns([message.role for message in messages])
        wanted = self.max_completion_tokens or self.max_tokens or Request.max_tokens
        if wanted > max_tokens:
            raise BadSample(f"max_tokens is {wanted}; at most {max_tokens} are allowed")
        images = tuple(_image(url, f"image {index}", limits) for index, url in enumerate(urls))
        return Request(messages, images, wanted, self.temperature or 0.0, self.seed or 0, tuple(stop))


def _message(message: ChatMessage) -> Message:
    content = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
    parts = (Part("text", escaped(part.text)) if isinstance(part, TextPart) else Part("image") for part in content)
    return Message(message.role, tuple(parts))


def _check_size(messages: Sequence[Message], images: int, stop: Sequence[str], limits: Limits) -> None:
    chars = sum(len(part.text) for message in messages for part in message.content)
    for what, count, most in (
        ("messages", len(messages), limits.messages),
        ("characters of text", chars, limits.text_chars),
        ("images", images, limits.images),
        ("stop strings", len(stop), 4),
    ):
        if count > most:
            raise BadSample(f"{count} {what}; at most {most} are allowed")


def _check_turns(roles: Sequence[str]) -> None:
    """Chat templates raise on anything else."""
    turns = list(roles[roles[0] == "system" :])
    if len(turns) % 2 == 0 or turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        raise BadSample(f"roles {', '.join(roles)}; need user and assistant in turn, user last; system only first")


def _image(url: str, where: str, limits: Limits) -> bytes:
    if not (match := DATA_URL.match(url)):
        raise BadSample(f"{where}: {url[:40]!r} is not fetched; give data:image/jpeg, png or webp;base64,…")
    return checked_image(url[match.end() :], where, limits, CHILD.prove)


def _chunks(answer: Response, base: dict[str, Any], *, usage: dict[str, int] | None) -> Iterator[str]:
    """The finished answer as server-sent events: the text, the finish, the usage when asked for, the end."""
    base = base | {"object": "chat.completion.chunk"}
    said = {"index": 0, "delta": {"role": "assistant", "content": answer.text}, "finish_reason": None}
    done = {"index": 0, "delta": {}, "finish_reason": answer.finish_reason}
    events: list[dict[str, Any]] = [{"choices": [said]}, {"choices": [done]}]
    if usage is not None:
        events.append({"choices": [], "usage": usage})
    for event in events:
        yield f"data: {json.dumps(base | event)}\n\n"
    yield "data: [DONE]\n\n"


class _Api:
    """The routes of one app."""

    def __init__(
        self,
        engine_call: Callable[[Request], Awaitable[Response]],
        models: Callable[[], Sequence[tuple[int, str]]],
        name: str,
        *,
        limits: Limits,
        body_bytes: int,
        max_tokens: int,
        keys: Keys,
    ) -> None:
        self.engine_call, self.models, self.name = engine_call, models, name
        self.limits, self.body_bytes, self.max_tokens, self.keys = limits, body_bytes, max_tokens, keys

    async def chat(self, http: HttpRequest) -> HttpResponse:
        self._authorize(http)
        chat, request = await run_in_threadpool(self._parse, await self._body(http))
        try:
            answer = await self.engine_call(request)
        except BadSample as error:
            raise ApiError(400, str(error), code="invalid_request") from error
        except (StreamclError, TimeoutError) as error:
            raise ApiError(503, str(error) or "no answer in time; send it again", code="unavailable") from error
        base = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": f"{self.name}@{answer.version}",
            "system_fingerprint": f"v{answer.version}-{answer.digest[:12]}",
            "version": answer.version,
            "digest": answer.digest,
        }
        usage = {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        }
        headers = {"x-streamcl-version": str(answer.version), "x-streamcl-digest": answer.digest}
        if chat.stream:
            asked = chat.stream_options is not None and chat.stream_options.include_usage
            events = _chunks(answer, base, usage=usage if asked else None)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        body = base | {"object": "chat.completion", "choices": [choice], "usage": usage}
        return JSONResponse(body, headers=headers)

    async def list_models(self, http: HttpRequest) -> HttpResponse:
        self._authorize(http)
        card = {"id": self.name, "object": "model", "created": 0, "owned_by": "streamcl"}
        data = [card | {"version": number, "digest": digest} for number, digest in self.models()]
        return JSONResponse({"object": "list", "data": data})

    async def health(self, http: HttpRequest) -> HttpResponse:
        if not (live := self.models()):
            raise ApiError(503, "no version is loaded yet; ask again", code="unavailable")
        return JSONResponse({"status": "ok", "version": live[0][0], "digest": live[0][1]})

    def _authorize(self, http: HttpRequest) -> None:
        self.keys.check(http.headers.get("authorization"), "predict")

    async def _body(self, http: HttpRequest) -> bytes:
        """The body, refused as soon as it is known to be too long."""
        body = bytearray()
        async for chunk in http.stream():
            body += chunk
            if len(body) > self.body_bytes:
                raise ApiError(413, f"the body is longer than {self.body_bytes} bytes", code="too_large")
        if body.count(b",") + body.count(b"[") > self.limits.record_values:
            raise ApiError(413, f"the body has more than {self.limits.record_values} values", code="too_large")
        return bytes(body)

    def _parse(self, body: bytes) -> tuple[ChatRequest, Request]:
        try:
            chat = ChatRequest.model_validate_json(body)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False, include_context=False)
            deepest = max(errors, key=lambda one: len(one["loc"]))  # the others are of types that were not meant
            where = ".".join(map(str, deepest["loc"])) or None
            status = 400 if deepest["type"] == "json_invalid" else 422
            message = f"{where or 'body'}: {deepest['msg']}"
            raise ApiError(status, message, code="invalid_request", param=where) from error
        if chat.model != self.name:
            message = f"no model {chat.model!r}; this server has {self.name!r}"
            raise ApiError(404, message, code="model_not_found", param="model")
        try:
            return chat, chat.request(self.limits, max_tokens=self.max_tokens)
        except BadSample as error:
            raise ApiError(400, str(error), code="invalid_request", param="messages") from error


async def _api_error(http: HttpRequest, error: Exception) -> HttpResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(http: HttpRequest, error: Exception) -> HttpResponse:
    """Unknown paths and methods, in the same shape."""
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path}: {error.detail}"
    return ApiError(error.status_code, message, code="no_such_route").response()


def build_app(
    engine_call: Callable[[Request], Awaitable[Response]],
    models: Callable[[], Sequence[tuple[int, str]]],
    name: str,
    *,
    limits: Limits | None = None,
    body_bytes: int = 32 * 2**20,
    max_tokens: int = 1024,
    keys: Keys | None = None,
) -> FastAPI:
    """The HTTP face of an engine under the model name `name`.

    `engine_call` may raise BadSample (400), another StreamclError or TimeoutError (503). `models` gives number and
    digest of what answers now, the first counts; nothing while nothing is ready. `limits` bounds a request as it bounds
    a sample; `body_bytes` the whole body; `max_tokens` an answer. `keys`: who may ask.
    """
    api = _Api(
        engine_call, models, name, limits=limits or Limits(), body_bytes=body_bytes, max_tokens=max_tokens,
        keys=keys or Keys(),
    )  # fmt: skip
    app = FastAPI(title="streamcl", openapi_url=None)
    app.add_api_route("/v1/chat/completions", api.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", api.list_models, methods=["GET"], response_model=None)
    app.add_api_route("/healthz", api.health, methods=["GET"], response_model=None)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    return app
