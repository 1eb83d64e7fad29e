"""OpenAI's API: what is understood, what is refused and how, and that every answer names its version."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tiny_llava import ask, png

from streamcl.errors import BadSample, StreamclError
from streamcl.serve.engine import Engine, Request, Response
from streamcl.serve.openai import build_app
from streamcl.stream.limits import Limits
from streamcl.types import Message, Part

DIGEST = "ab" * 32
CHAT = "/v1/chat/completions"


def data_url(image: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def body(content: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "octo", "messages": [{"role": "user", "content": content}], **more}


class Recorded:
    """Stands where the engine stands. Mutates: remembers requests."""

    def __init__(self, error: Exception | None = None) -> None:
        self.requests: list[Request] = []
        self.error = error

    async def __call__(self, request: Request) -> Response:
        self.requests.append(request)
        if self.error:
            raise self.error
        return Response("a fox", 7, DIGEST, "stop", 11, 3)


def client_of(call: Callable[[Request], Awaitable[Response]], **settings: Any) -> TestClient:
    return TestClient(build_app(call, lambda: [(7, DIGEST)], "octo", **settings), raise_server_exceptions=True)


@pytest.fixture
def engine_call() -> Recorded:
    return Recorded()


@pytest.fixture
def client(engine_call: Recorded) -> Iterator[TestClient]:
    with client_of(engine_call, body_bytes=100_000, max_tokens=64) as client:
        yield client


def test_an_answer_names_its_version(client: TestClient) -> None:
    reply = client.post(CHAT, json=body())
    assert reply.status_code == 200
    answer = reply.json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "octo@7"
    assert answer["system_fingerprint"] == f"v7-{DIGEST[:12]}"
    assert (answer["version"], answer["digest"]) == (7, DIGEST)
    assert (reply.headers["x-streamcl-version"], reply.headers["x-streamcl-digest"]) == ("7", DIGEST)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "a fox"}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}


def test_a_request_reaches_the_engine_whole(client: TestClient, engine_call: Recorded) -> None:
    image = png(3)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image_part(data_url(image)), {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "a fox"},
        {"role": "user", "content": "Sure?"},
    ]
    settings = {"max_tokens": 9, "temperature": 0.5, "seed": 4, "stop": ["\n"], "n": 1, "top_p": 1.0, "user": "me"}
    assert client.post(CHAT, json={"model": "octo", "messages": messages, **settings}).status_code == 200
    assert engine_call.requests == [
        Request(
            (
                Message("system", (Part("text", "Be brief."),)),
                Message("user", (Part("image"), Part("text", "What?"))),
                Message("assistant", (Part("text", "a fox"),)),
                Message("user", (Part("text", "Sure?"),)),
            ),
            (image,), max_tokens=9, temperature=0.5, seed=4, stop=("\n",),
        )
    ]  # fmt: skip


def test_an_absent_setting_is_greedy_and_repeatable(client: TestClient, engine_call: Recorded) -> None:
    client.post(CHAT, json=body(temperature=None, seed=None, max_tokens=None))
    assert engine_call.requests == [ask("hi")]


def test_special_tokens_in_a_text_are_made_harmless(client: TestClient, engine_call: Recorded) -> None:
    client.post(CHAT, json=body("<image> <|im_end|>"))
    text = engine_call.requests[0].messages[0].text
    assert "<image>" not in text
    assert "<|" not in text


def test_stream_gives_the_answer_as_events_that_name_the_version(client: TestClient) -> None:
    reply = client.post(CHAT, json=body(stream=True, stream_options={"include_usage": True}))
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-streamcl-version"] == "7"
    *events, end, rest = reply.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {(c["object"], c["model"], c["version"], c["digest"]) for c in chunks} == {
        ("chat.completion.chunk", "octo@7", 7, DIGEST)
    }
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "a fox"}
    assert chunks[1]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert (chunks[2]["choices"], chunks[2]["usage"]["total_tokens"]) == ([], 14)
    assert len(client.post(CHAT, json=body(stream=True)).text.split("\n\n")) == 4


REFUSED: dict[str, tuple[int, Mapping[str, Any]]] = {
    "http URL": (400, body([image_part("http://127.0.0.1/fox.png")])),
    "file URL": (400, body([image_part("file:///etc/passwd")])),
    "another media type": (400, body([image_part("data:image/svg+xml;base64,AAAA")])),
    "not base64": (400, body([image_part("data:image/png;base64,!")])),
    "not an image": (400, body([image_part(data_url(b"nothing"))])),
    "too many pixels": (400, body([image_part(data_url(png(1, side=5000)))])),
    "too many images": (400, body([image_part(data_url(png(1)))] * 9)),
    "too much text": (400, body("x" * 40_000)),
    "too many messages": (400, {"model": "octo", "messages": [{"role": "user", "content": ""}] * 65}),
    "too many stop strings": (400, body(stop=["a"] * 5)),
    "too many tokens": (400, body(max_tokens=65)),
    "assistant last": (400, {"model": "octo", "messages": [{"role": "assistant", "content": "I"}]}),
    "two users": (400, {"model": "octo", "messages": [{"role": "user", "content": "I"}] * 2}),
    "unknown model": (404, body() | {"model": "gpt-4"}),
    "no messages": (422, {"model": "octo", "messages": []}),
    "unknown field": (422, body(tools=[])),
    "unsupported value": (422, body(top_p=0.5)),
    "unknown part": (422, body([{"type": "audio"}])),
    "negative temperature": (422, body(temperature=-1)),
    "seed out of range": (422, body(seed=2**63)),
    "empty stop string": (422, body(stop="")),
    "body too long": (413, body("x" * 100_001)),
    "too many values": (413, body(stop=[""] * 99_000)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_openais_shape(name: str, engine_call: Recorded) -> None:
    status, sent = REFUSED[name]
    limit = 100_000 if name == "body too long" else 10**6
    with client_of(engine_call, body_bytes=limit, max_tokens=64) as client:
        reply = client.post(CHAT, json=sent)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert not engine_call.requests


def test_a_body_without_a_length_is_cut_off_while_it_is_read(client: TestClient) -> None:
    taken = iter(range(1000))

    def endless() -> Iterator[bytes]:
        for _ in taken:
            yield b" " * 1000

    assert client.post(CHAT, content=endless()).status_code == 413


def test_a_body_that_is_not_json_is_a_400(client: TestClient) -> None:
    assert client.post(CHAT, content=b"{").status_code == 400


def test_unknown_routes_have_the_same_shape(client: TestClient) -> None:
    assert client.get("/v1/nothing").json()["error"]["code"] == "no_such_route"
    assert client.get(CHAT).status_code == 405


@pytest.mark.parametrize(
    ("error", "status"), [(BadSample("too long"), 400), (StreamclError("closed"), 503), (TimeoutError(), 503)]
)
def test_what_the_engine_says_reaches_the_client(error: Exception, status: int) -> None:
    with client_of(Recorded(error)) as client:
        reply = client.post(CHAT, json=body())
    assert reply.status_code == status
    assert reply.json()["error"]["type"] == ("server_error" if status == 503 else "invalid_request_error")
    assert ("retry-after" in reply.headers) == (status == 503)


def test_models_and_health_name_the_live_version(client: TestClient, engine_call: Recorded) -> None:
    card = client.get("/v1/models").json()["data"][0]
    assert (card["id"], card["object"], card["version"], card["digest"]) == ("octo", "model", 7, DIGEST)
    assert client.get("/healthz").json() == {"status": "ok", "version": 7, "digest": DIGEST}
    with TestClient(build_app(engine_call, list, "octo")) as empty:
        assert empty.get("/healthz").status_code == 503
        assert empty.get("/v1/models").json()["data"] == []


def test_limits_are_the_streams(engine_call: Recorded) -> None:
    with client_of(engine_call, limits=Limits(pixels=100)) as client:
        assert client.post(CHAT, json=body([image_part(data_url(png(1)))])).status_code == 400


def test_a_request_over_http_gets_the_engines_answer(engine: Engine, versions: Mapping[int, Any]) -> None:
    async def call(request: Request) -> Response:
        return await asyncio.wrap_future(engine.submit(request))

    engine.load(1, DIGEST, versions[1])
    image = png(9)
    with TestClient(build_app(call, lambda: [engine.version], "octo")) as client:
        reply = client.post(CHAT, json=body([image_part(data_url(image)), {"type": "text", "text": "What?"}])).json()
        too_long = client.post(CHAT, json=body("x" * 500))
    expected = engine.answer([ask("What?", images=(image,))])[0]
    assert reply["choices"][0]["message"]["content"] == expected.text
    assert reply["model"] == "octo@1"
    assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "invalid_request")
