"""A broker that speaks Kafka's protocol, as a process of its own that can be killed and started again."""

from __future__ import annotations

import contextlib
import importlib.resources
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from streamcl.testing import free_port

START_S = 20.0
SAVED_S = 30.0


class Broker:
    """noida-db on a free port of this machine, its data in a folder. Mutable: the process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.hosts = f"127.0.0.1:{self.port}"
        self.options: dict[str, Any] = {"bootstrap.servers": self.hosts, "log_level": 0}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the process and waits until it answers."""
        program = importlib.resources.files("noida_db") / "noida-db"
        where = ["--kafka-port", str(self.port), "--data-dir", str(self.folder)]
        command = [str(program), "start", "--only", "kafka", *where]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started = time.monotonic()
        while True:
            try:
                AdminClient(self.options).list_topics(timeout=1.0)
                return
            except KafkaException:
                assert time.monotonic() - started < START_S, f"{command} does not answer"
                assert self.process.poll() is None, f"{command} ended with {self.process.returncode}"

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None, "it runs"
        self.process.kill()
        self.process.wait()
        self.process = None

    def saved(self) -> None:
        """Waits until the disk has everything: noida-db writes it some seconds after it has said yes."""
        mark = f"saved-{uuid.uuid4().hex}"
        self.create(mark)
        started, disk = time.monotonic(), self.folder / "kafka.json"
        while not disk.exists() or mark.encode() not in disk.read_bytes():
            assert time.monotonic() - started < SAVED_S, "the broker does not write to its disk"
            time.sleep(0.2)

    def create(self, topic: str, partitions: int = 1) -> None:
        self._wait(AdminClient(self.options), "create_topics", NewTopic(topic, partitions, 1))

    def widen(self, topic: str, partitions: int) -> None:
        """Gives the topic more partitions."""
        self._wait(AdminClient(self.options), "create_partitions", NewPartitions(topic, partitions))

    def cut(self, topic: str, partition: int, before: int) -> None:
        """Deletes what lies before an offset, as retention does."""
        self._wait(AdminClient(self.options), "delete_records", TopicPartition(topic, partition, before))

    @staticmethod
    def _wait(admin: AdminClient, verb: str, what: object) -> None:
        for done in getattr(admin, verb)([what]).values():  # the client must live until they are done
            done.result()

    @contextlib.contextmanager
    def producer(self) -> Iterator[Producer]:
        """A producer; at the end of the block the broker has acknowledged everything."""
        failed: list[Any] = []

        def delivered(error: Any, message: Message) -> None:
            if error is not None:
                failed.append(error)

        producer = Producer({**self.options, "acks": "all", "linger.ms": 5, "on_delivery": delivered})
        yield producer
        assert producer.flush(30.0) == 0, "the broker does not acknowledge"
        assert not failed, failed[0]

    def send(self, topic: str, *values: bytes, partition: int = 0, headers: Mapping[str, str] | None = None) -> None:
        """Writes messages and waits for their acknowledgement."""
        with self.producer() as producer:
            for value in values:
                producer.produce(topic, value, partition=partition, headers=list((headers or {}).items()))


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[Broker]:
    """A running broker, gone after the block."""
    running = Broker(folder)
    running.start()
    try:
        yield running
    finally:
        if running.process is not None:
            running.kill()
