"""POST /v1/samples: what is promised, refused, put off, and answered again."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode

from streamcl.bench.push_endpoint import UNLIMITED, samples
from streamcl.errors import ConfigError, StoreError
from streamcl.registry.backends import LocalStore
from streamcl.registry.log import Log
from streamcl.serve.keys import Keys
from streamcl.serve.push import Samples, derived, known, push_app
from streamcl.serve.quota import BURST_S, PushConfig
from streamcl.stream import Push
from streamcl.testing import free_port
from streamcl.types import Sample, from_batch


def record(text: str = "a fox", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "what is this?"}, {"role": "assistant", "content": text}]
    return {"messages": messages, **fields}


def kept(store: Path, shard: str = "0") -> list[Sample]:
    return from_batch(Push(str(store / "wal")).open(shard, 0).poll(10_000).batch)


def client(route: Samples) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(push_app(route)), base_url="http://push")


def post(route: Samples, *bodies: Any, **kwargs: Any) -> list[httpx.Response]:
    """Posts batches one after the other; a list is a batch of records, anything else the JSON itself."""

    async def all_of_them() -> list[httpx.Response]:
        async with client(route) as http:
            return [await http.post("/v1/samples", **(kwargs | as_body(body))) for body in bodies]

    return asyncio.run(all_of_them())


def as_body(body: Any) -> dict[str, Any]:
    if isinstance(body, bytes):
        return {"content": body}
    return {"json": {"samples": body} if isinstance(body, list) else body}


def error(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()["error"]
    assert {*body} == {"message", "type", "param", "code"}
    return answer.status_code, body["code"]


def test_a_batch_is_in_the_log_when_it_is_answered(tmp_path: Path) -> None:
    route = samples(str(tmp_path))
    (answer,) = post(route, [record(id="a", task="fox", time=5.0), record(id="b")])
    assert (answer.status_code, answer.json()) == (202, {"accepted": 2, "rejected": []})
    a, b = kept(tmp_path)
    assert (a.id, a.task, a.time, a.source, a.partition, a.answer) == ("a", "fox", 5.0, "push", "0", "a fox")
    assert abs(b.time - time.time()) < 60, "a record without a time has that of its arrival"


def test_lines_of_json_are_a_batch_too(tmp_path: Path) -> None:
    route = samples(str(tmp_path))
    lines = b"\n".join([json.dumps(record(id="a")).encode(), b"", b"{oops", json.dumps(record(id="b")).encode()])
    (answer,) = post(route, lines, headers={"content-type": "application/x-ndjson"})
    assert answer.status_code == 202
    assert [one["index"] for one in answer.json()["rejected"]] == [1]
    assert [sample.id for sample in kept(tmp_path)] == ["a", "b"]


def test_what_is_wrong_at_first_sight_is_refused_by_index(tmp_path: Path) -> None:
    route = samples(str(tmp_path))
    (answer,) = post(route, [record(id="a"), {"messages": []}, "text", record(images=["?"]), record(id="b", extra=1)])
    assert answer.status_code == 202
    assert [(one["index"], one["reason"].split(":")[0]) for one in answer.json()["rejected"]] == [
        (1, "schema"), (2, "schema"), (3, "image"),
    ]  # fmt: skip
    assert [sample.id for sample in kept(tmp_path)] == ["a", "b"]


def test_a_picture_that_cannot_be_decoded_is_a_dead_letter(tmp_path: Path) -> None:
    route = samples(str(tmp_path))
    messages = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a fox"}]
    image = base64.b64encode(b"\x89PNG\r\n\x1a\n broken").decode()
    (answer,) = post(route, [{"id": "bad", "messages": messages, "images": [image]}])
    assert answer.json()["accepted"] == 1
    polled = Push(str(tmp_path / "wal")).open("0", 0).poll(10)
    assert [(letter.id, letter.reason.split(":")[0]) for letter in polled.dead] == [("bad", "image")]


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (b"{", "application/json", (400, "invalid_json")),
        (b"\xff", "", (400, "invalid_json")),
        (b"[]", "application/json", (422, "invalid_request")),
        (b'{"samples": {}}', "application/json", (422, "invalid_request")),
        (b'{"samples": []}', "application/json", (422, "invalid_request")),
        (b'{"samples": [1, 2]}', "application/json", (422, "invalid_samples")),
        (b"x" * 200_001, "application/json", (413, "too_large")),
        (b"[" * 150_000, "application/json", (413, "too_large")),
        (b"[" * 50_000, "application/json", (400, "invalid_json")),
        (b"a;b", "text/csv", (415, "unsupported_type")),
    ],
)
def test_a_body_that_cannot_be_taken_is_an_error_in_the_usual_shape(
    tmp_path: Path, body: bytes, kind: str, expected: tuple[int, str]
) -> None:
    route = samples(str(tmp_path), config=PushConfig(body_bytes=200_000))
    (answer,) = post(route, body, headers={"content-type": kind} if kind else {})
    assert error(answer) == expected
    assert Push(str(tmp_path / "wal")).partitions() == [], "nothing was written"


def test_another_method_is_an_error_in_the_same_shape(tmp_path: Path) -> None:
    async def get() -> httpx.Response:
        async with client(samples(str(tmp_path))) as http:
            return await http.get("/v1/samples")

    assert error(asyncio.run(get())) == (405, "no_such_route")


def test_a_key_gets_its_first_answer_again_and_counts_once(tmp_path: Path) -> None:
    route = samples(str(tmp_path))
    batch, headers = [record("a"), record("b"), record("c", id="mine")], {"idempotency-key": "k-1"}
    answers = post(route, batch, batch, headers=headers)
    assert [answer.json() for answer in answers] == [{"accepted": 3, "rejected": []}] * 2
    assert [sample.id for sample in kept(tmp_path)] == [derived("", "k-1", 0), derived("", "k-1", 1), "mine"]
    (other,) = post(route, [record("another")], headers=headers)
    assert error(other) == (422, "key_reused")


def test_a_key_means_the_same_samples_after_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        route = samples(str(tmp_path))
        post(route, [record("a")], headers={"idempotency-key": "k"})
        route.wal.close()
    first, second = kept(tmp_path)
    assert first.id == second.id == derived("", "k", 0), "so the learner counts them once"


def test_the_same_key_at_the_same_time_is_written_once(tmp_path: Path) -> None:
    route = samples(str(tmp_path))

    async def at_once() -> list[httpx.Response]:
        async with client(route) as http:
            asked = [
                http.post("/v1/samples", json={"samples": [record()]}, headers={"idempotency-key": "k"})
                for _ in range(8)
            ]
            return await asyncio.gather(*asked)

    assert {answer.status_code for answer in asyncio.run(at_once())} == {202}
    assert len(kept(tmp_path)) == 1


class Broken:
    """A log that fails until it is repaired. Mutable."""

    def __init__(self, wal: Any) -> None:
        self.wal, self.failing = wal, True
        self.pending = wal.pending

    def append(self, payloads: Any) -> Future[None]:
        if not self.failing:
            done: Future[None] = self.wal.append(payloads)
            return done
        failed: Future[None] = Future()
        failed.set_exception(StoreError("no space left on the device"))
        return failed


def test_a_full_disk_is_503_and_the_same_key_may_try_again(tmp_path: Path) -> None:
    route = samples(str(tmp_path))
    route.wal = broken = Broken(route.wal)  # type: ignore[assignment]
    headers = {"idempotency-key": "k"}
    (answer,) = post(route, [record()], headers=headers)
    assert error(answer) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    broken.failing = False
    (answer,) = post(route, [record()], headers=headers)
    assert answer.status_code == 202
    assert len(kept(tmp_path)) == 1


def test_a_producer_over_its_quota_is_told_when_to_come_again(tmp_path: Path) -> None:
    now = [1000.0]
    config = PushConfig(samples_per_s=1.0)
    route = samples(str(tmp_path), config=config)
    route.clock = lambda: now[0]
    route.authorize = lambda http: http.headers.get("x-who", "a")
    batch = [record() for _ in range(int(BURST_S) + 4)]
    first, second = post(route, batch, batch)
    assert first.status_code == 202
    assert error(second) == (429, "rate_limit_exceeded")
    wait_s = int(second.headers["retry-after"])
    assert wait_s == 4
    (other,) = post(route, batch, headers={"x-who": "b"})
    assert other.status_code == 202, "each producer has a quota of its own"
    now[0] += wait_s - 1
    assert post(route, [record()])[0].status_code == 429
    now[0] += 1
    assert post(route, [record()])[0].status_code == 202


def test_back_pressure_lasts_until_a_commit_holds_what_was_posted(tmp_path: Path) -> None:
    now = [1000.0]
    route = samples(str(tmp_path), config=PushConfig(pending_bytes=300, **{"samples_per_s": 1e9}))
    route.clock = lambda: now[0]
    answers = post(route, *[[record(id=str(number))] for number in range(4)])
    taken = [answer.status_code for answer in answers].count(202)
    assert 1 < taken < 4
    assert error(answers[-1]) == (503, "back_pressure")
    assert int(answers[-1].headers["retry-after"]) >= 1
    log = Log(LocalStore(tmp_path))
    log.acquire("test")
    reader = Push(str(tmp_path / "wal")).open("0", 0)
    reader.poll(100)
    log.append("data", state={"sources": {"0": reader.position}})
    now[0] += 2
    assert post(route, [record(id="again")])[0].status_code == 202
    assert len(kept(tmp_path)) == taken + 1


def test_settings_that_let_nothing_through_are_refused() -> None:
    with pytest.raises(ConfigError, match="positive"):
        PushConfig(samples_per_s=0)
    assert UNLIMITED.body_bytes == PushConfig().body_bytes


def test_who_has_no_key_for_it_adds_nothing(tmp_path: Path) -> None:
    keys = Keys.parse("push sk-robots; predict sk-readers; admin sk-owners", "here")
    route = samples(str(tmp_path))
    route.authorize = known(keys)
    assert [answer.status_code for answer in post(route, [record()])] == [401]
    expected = {"": 401, "x": 401, "sk-readers": 403, "sk-robots": 202, "sk-owners": 202}
    for key, status in expected.items():
        (answer,) = post(route, [record(id=f"a{key}")], headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == status, key
    taken = {sample.id: sample.source for sample in kept(tmp_path)}
    assert taken == {
        f"a{key}": f"push/{hashlib.sha256(key.encode()).hexdigest()[:12]}" for key in ("sk-robots", "sk-owners")
    }


def test_no_request_that_the_schema_allows_breaks_the_route(tmp_path: Path) -> None:
    """Right and wrong bodies that schemathesis makes of the schema: whatever the answer, it is no 5xx."""
    schema = schemathesis.openapi.from_asgi("/v1/samples/openapi.json", push_app(samples(str(tmp_path))))
    (operation,) = (result.ok() for result in schema.get_all_operations())
    statuses = set()
    for mode in GenerationMode:

        @given(case=operation.as_strategy(mode))
        @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def explore(case: schemathesis.Case) -> None:
            response = case.call()
            statuses.add(response.status_code)
            case.validate_response(response, checks=[not_a_server_error])

        explore()
    assert 422 in statuses
    assert statuses <= {202, 400, 413, 415, 422}


# -- a real process ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(store: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "streamcl.bench.push_endpoint", str(store), str(port)]
    endpoint = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    try:
        while endpoint.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"http://127.0.0.1:{port}/")
                break
            time.sleep(0.05)
        yield endpoint
    finally:
        endpoint.kill()
        endpoint.wait()


def test_what_a_killed_endpoint_has_answered_is_in_its_log(tmp_path: Path) -> None:
    """Two kills, with requests under way; the bench has more, and a learner behind."""
    answered: list[str] = []
    port = free_port()

    def produce(name: str) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http, contextlib.suppress(httpx.HTTPError):
            for number in range(10_000):
                body = {"samples": [record(id=f"{name}/{number}")]}
                assert http.post("/v1/samples", json=body).status_code == 202
                answered.append(f"{name}/{number}")

    for life in range(2):
        with process(tmp_path, port) as endpoint:
            threads = [threading.Thread(target=produce, args=(f"{life}/{name}",)) for name in range(4)]
            for thread in threads:
                thread.start()
            before = len(answered)
            while len(answered) < before + 40:
                time.sleep(0.01)
            endpoint.send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join()
    there = [sample.id for sample in kept(tmp_path)]
    assert {*answered} <= {*there}
    assert len(there) == len({*there})
    assert Push(str(tmp_path / "wal")).partitions() == ["0"], "the second process went on in the first one's shard"
