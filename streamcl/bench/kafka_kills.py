"""50,000 messages, brokers and learners killed in the middle: is every sample in exactly one window?"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from streamcl.bench import kafka_learner
from streamcl.bench.push_learner import judged
from streamcl.errors import StoreError
from streamcl.registry.backends import LocalStore
from streamcl.registry.log import Log
from streamcl.testing.broker import Broker, broker

TOPIC, PARTITIONS = "samples", 5
MESSAGES, FIRST = 50_000, 30_000
"""All messages, and how many are there before the first broker dies; the others are written after it is back."""
KILLS = (
    (3_000, "learner"),
    (8_000, "learner"),
    (13_000, "broker"),
    (18_000, "learner"),
    (23_000, "both"),
    (33_000, "learner"),
    (38_000, "broker"),
    (43_000, "learner"),
    (47_000, "both"),
)
"""Once the log has so many samples, kill -9 follows."""
AWAY_S = 3.0
"""How long a killed broker stays away."""
STUCK_S = 240.0


def measured(folder: Path) -> dict[str, Any]:
    """Writes, learns, kills; what was found in the log."""
    store = folder / "store"
    started = time.monotonic()
    with broker(folder / "broker") as kafka:
        kafka.create(TOPIC, PARTITIONS)
        _write(kafka, 0, FIRST)
        deaths = _lives(store, kafka)
        last = _learner(store, kafka, ends=True)
        last.join()
        assert last.exitcode == 0, "the last learner does not come to the end"
        ids = [f"m/{number}" for number in range(MESSAGES)]
        found = judged(store, {"all": ids}, ids)
        ends, group = _offsets(kafka)
    return {
        **deaths,
        **found,
        "partitions": PARTITIONS,
        "at_the_end": sum(ends),
        "group": sum(group),
        "seconds": round(time.monotonic() - started),
    }


def _write(kafka: Broker, start: int, stop: int) -> None:
    """Messages with these numbers, and waits until they outlive a kill of the broker."""
    with kafka.producer() as producer:
        for number in range(start, stop):
            talk = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": str(number)}]
            value = json.dumps({"id": f"m/{number}", "messages": talk, "task": "count"}).encode()
            while True:
                try:
                    producer.produce(TOPIC, value, partition=number % PARTITIONS)
                    break
                except BufferError:
                    producer.poll(0.1)
    kafka.saved()


def _lives(store: Path, kafka: Broker) -> dict[str, Any]:
    """Kills as planned; how often each died, and how much the log had then."""
    deaths: dict[str, Any] = {"learner_kills": 0, "broker_kills": 0, "at": []}
    learner = _learner(store, kafka)
    written = FIRST
    try:
        for reached, victim in KILLS:
            deaths["at"].append([victim, _wait(store, reached, learner)])
            if victim != "broker":
                learner.kill()
                learner.join()
                deaths["learner_kills"] += 1
            if victim != "learner":
                kafka.kill()
                time.sleep(AWAY_S)
                kafka.start()
                deaths["broker_kills"] += 1
                if written < MESSAGES:
                    _write(kafka, written, MESSAGES)
                    written = MESSAGES
            if victim != "broker":
                learner = _learner(store, kafka)
    finally:
        learner.kill()
        learner.join()
    return deaths


def _wait(store: Path, reached: int, learner: BaseProcess) -> int:
    """Until the log has so many samples; how many it has."""
    started, count = time.monotonic(), 0
    while count < reached:
        assert learner.is_alive(), f"the learner ended with {learner.exitcode} after {count} samples"
        assert time.monotonic() - started < STUCK_S, f"no more than {count} samples come"
        time.sleep(0.1)
        with contextlib.suppress(StoreError):  # a record that is just being written
            head = Log(LocalStore(store)).head() if store.exists() else None
            count = head.state.get("counters", {}).get("in", 0) if head else 0
    return count


def _learner(store: Path, kafka: Broker, *, ends: bool = False) -> BaseProcess:
    """A new life, in a process of its own, forked from one that has imported everything and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([kafka_learner.__name__])
    process = context.Process(target=kafka_learner.live, args=(store, kafka.hosts, TOPIC), kwargs={"ends": ends})
    process.start()
    return process


def _offsets(kafka: Broker) -> tuple[list[int], list[int]]:
    """Where each partition ends, and what the group shows to lag tools."""
    consumer = Consumer({**kafka.options, "group.id": "streamcl"})
    partitions = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
    ends = [consumer.get_watermark_offsets(partition, timeout=5.0)[1] for partition in partitions]
    return ends, [found.offset for found in consumer.committed(partitions, timeout=5.0)]
