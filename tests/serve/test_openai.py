"""OpenAI's API: what is understood, what is refused and how, and that every answer names its version."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tiny_llava import ask, png

from streamcl.errors import BadSample, Busy, NoSuchVersion, NotFinite, StreamclError
from streamcl.serve.batch import Answer, Listen
from streamcl.serve.engine import Engine, Request, Response
from streamcl.serve.keys import Keys
from streamcl.serve.local import Local
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
    """Stands where the engine stands, and says "a fox" in three pieces. Mutates: remembers requests and answers."""

    def __init__(self, error: Exception | None = None, *, label: tuple[int, str] | None = (7, DIGEST)) -> None:
        self.requests: list[Request] = []
        self.answers: list[Answer] = []
        self.error, self.label = error, label
        self.checks = 0

    def models(self) -> list[tuple[int, str]]:
        return [self.label, (0, "ba" * 32), (3, "cd" * 32)] if self.label else []

    async def submit(self, request: Request, listen: Listen) -> Answer:
        self.requests.append(request)
        if self.error:
            raise self.error
        answer = Answer()
        self.answers.append(answer)
        if request.messages[-1].text == "never":
            return answer
        for piece in ("a", " f", "ox"):
            listen(piece, (7, DIGEST))
        answer.set_result(Response("a fox", 7, DIGEST, "stop", 11, 3))
        return answer

    async def check(self) -> None:
        self.checks += 1
        if self.error:
            raise self.error

    def queued(self) -> tuple[int, int]:
        return 2, 5

    def tried(self) -> Mapping[str, Mapping[str, float]]:
        return {"canary_total": {'result="sent"': 3}}


def client_of(backend: Recorded, **settings: Any) -> TestClient:
    return TestClient(build_app(backend, "octo", **settings), raise_server_exceptions=False)


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
            (image,), max_tokens=9, temperature=0.5, seed=4, stop=("\n",), caller="me",
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
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:3]]
    assert deltas == [{"role": "assistant", "content": "a"}, {"content": " f"}, {"content": "ox"}]
    assert chunks[3]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert (chunks[4]["choices"], chunks[4]["usage"]["total_tokens"]) == ([], 14)
    assert len(client.post(CHAT, json=body(stream=True)).text.split("\n\n")) == 6


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
    "no version number": (404, body() | {"model": "octo@live"}),
    "no version": (404, body() | {"model": "octo@"}),
    "an endless version number": (404, body() | {"model": "octo@" + "1" * 5000}),
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
    ("error", "status"),
    [
        (BadSample("too long"), 400),
        (NoSuchVersion("no version 9"), 404),
        (Busy("all slots are needed"), 503),
        (StreamclError("closed"), 503),
        (TimeoutError(), 503),
        (ZeroDivisionError("a secret"), 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_says_reaches_the_client(error: Exception, status: int, stream: bool) -> None:
    with client_of(Recorded(error)) as client:
        reply = client.post(CHAT, json=body(stream=stream))
    assert reply.status_code == status
    assert reply.json()["error"]["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert ("retry-after" in reply.headers) == (status == 503)
    assert "secret" not in reply.text


ENDPOINTS = {"predict": [("POST", CHAT), ("GET", "/v1/models")], "admin": [("GET", "/metrics")],
             "": [("GET", "/healthz"), ("GET", "/openapi.json")]}  # fmt: skip


def test_every_endpoint_asks_for_its_scope(engine_call: Recorded) -> None:
    keys = Keys.parse("predict p; push s; admin a", "here")
    app = build_app(engine_call, "octo", keys=keys)
    known = {(method, path) for pairs in ENDPOINTS.values() for method, path in pairs}
    there = {(method, route.path) for route in app.routes for method in route.methods}  # type: ignore[attr-defined]
    assert {
        (method, path)
        for method, path in there
        if method != "HEAD" and path.startswith(("/v1/ch", "/v1/mo", "/m", "/h", "/o"))
    } == known
    with TestClient(app) as client:
        for scope, pairs in ENDPOINTS.items():
            for method, path in pairs:
                for key, may in {None: "", "x": "", "p": "predict", "s": "push", "a": "all"}.items():
                    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
                    sent = {"json": body()} if method == "POST" else {}
                    reply = client.request(method, path, headers=headers, **sent)
                    expected = 200 if scope in ("", may) or may == "all" else 403 if may else 401
                    assert reply.status_code == expected, (method, path, key)
                    if expected != 200:
                        code = {401: "invalid_api_key", 403: "insufficient_scope"}[expected]
                        assert reply.json()["error"]["code"] == code


def test_a_version_may_be_asked_for(client: TestClient, engine_call: Recorded) -> None:
    assert client.post(CHAT, json=body() | {"model": "octo@3"}).status_code == 200
    assert client.post(CHAT, json=body()).status_code == 200
    assert [request.version for request in engine_call.requests] == [3, None]


def test_models_are_the_name_and_its_versions(client: TestClient) -> None:
    cards = client.get("/v1/models").json()["data"]
    shown = [(card["id"], card["root"], card["parent"], card["version"], card["digest"][:2]) for card in cards]
    assert shown == [
        ("octo", "octo@7", "octo@0", 7, "ab"),
        ("octo@0", "octo@0", None, 0, "ba"),
        ("octo@3", "octo@3", "octo@0", 3, "cd"),
        ("octo@7", "octo@7", "octo@0", 7, "ab"),
    ]


def test_health_lets_a_token_through_the_model_but_not_for_everyone(client: TestClient, engine_call: Recorded) -> None:
    for _ in range(5):
        assert client.get("/healthz").json() == {"status": "ok", "version": 7, "digest": DIGEST}
    assert engine_call.checks == 1
    for sick in (Recorded(NotFinite("NaN")), Recorded(TimeoutError()), Recorded(label=None)):
        with client_of(sick) as other:
            assert other.get("/healthz").status_code == 503
            assert other.get("/v1/models").status_code == 200


def test_metrics_count_what_happened(client: TestClient) -> None:
    client.post(CHAT, json=body())
    client.post(CHAT, json=body(stream=True))
    for path in ("/a", "/b/c"):
        client.get(path)
    client.post(CHAT, content=b"{")
    text = client.get("/metrics").text
    lines = {
        name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if "#" not in line)
    }
    chat = 'streamcl_requests_total{replica="0",path="/v1/chat/completions",status='
    assert (lines[chat + '"200"}'], lines[chat + '"400"}']) == (2, 1)
    assert lines['streamcl_requests_total{replica="0",path="other",status="404"}'] == 2
    assert lines['streamcl_answer_seconds_bucket{replica="0",le="+Inf"}'] == 2
    assert lines['streamcl_answer_seconds_count{replica="0"}'] == 2
    assert lines['streamcl_tokens_total{replica="0",kind="completion"}'] == 6
    assert lines['streamcl_version{replica="0"}'] == 7
    assert lines['streamcl_canary_total{replica="0",result="sent"}'] == 3
    assert (lines['streamcl_waiting{replica="0"}'], lines['streamcl_running{replica="0"}']) == (2, 5)
    assert text.count("# TYPE") == len({line for line in text.splitlines() if line.startswith("# TYPE")}) == 8


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_is_not_answered(stream: bool) -> None:
    """Over plain ASGI: the body, then a disconnect."""
    backend = Recorded()
    app = build_app(backend, "octo")
    messages = iter([{"type": "http.request", "body": json.dumps(body("never", stream=stream)).encode()},
                     {"type": "http.disconnect"}])  # fmt: skip

    async def receive() -> dict[str, Any]:
        return next(messages, None) or await asyncio.Future()

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b"", "root_path": "",
             "scheme": "http", "server": ("here", 80), "client": ("there", 1), "http_version": "1.1"}  # fmt: skip

    async def ask() -> None:
        task = asyncio.ensure_future(app(scope, receive, send))
        if stream:  # what serves the app cancels it
            while not backend.answers:
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(ask())
    assert backend.answers[0].unwanted


def test_the_schema_describes_the_request(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    chat = schema["paths"][CHAT]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatRequest"}
    assert {"ChatRequest", "ChatMessage", "ImagePart", "Completion", "Error"} <= schema["components"]["schemas"].keys()
    assert schema["paths"].keys() >= {CHAT, "/v1/models", "/metrics", "/healthz"}
    for reference in {part.split('"')[0] for part in json.dumps(schema).split('"#/components/schemas/')[1:]}:
        assert reference in schema["components"]["schemas"]


def test_limits_are_the_streams(engine_call: Recorded) -> None:
    with client_of(engine_call, limits=Limits(pixels=100)) as client:
        assert client.post(CHAT, json=body([image_part(data_url(png(1)))])).status_code == 400


def test_a_request_over_http_gets_the_engines_answer(engine: Engine, versions: Mapping[int, Any]) -> None:
    engine.load(1, DIGEST, versions[1])
    image = png(9)
    sent = body([image_part(data_url(image)), {"type": "text", "text": "What?"}])
    with TestClient(build_app(Local(engine), "octo")) as client:
        reply = client.post(CHAT, json=sent).json()
        events = client.post(CHAT, json=sent | {"stream": True}).text.split("\n\n")
        base = client.post(CHAT, json=sent | {"model": "octo@0"}).json()
        assert client.get("/healthz").json()["version"] == 1
        assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["octo", "octo@0", "octo@1"]
        assert client.post(CHAT, json=sent | {"model": "octo@5"}).status_code == 404
        too_long = client.post(CHAT, json=body("x" * 500))
    expected = engine.answer([ask("What?", images=(image,))])[0]
    assert reply["choices"][0]["message"]["content"] == expected.text
    assert (reply["model"], base["model"]) == ("octo@1", "octo@0")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == expected.text
    assert len(chunks) > 5
    assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "invalid_request")
