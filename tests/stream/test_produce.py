"""A stream written to a sink is the same stream: files, a folder, Kafka, the push endpoint."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamcl.errors import ConfigError, SinkError, SourceError
from streamcl.produce import produce, sink_of
from streamcl.stream import Files, Kafka, Merged, Source
from streamcl.stream import sinks as stream_sinks
from streamcl.stream.folder import Folder
from streamcl.stream.sinks import FolderSink, PushSink
from streamcl.testing import ListSource
from streamcl.testing.broker import broker
from streamcl.types import Message, Part, Sample, from_batch

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c6360000000020001 48afa471 0000000049454e44ae426082".replace(" ", "")
)


def sample(number: int) -> Sample:
    talk = (
        Message("user", (Part("image"), Part("text", f"What is {number}?"))),
        Message("assistant", (Part("text", str(number)),)),
    )
    return Sample(f"s/{number}", talk, (PNG,), task="count" if number % 2 else None, time=float(number))


STREAM = ListSource({"a": [sample(n) for n in range(0, 300, 2)], "b": [sample(n) for n in range(1, 300, 2)]})


def content(source: Source, count: int) -> list[tuple[Any, ...]]:
    """What the samples say, by id."""
    merged = Merged(source, {})
    found: list[Sample] = []
    while len(found) < count:
        polled = merged.poll(64)
        assert polled is not None
        assert not polled.dead
        found += from_batch(polled.batch)
    return sorted((s.id, s.messages, s.images, s.task, s.time) for s in found)


SAID = content(STREAM, 300)


@pytest.mark.parametrize("pattern", ["", "/*.jsonl"])
def test_a_folder_holds_the_same_stream_and_sending_again_changes_nothing(pattern: str, tmp_path: Path) -> None:
    for _ in range(2):
        sink = sink_of(f"{tmp_path}/out{pattern}")
        produce(STREAM, sink)
        assert sink.close() == 0
        assert len([*(tmp_path / "out").iterdir()]) == 2  # 256 samples, and the rest
        assert content(Files(f"{tmp_path}/out"), 300) == SAID


def test_a_file_is_written_when_its_first_sample_has_waited(tmp_path: Path) -> None:
    import fsspec

    now = [0.0]
    sink = FolderSink(Folder(fsspec.filesystem("file"), str(tmp_path)), clock=lambda: now[0])
    sink.put([sample(1)])
    assert not [*tmp_path.iterdir()]
    now[0] = stream_sinks.FILE_S
    sink.put([])
    assert len([*tmp_path.iterdir()]) == 1


def test_kafka_holds_the_same_stream_and_a_sample_keeps_its_partition(tmp_path: Path) -> None:
    with broker(tmp_path) as kafka:
        kafka.create("t", 3)
        for _ in range(2):
            sink = sink_of(f"kafka://{kafka.hosts}/t")
            produce(STREAM, sink)
            assert sink.close() == 0
        source = Kafka(kafka.hosts, ("t",), idle_s=0.05)
        assert content(source, 600) == sorted(SAID * 2)
        places: dict[str, set[str]] = {}
        merged = Merged(source, {})
        while len(places) < 300:
            polled = merged.poll(64)
            assert polled is not None
            for one in from_batch(polled.batch):
                places.setdefault(one.id, set()).add(one.partition)
        assert {len(where) for where in places.values()} == {1}
        with pytest.raises(SourceError, match="no topic 'elsewhere'"):
            sink_of(f"kafka://{kafka.hosts}/elsewhere")


def clients() -> list[str]:
    """The names of librdkafka's threads in this process."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if name.startswith("rdk:")]


def test_a_closed_or_refused_sink_leaves_no_client_behind(tmp_path: Path) -> None:
    """A forgotten one goes on looking for its brokers, a thread a second, until it is collected."""
    with broker(tmp_path) as kafka:
        kafka.create("t", 1)
        gc.collect()
        gc.disable()
        try:
            before = clients()
            sink = sink_of(f"kafka://{kafka.hosts}/t")
            assert len(clients()) > len(before)
            sink.put([sample(0)])
            assert sink.close() == 0
            with pytest.raises(SourceError, match="no topic 'elsewhere'"):
                sink_of(f"kafka://{kafka.hosts}/elsewhere")
            assert Kafka(kafka.hosts, ("t",)).partitions() == ["t/0"]
            assert clients() == before
        finally:
            gc.enable()


class Endpoint:
    """Answers posts from a list, then with 202; keeps what it took."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = [*answers]
        self.taken: dict[str, list[str]] = {}
        self.keys: list[str] = []
        self.waits: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.keys.append(request.headers["idempotency-key"])
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        records = json.loads(request.content)["samples"]
        self.taken[self.keys[-1]] = [record["id"] for record in records]
        return httpx.Response(202, json={"accepted": len(records), "rejected": []})

    def sink(self) -> PushSink:
        client = httpx.Client(transport=httpx.MockTransport(self))
        return PushSink("http://here/v1/samples", key="k", client=client, sleep=self.waits.append)


def test_a_post_is_sent_again_with_the_same_key_until_it_is_answered() -> None:
    later = httpx.Response(429, headers={"Retry-After": "7"}, text="quota")
    endpoint = Endpoint(later, httpx.ConnectError("away"), httpx.Response(503, text="full"))
    sink = endpoint.sink()
    produce(STREAM, sink)
    assert sink.close() == 0
    assert endpoint.waits == [7.0, 1.0, 1.0]
    assert len({*endpoint.keys[:4]}) == 1
    assert sorted(id for ids in endpoint.taken.values() for id in ids) == sorted(row[0] for row in SAID)


def test_what_the_endpoint_refuses_is_counted_or_ends_it() -> None:
    rejected = [{"index": 0, "reason": "answer: none"}]
    endpoint = Endpoint(
        httpx.Response(202, json={"accepted": 63, "rejected": rejected}),
        httpx.Response(422, json={"error": {}, "accepted": 0, "rejected": rejected * 64}),
    )
    sink = endpoint.sink()
    produce(STREAM, sink)
    assert sink.close() == 65
    with pytest.raises(SinkError, match="does not take samples: 401 no key"):
        produce(STREAM, Endpoint(httpx.Response(401, text="no key")).sink())
    away = Endpoint(*[httpx.ConnectError("away")] * 99)
    with pytest.raises(SinkError, match="has taken nothing for 60 s: no answer"):
        produce(STREAM, away.sink())
    assert sum(away.waits) == 61.0


class Kept:
    """A sink that notes when it was given how much."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.puts = clock, list[tuple[float, int]]()

    def put(self, samples: Sequence[Sample]) -> None:
        self.puts.append((self.clock(), len(samples)))

    def close(self) -> int:
        return 0


def test_samples_come_at_the_rate_asked_for() -> None:
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    sink, told = Kept(lambda: now[0]), list[tuple[int, int]]()
    produce(STREAM, sink, rate=50.0, watch=lambda *counts: told.append(counts), clock=sink.clock, sleep=sleep)
    assert told[-1] == (300, 0)
    for at, _ in sink.puts:
        sent = sum(count for when, count in sink.puts if when <= at)
        assert abs(sent - 50 * (at - 100)) <= 10.0 + 1e-6


@pytest.mark.parametrize(
    ("where", "said"), [("kafka://host:1", "names no topic"), ("nowhere://x/y", "A sink is kafka://host:port/topic")]
)
def test_a_sink_that_is_none_says_what_may_be_named(where: str, said: str) -> None:
    with pytest.raises((ConfigError, SourceError), match=said):
        sink_of(where)


def test_a_configuration_of_a_kafka_run_names_its_topic(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("{store: s, model: m, source: {kind: files, path: x.jsonl}}")
    with pytest.raises(ConfigError, match="reads no Kafka topic"):
        sink_of(str(path))
