"""Where producers post samples: durable before they are told that they were taken.

    POST /v1/samples    {"samples": [record, ...]} as application/json, or a record a line as application/x-ndjson

A record is what a line of a JSON Lines file holds; images are base64. What is wrong at first sight is refused here, by
index; what only decoding a picture shows goes to the dead letters, as from any other source.

    202 {"accepted": 2, "rejected": [{"index": 1, "reason": "answer: ..."}]}    the accepted ones outlive a power cut
    429, 503 with Retry-After: over the quota; too much that no commit holds yet, or nowhere to write

With `Idempotency-Key` a request may be sent again until it is answered. A record that names no id gets one made of
producer, key and index, so that it is the same sample wherever it arrives; this process also gives the first answer
again, for as many keys as KEYS.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.responses import Response as HttpResponse

from streamcl.errors import BadSample, StreamclError
from streamcl.serve.errors import ApiError
from streamcl.serve.keys import Keys
from streamcl.serve.quota import PushConfig, Quotas
from streamcl.stream.decode import decode
from streamcl.stream.formats import parsed
from streamcl.stream.limits import Limits
from streamcl.stream.push import record_bytes
from streamcl.stream.wal import Wal

PATH = "/v1/samples"
KEYS = 65_536
"""How many idempotency keys back the first answer is given again."""
KEY_CHARS = 256
AGAIN_S = 5
"""What Retry-After says when the log is full or cannot be written."""
JSON_TYPES = ("", "application/json")
LINES_TYPES = ("application/x-ndjson", "application/jsonl")

_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": ["user", "assistant"]}, "content": {"type": ["string", "array"]}},
}
_RECORD = {
    "type": "object",
    "required": ["messages"],
    "properties": {
        "id": {"type": "string"},
        "messages": {"type": "array", "items": _MESSAGE, "minItems": 2},
        "images": {"type": "array", "items": {"type": "string", "description": "base64"}},
        "task": {"type": "string"},
        "time": {"type": "number"},
    },
}
_BATCH = {"type": "object", "required": ["samples"], "properties": {"samples": {"type": "array", "items": _RECORD}}}
BODY = {"required": True, "content": {"application/json": {"schema": _BATCH}}}
"""What is posted, as OpenAPI says it."""

Authorize = Callable[[HttpRequest], str]
"""Who posts: a producer's name, "" where nobody is asked.  Raises ApiError."""
Answer = tuple[int, dict[str, Any]]


class Later(ApiError):
    """An answer that says when to come again."""

    def __init__(self, status: int, message: str, *, code: str, wait_s: float) -> None:
        super().__init__(status, message, code=code)
        self.wait_s = wait_s

    def response(self) -> JSONResponse:
        response = super().response()
        response.headers["Retry-After"] = str(max(1, math.ceil(self.wait_s)))
        return response


class Samples:
    """The route. Mutable: quotas, and the answers to the latest keys."""

    def __init__(
        self,
        wal: Wal,
        committed: Callable[[], Mapping[str, int]],
        authorize: Authorize,
        *,
        config: PushConfig,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`committed`: the positions in the newest commit of the run; it may take its time, and raise StreamclError."""
        self.wal, self.committed, self.authorize = wal, committed, authorize
        self.config, self.limits, self.clock = config, limits, clock
        self.quotas = Quotas(config)
        self.positions: Mapping[str, int] = {}
        self.looked = -math.inf
        self.answers: OrderedDict[tuple[str, str], tuple[bytes, asyncio.Task[Answer]]] = OrderedDict()

    async def post(self, http: HttpRequest) -> HttpResponse:
        producer = self.authorize(http)
        key = http.headers.get("idempotency-key", "")
        if len(key) > KEY_CHARS:
            raise ApiError(400, f"an Idempotency-Key of {len(key)} characters; at most {KEY_CHARS}", code="invalid_key")
        if (producer, key) not in self.answers:
            await self._admit(producer)
        body = await self._body(http)
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not key:
            status, content = await self._take(producer, key, kind, body)
        else:
            status, content = await self._once(producer, key, kind, body)
        return JSONResponse(content, status)

    async def _once(self, producer: str, key: str, kind: str, body: bytes) -> Answer:
        """The answer to this key: the first one again, also if that is still on its way."""
        digest = hashlib.sha256(body).digest()
        if (producer, key) not in self.answers:
            task = asyncio.ensure_future(self._take(producer, key, kind, body))
            self.answers[producer, key] = digest, task
            if len(self.answers) > KEYS:
                self.answers.popitem(last=False)
        first, task = self.answers[producer, key]
        if first != digest:
            raise ApiError(
                422, f"Idempotency-Key {key!r} came with another body before; take a new key", code="key_reused"
            )
        try:
            return await asyncio.shield(task)
        except Exception:
            if self.answers.get((producer, key)) == (first, task):  # nothing was promised: the key may try again
                del self.answers[producer, key]
            raise

    async def _take(self, producer: str, key: str, kind: str, body: bytes) -> Answer:
        payloads, rejected = await run_in_threadpool(self._checked, producer, key, kind, body)
        self.quotas.take(producer, self.clock(), samples=len(payloads) + len(rejected), size=len(body))
        if not payloads:
            message = f"none of {len(rejected)} samples is taken; the first: {rejected[0]['reason']}"
            refusal = ApiError(422, message, code="invalid_samples", param="samples").response()
            return 422, {**json.loads(bytes(refusal.body)), "accepted": 0, "rejected": rejected}
        try:
            await asyncio.wrap_future(self.wal.append(payloads))
        except StreamclError as error:
            raise Later(503, str(error), code="unavailable", wait_s=AGAIN_S) from error
        return 202, {"accepted": len(payloads), "rejected": rejected}

    def _checked(self, producer: str, key: str, kind: str, body: bytes) -> tuple[list[bytes], list[dict[str, Any]]]:
        """The records to keep, as the log holds them, and the others with their reasons.  Raises ApiError."""
        payloads: list[bytes] = []
        rejected: list[dict[str, Any]] = []
        for index, record in enumerate(self._records(kind, body)):
            try:
                if isinstance(record, BadSample):
                    raise record
                sample = decode(record, self.limits, prove=_later)
            except BadSample as error:
                rejected.append({"index": index, "reason": str(error)})
                continue
            id = derived(producer, key, index) if key and record.get("id") is None else sample.id
            time = self.clock() if record.get("time") is None else sample.time
            payloads.append(record_bytes({**record, "id": id, "time": time}, producer))
        return payloads, rejected

    def _records(self, kind: str, body: bytes) -> Sequence[Any]:
        """What the body holds, not yet looked at.  Raises ApiError."""
        if body.count(b",") + body.count(b"[") + body.count(b"{") > self.limits.record_values:
            message = f"the body has more than {self.limits.record_values} values; send fewer samples at a time"
            raise ApiError(413, message, code="too_large")
        if kind in LINES_TYPES:
            records: Any = [parsed(line, self.limits) for line in body.splitlines() if line.strip()]
        elif kind in JSON_TYPES:
            records = _json(body)
        else:
            allowed = " or ".join([*JSON_TYPES[1:], *LINES_TYPES])
            raise ApiError(415, f"content type {kind!r}; send {allowed}", code="unsupported_type")
        if not records:
            raise ApiError(422, "no sample: send at least one", code="invalid_request", param="samples")
        return list(records)

    async def _admit(self, producer: str) -> None:
        """Raises Later if the producer, or everybody, must wait."""
        if (wait_s := self.quotas.wait_s(producer, self.clock())) > 0:
            message = (
                f"over the quota of {self.config.samples_per_s:g} samples or {self.config.bytes_per_s:g} bytes a second"
            )
            raise Later(429, message, code="rate_limit_exceeded", wait_s=wait_s)
        if self.wal.pending(self.positions) <= self.config.pending_bytes:
            return
        if self.clock() - self.looked >= 1.0:
            self.looked = self.clock()
            try:
                self.positions = await run_in_threadpool(self.committed)
            except StreamclError as error:
                raise Later(503, str(error), code="unavailable", wait_s=AGAIN_S) from error
        if (pending := self.wal.pending(self.positions)) > self.config.pending_bytes:
            message = f"{pending} bytes wait to be learned; at most {self.config.pending_bytes} may"
            raise Later(503, message, code="back_pressure", wait_s=AGAIN_S)

    async def _body(self, http: HttpRequest) -> bytes:
        body = bytearray()
        async for chunk in http.stream():
            body += chunk
            if len(body) > self.config.body_bytes:
                message = f"the body is longer than {self.config.body_bytes} bytes; send fewer samples at a time"
                raise ApiError(413, message, code="too_large")
        return bytes(body)


def known(keys: Keys) -> Authorize:
    """Lets pass who has a key with the scope push. A producer's name is the beginning of its key's digest."""

    def producer(http: HttpRequest) -> str:
        given = http.headers.get("authorization", "")
        keys.check(given, "push")
        key = given.partition(" ")[2].strip()
        return hashlib.sha256(key.encode()).hexdigest()[:12] if keys.scopes else ""

    return producer


def derived(producer: str, key: str, index: int) -> str:
    """The id of a record that names none, the same for the same key."""
    return hashlib.sha256(json.dumps([producer, key, index]).encode()).hexdigest()[:32]


def _json(body: bytes) -> Any:
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("samples"), list):
        raise ApiError(422, 'need an object {"samples": [...]}', code="invalid_request", param="samples")
    return tree["samples"]


def _later(data: bytes | memoryview, where: str, limits: Limits) -> None:
    """Pictures are decoded by whoever reads the log, where they can do no harm."""


async def _refusal(http: HttpRequest, error: Exception) -> HttpResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _no_route(http: HttpRequest, error: Exception) -> HttpResponse:
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path}: {error.detail}; POST to {PATH}"
    return ApiError(error.status_code, message, code="no_such_route").response()


def push_app(samples: Samples) -> FastAPI:
    """The route as an app of its own, with its schema beside it."""
    app = FastAPI(title="streamcl", openapi_url=f"{PATH}/openapi.json", docs_url=None, redoc_url=None)
    app.add_api_route(
        PATH, samples.post, methods=["POST"], status_code=202, response_model=None, openapi_extra={"requestBody": BODY}
    )
    app.add_exception_handler(ApiError, _refusal)
    app.add_exception_handler(HTTPException, _no_route)
    return app
