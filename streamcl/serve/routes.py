"""The routes of the endpoint: from HTTP to the engine's requests, and from its answers back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.responses import Response as HttpResponse

from streamcl.errors import BadSample, NoSuchVersion, StreamclError
from streamcl.serve import replies
from streamcl.serve.batch import Answer, Listen
from streamcl.serve.errors import ApiError
from streamcl.serve.generate import Request, Response
from streamcl.serve.keys import Keys
from streamcl.serve.loaded import Label
from streamcl.serve.metrics import Metrics
from streamcl.serve.trial import Counts
from streamcl.serve.wire import parse
from streamcl.stream.limits import Limits

CHECK_EVERY_S = 1.0
"""A look at /healthz within this time of the one before learns what that one learned."""


class Backend(Protocol):
    """What answers: an engine, and where it gets its versions."""

    def models(self) -> list[Label]:
        """The versions that may be asked for, the live one first; nothing while nothing is ready."""
        ...

    async def submit(self, request: Request, listen: Listen) -> Answer:
        """Has `request` answered; `listen` hears the text as it comes, on another thread.

        Raises BadSample (400), NoSuchVersion (404), or another StreamclError (503).
        """
        ...

    async def check(self) -> None:
        """Runs one token through the live version.  Raises StreamclError or TimeoutError."""
        ...

    def queued(self) -> tuple[int, int]:
        """How many requests wait, and how many are under way."""
        ...

    def tried(self) -> Counts:
        """What trials of candidates have come to."""
        ...


@contextmanager
def refused() -> Iterator[None]:
    """What the engine raises, as ApiError."""
    try:
        yield
    except BadSample as error:
        raise ApiError(400, str(error), code="invalid_request") from error
    except NoSuchVersion as error:
        raise ApiError(404, str(error), code="model_not_found", param="model") from error
    except (StreamclError, TimeoutError) as error:
        raise ApiError(503, str(error) or "no answer in time; send it again", code="unavailable") from error


class Api:
    """The routes of one app. Mutable: its counts, and when health was looked at last."""

    def __init__(
        self, backend: Backend, name: str, *, limits: Limits, body_bytes: int, max_tokens: int, keys: Keys, replica: str
    ) -> None:
        self.backend, self.name, self.keys = backend, name, keys
        self.limits, self.body_bytes, self.max_tokens = limits, body_bytes, max_tokens
        self.metrics = Metrics(replica)
        self.checking, self.checked = asyncio.Lock(), float("-inf")

    async def chat(self, http: HttpRequest) -> HttpResponse:
        key = self._authorize(http, "predict")
        body = await self._body(http)
        chat, request = await run_in_threadpool(
            parse, body, self.name, self.limits, max_tokens=self.max_tokens
        )  # fmt: skip
        request = replace(request, caller=request.caller or key)
        if chat.stream:
            usage = chat.stream_options is not None and chat.stream_options.include_usage
            return await self._stream(request, with_usage=usage)
        with refused():
            answer = await self._unless_gone(http, await self.backend.submit(request, lambda piece, label: None))
        reply = replies.Reply(self.name, (answer.version, answer.digest))
        self.metrics.answered(answer)
        return JSONResponse(reply.whole(answer), headers=reply.headers)

    async def _unless_gone(self, http: HttpRequest, answer: Answer) -> Response:
        """The answer; cancelled when the client goes away."""
        done, gone = asyncio.wrap_future(answer), asyncio.ensure_future(_disconnected(http))
        both: list[asyncio.Future[Any]] = [done, gone]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                return done.result()
            self.metrics.cancelled += 1
            raise ApiError(499, "the client went away", code="cancelled")
        finally:
            gone.cancel()
            done.cancel()

    async def _stream(self, request: Request, *, with_usage: bool) -> HttpResponse:
        """Begins with the first token: what fails before has its own status, and the version is a header."""
        loop, heard = asyncio.get_running_loop(), asyncio.Queue[tuple[str, Label] | None]()

        def listen(piece: str, label: Label) -> None:
            loop.call_soon_threadsafe(heard.put_nowait, (piece, label))

        with refused():
            answer = await self.backend.submit(request, listen)
            answer.add_done_callback(lambda _: loop.call_soon_threadsafe(heard.put_nowait, None))
            try:
                first = await heard.get()
            except asyncio.CancelledError:
                answer.cancel()
                raise
            if first is None:
                answer.result()
        assert first is not None, "an answer has at least one token"
        reply = replies.Reply(self.name, first[1])
        events = self._events(reply, first[0], heard, answer, with_usage=with_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers=reply.headers)

    async def _events(
        self, reply: replies.Reply, first: str, heard: asyncio.Queue[Any], answer: Answer, *, with_usage: bool
    ) -> AsyncIterator[str]:
        try:
            yield reply.piece(first, first=True)
            while (more := await heard.get()) is not None:
                yield reply.piece(more[0], first=False)
            self.metrics.answered(answer.result())
            yield reply.end(answer.result(), with_usage=with_usage)
        finally:
            if not answer.done():
                answer.cancel()
                self.metrics.cancelled += 1

    async def list_models(self, http: HttpRequest) -> HttpResponse:
        self._authorize(http, "predict")
        return JSONResponse(replies.models(self.name, self.backend.models()))

    async def show_metrics(self, http: HttpRequest) -> HttpResponse:
        self._authorize(http, "admin")
        waiting, running = self.backend.queued()
        live = self.backend.models()[:1]
        number = live[0][0] if live else 0
        text = self.metrics.text(version=number, waiting=waiting, running=running, tried=self.backend.tried())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def health(self, http: HttpRequest) -> HttpResponse:
        if not (live := self.backend.models()):
            raise ApiError(503, "no version is loaded yet; ask again", code="unavailable")
        async with self.checking:
            if time.monotonic() - self.checked > CHECK_EVERY_S:
                with refused():
                    await self.backend.check()
                self.checked = time.monotonic()
        return JSONResponse({"status": "ok", "version": live[0][0], "digest": live[0][1]})

    def _authorize(self, http: HttpRequest, scope: str) -> str:
        return self.keys.check(http.headers.get("authorization"), scope)

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


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
