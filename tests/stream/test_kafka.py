"""Kafka against a broker process: offsets, formats, poison, gaps, and what is said when something is wrong."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition
from PIL import Image

from streamcl.errors import ConfigError, SourceError
from streamcl.stream import Kafka, Merged, Polled
from streamcl.stream import base as stream_base
from streamcl.testing.broker import Broker, broker
from streamcl.types import Sample, from_batch


def picture(shade: int = 0) -> bytes:
    sink = BytesIO()
    Image.new("L", (4, 4), shade).save(sink, "PNG")
    return sink.getvalue()


def record(name: str, **more: Any) -> dict[str, Any]:
    talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    return {"id": name, "messages": talk, **more}


def line(name: str, **more: Any) -> bytes:
    return json.dumps(record(name, **more)).encode()


def arrow(*records: dict[str, Any], **options: Any) -> bytes:
    batch = pa.RecordBatch.from_pylist(list(records))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def read(source: Kafka, positions: dict[str, int] | None = None, *, rows: int) -> tuple[list[Polled], Merged]:
    """Polls until so many rows have come."""
    merged = Merged(source, positions or {})
    polls: list[Polled] = []
    started = time.monotonic()
    while time.monotonic() - started < 20.0:
        polled = merged.poll(64)
        assert polled is not None, "an endless source does not end"
        polls.append(polled)
        if sum(map(len, polls)) >= rows:
            return polls, merged
    raise AssertionError(f"{sum(map(len, polls))} of {rows} rows: {polls[-1].waiting}")


def samples(polls: list[Polled]) -> list[Sample]:
    return [sample for polled in polls for sample in from_batch(polled.batch)]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


def source(kafka: Broker, topic: str, **settings: Any) -> Kafka:
    return Kafka(kafka.hosts, (topic,), **{"idle_s": 0.2, **settings})


def test_a_message_is_a_sample_and_its_position_is_the_next_offset(kafka: Broker) -> None:
    kafka.create("plain", 3)
    for number in range(9):
        kafka.send("plain", line(f"s{number}", time=float(number)), partition=number % 3)
    here = source(kafka, "plain")
    assert here.partitions() == ["plain/0", "plain/1", "plain/2"]
    polls, merged = read(here, rows=9)
    assert {s.id for s in samples(polls)} == {f"s{n}" for n in range(9)}
    assert merged.positions == {"plain/0": 3, "plain/1": 3, "plain/2": 3}
    rest, merged = read(here, {"plain/0": 2, "plain/1": 3, "plain/2": 1}, rows=3)
    assert {(s.id, s.partition, s.position) for s in samples(rest)} == {
        ("s6", "plain/0", 3),
        ("s5", "plain/2", 2),
        ("s8", "plain/2", 3),
    }


def test_a_message_tells_by_itself_what_it_is(kafka: Broker) -> None:
    kafka.create("kinds")
    encoded = base64.b64encode(picture(1)).decode()
    talk = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a fox"}]},
    ]
    kafka.send("kinds", line("json", time=1.0))
    kafka.send("kinds", json.dumps({"id": "inline", "messages": talk, "images": [encoded], "time": 2.0}).encode())
    kafka.send("kinds", arrow({"id": "arrow", "messages": talk, "images": [picture(2)], "task": "foxes", "time": 3.0}))
    said = {"id": "raw", "instruction": "What is this?", "answer": "a fox", "task": "foxes", "time": "4.5"}
    kafka.send("kinds", picture(3), headers=said)
    kafka.send("kinds", picture(4), headers={"answer": "an owl"})
    polls, _ = read(source(kafka, "kinds"), rows=5)
    one, inline, columns, raw, bare = samples(polls)
    assert (one.id, one.images) == ("json", ())
    assert (inline.images, columns.images, raw.images) == ((picture(1),), (picture(2),), (picture(3),))
    assert inline.messages == columns.messages
    assert [p.text for p in raw.messages[0].content] == ["", "What is this?"]
    assert (raw.id, raw.answer, raw.task, raw.time) == ("raw", "a fox", "foxes", 4.5)
    assert (bare.answer, len(bare.id), bare.task) == ("an owl", 32, None)
    assert bare.time > 1.7e9  # the message's own timestamp


EXTENSION = pa.schema([pa.field("id", pa.string(), metadata={"ARROW:extension:name": "arrow.py_extension_type"})])


def extended() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, EXTENSION) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([{"id": "x"}], schema=EXTENSION))
    return sink.getvalue().to_pybytes()


def shared() -> bytes:
    """One picture, named ten times by a dictionary."""
    column = pa.array([[picture()] * 10], pa.list_(pa.binary()))
    encoded = pa.ListArray.from_arrays(column.offsets, column.values.dictionary_encode())
    batch = pa.RecordBatch.from_arrays([encoded], names=["images"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


POISON = {
    "schema: not JSON": b"{not json",
    "schema: messages is None": b"{}",
    "schema: a JSON list": b"[1]",
    "image: image 0": json.dumps({**record("x"), "images": ["QUFB"]}).encode(),
    "answer: ": picture(),  # without a header that says it
    "schema: 2 rows in an Arrow message": arrow(record("a"), record("b")),
    "schema: a compressed Arrow batch": arrow(record("a"), compression="zstd"),
    "schema: Arrow extension types": extended(),
    "schema: an Arrow stream of schema, dictionary": shared(),
    "schema: not an Arrow IPC stream": arrow(record("a"))[:200],
    "schema: column of Arrow's list<item: null>": arrow({**record("a"), "more": [None] * 5}),
}


def test_poison_goes_to_the_dead_letters_with_its_place_and_reading_goes_on(kafka: Broker) -> None:
    kafka.create("poison", 2)
    kafka.send("poison", line("before"), *POISON.values(), line("after"), partition=1)
    polls, merged = read(source(kafka, "poison"), rows=2 + len(POISON))
    assert [s.id for s in samples(polls)] == ["before", "after"]
    letters = [letter for polled in polls for letter in polled.dead]
    for offset, (reason, letter) in enumerate(zip(POISON, letters, strict=True), 1):
        assert letter.reason.startswith(reason)
        assert letter.reason.endswith(f"(topic poison, partition 1, offset {offset})")
        assert (letter.partition, letter.position) == ("poison/1", offset + 1)
    assert merged.positions == {"poison/0": 0, "poison/1": 2 + len(POISON)}


def test_a_tombstone_is_no_sample(kafka: Broker) -> None:
    kafka.create("compacted")
    with kafka.producer() as producer:
        for value in (line("a"), None, line("b")):
            producer.produce("compacted", value, key="k", partition=0)
    polls, _ = read(source(kafka, "compacted"), rows=2)
    assert [(s.id, s.position) for s in samples(polls)] == [("a", 1), ("b", 3)]


def test_messages_that_retention_took_are_never_passed_over_in_silence(kafka: Broker) -> None:
    kafka.create("cut")
    kafka.send("cut", *(line(f"s{n}") for n in range(10)))
    kafka.cut("cut", 0, 6)
    with pytest.raises(SourceError, match=r"cut/0: .* offset 2, .* everything before 6 .* 4 messages .*lost=skip"):
        read(source(kafka, "cut"), {"cut/0": 2}, rows=1)
    polls, merged = read(source(kafka, "cut", lost="skip"), {"cut/0": 2}, rows=5)
    assert [s.id for s in samples(polls)] == ["s6", "s7", "s8", "s9"]
    (letter,) = [letter for polled in polls for letter in polled.dead]
    assert letter.reason.startswith("lost: offsets 2 to 5 were deleted by the broker")
    assert (letter.position, merged.positions) == (6, {"cut/0": 10})
    polls, _ = read(source(kafka, "cut"), rows=4)  # a new run begins with the oldest there is
    assert [s.id for s in samples(polls)] == ["s6", "s7", "s8", "s9"]


def test_a_topic_that_ends_before_the_position_is_another_topic(kafka: Broker) -> None:
    kafka.create("anew")
    kafka.send("anew", line("a"))
    for lost in ("refuse", "skip"):
        with pytest.raises(SourceError, match=r"offset 7, but the topic ends at 1: it was deleted and made anew"):
            read(source(kafka, "anew", lost=lost), {"anew/0": 7}, rows=1)


def test_a_topic_that_is_not_there_is_named_beside_those_that_are(kafka: Broker) -> None:
    kafka.create("there")
    with pytest.raises(SourceError, match=r"no topic 'elsewhere'.*there.* Create it"):
        source(kafka, "elsewhere").partitions()


def test_a_partition_that_is_added_is_read_from_its_start(kafka: Broker) -> None:
    kafka.create("wide", 1)
    kafka.send("wide", line("a"))
    now = [0.0]
    merged = Merged(source(kafka, "wide"), {}, clock=lambda: now[0])
    seen: list[str] = []
    while len(seen) < 1:
        seen += [s.id for s in samples([merged.poll(9) or Polled(stream_base.NO_ROWS)])]
    kafka.widen("wide", 3)
    kafka.send("wide", line("b"), partition=2)
    while len(seen) < 2:
        now[0] += stream_base.LOOK_S
        seen += [s.id for s in samples([merged.poll(9) or Polled(stream_base.NO_ROWS)])]
    assert seen == ["a", "b"]
    assert merged.positions == {"wide/0": 1, "wide/1": 0, "wide/2": 1}


def test_the_group_shows_what_was_committed_and_is_never_read(kafka: Broker) -> None:
    kafka.create("lag", 2)
    kafka.send("lag", line("a"), line("b"))
    here = source(kafka, "lag", group="lag-group")
    here.committed({"lag/0": 1, "lag/1": 0})
    shown = Consumer({**kafka.options, "group.id": "lag-group"}).committed([TopicPartition("lag", 0)], timeout=5.0)
    assert shown[0].offset == 1
    polls, _ = read(here, rows=2)
    assert [s.id for s in samples(polls)] == ["a", "b"]
    Kafka("127.0.0.1:1", ("lag",)).committed({})  # nothing to say


# -- what is away ------------------------------------------------------------------------------------------------------


def test_a_broker_that_is_killed_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    with broker(tmp_path) as kafka:
        kafka.create("t", 3)
        for partition in range(3):
            kafka.send("t", *(line(f"{partition}/{n}") for n in range(20)), partition=partition)
        kafka.saved()
        merged = Merged(source(kafka, "t"), {})
        seen: list[str] = []
        while len(seen) < 20:
            seen += [s.id for s in samples([merged.poll(7) or Polled(stream_base.NO_ROWS)])]
        kafka.kill()
        waited = ""
        while not waited:
            polled = merged.poll(7)
            assert polled is not None
            seen += [s.id for s in samples([polled])]
            waited = polled.waiting
        assert "has not answered for" in waited
        kafka.start()
        for partition in range(3):
            kafka.send("t", line(f"{partition}/20"), partition=partition)
        while len(seen) < 63:
            seen += [s.id for s in samples([merged.poll(7) or Polled(stream_base.NO_ROWS)])]
        assert sorted(seen) == sorted(f"{partition}/{n}" for partition in range(3) for n in range(21))


def test_patience_ends(tmp_path: Path) -> None:
    with broker(tmp_path) as kafka:
        kafka.create("t")
        kafka.send("t", line("a"))
        here = source(kafka, "t", patience_s=0.5)
        _, merged = read(here, rows=1)
        kafka.kill()
        with pytest.raises(SourceError, match=r"no broker of 127.* has answered for .*start again: the run's state is"):
            any(merged.poll(9) is None for _ in itertools.count())


# -- the configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"topics": []}, "name at least one"),
        ({"topics": ["a b"]}, "name at least one"),
        ({"brokers": "kafka://a:1"}, "write host:port"),
        ({"sasl": {"username": "me", "password": "hunter2"}}, "write env:NAME or file:PATH, not the secret"),
        ({"sasl": {"username": "me", "password": 1234567}}, "source.sasl.password"),
        ({"sasl": {"mechanism": "GSSAPI"}}, "source.sasl.mechanism"),
        ({"tls": {"ca": "x.pem"}}, "set tls.enabled: true"),
        ({"lost": "ignore"}, "source.lost"),
    ],
)
def test_a_wrong_configuration_says_so_and_shows_no_secret(settings: dict[str, Any], said: str) -> None:
    from streamcl.config import parse

    section = {"kind": "kafka", "brokers": "a:1", "topics": ["t"], **settings}
    with pytest.raises(ConfigError) as error:
        parse({"store": "s", "model": "m", "source": section})
    assert said in str(error.value)
    assert "hunter2" not in str(error.value)
    assert "1234567" not in str(error.value)


def test_secrets_are_named_where_they_lie_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from streamcl.config import dump, parse

    (tmp_path / "password").write_text("hunter2\n")
    section = {
        "kind": "kafka",
        "brokers": "a:1",
        "topics": ["t"],
        "tls": {"enabled": True, "key_password": "env:KEY"},
        "sasl": {"mechanism": "PLAIN", "username": "me", "password": f"file:{tmp_path}/password"},
    }
    config = parse({"store": "s", "model": "m", "source": section})
    assert isinstance(config.source, Kafka)
    monkeypatch.setenv("KEY", "hunter2")
    options = config.source.connection.options()
    assert (options["sasl.password"], options["ssl.key.password"]) == ("hunter2", "hunter2")
    assert options["security.protocol"] == "SASL_SSL"
    for shown in (repr(config), str(config.source.connection), dump(config)):
        assert "hunter2" not in shown
    monkeypatch.delenv("KEY")
    with pytest.raises(ConfigError, match="no variable KEY"):
        config.source.connection.options()
