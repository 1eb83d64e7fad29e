"""Where a stream can be written to: a Kafka topic, a folder or bucket, a run's push endpoint.

Every sample goes with its id, so that one which is written twice is noticed as a repeat by whoever reads it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from streamcl.errors import SinkError
from streamcl.stream.broker import Brokers, Link, client_library
from streamcl.stream.folder import Folder
from streamcl.types import Sample, to_batch

FILE_ROWS, FILE_BYTES, FILE_S = 256, 32 * 2**20, 5.0
"""A file is written when it has so many samples, so many bytes of images, or its first sample has waited so long."""
POST_ROWS, POST_BYTES = 64, 8 * 2**20
"""Samples, and about bytes, of one request."""
PATIENCE_S = 60.0
"""How long a sink that does not answer is tried again."""


class Sink(Protocol):
    """Takes samples. Mutable."""

    def put(self, samples: Sequence[Sample]) -> None:
        """Hands samples over; they need not have arrived when this returns.  Raises SinkError."""

    def close(self) -> int:
        """Returns once everything has arrived; how many samples were refused there.  Raises SinkError."""


def json_record(sample: Sample) -> dict[str, Any]:
    """The sample as a record of JSON, which `decode` reads."""
    row = sample.row()
    record = {name: row[name] for name in ("id", "messages", "task", "time") if row[name] is not None}
    return record | {"images": [base64.b64encode(image).decode() for image in sample.images]}


class KafkaSink:
    """A topic. A sample's id is its message's key, so the same sample always goes to the same partition."""

    def __init__(self, brokers: Brokers, topic: str) -> None:
        """Raises SourceError, ConfigError: no answer, not let in, no such topic."""
        with contextlib.closing(Link(brokers, {"group.id": "streamcl"})) as link:
            link.topics([topic])
        self.topic, self.failed = topic, ""
        options = {"enable.idempotence": True, "linger.ms": 20, "on_delivery": self._delivered}
        self.producer = client_library().Producer({**brokers.options(), **options})

    def put(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            value = json.dumps(json_record(sample)).encode()
            while True:
                try:
                    self.producer.produce(self.topic, value, key=sample.id.encode())
                    break
                except BufferError:  # the brokers are slower than we are
                    self.producer.poll(0.1)
                    self._check()
                except client_library().KafkaException as error:
                    raise SinkError(f"{self.topic} does not take {sample.id!r}: {error.args[0].str()}") from error
        self.producer.poll(0)
        self._check()

    def close(self) -> int:
        left = self.producer.flush(PATIENCE_S)
        try:
            self._check()
            if left:
                late = f"{left} samples were not acknowledged by {self.topic}"
                raise SinkError(f"{late} in {PATIENCE_S:.0f} s; send again")
        finally:
            self.producer.purge()
            self.producer.close()  # or its threads look for the brokers until the garbage collector finds it
        return 0

    def _delivered(self, error: Any, message: Any) -> None:
        if error is not None:
            self.failed = error.str()

    def _check(self) -> None:
        if self.failed:
            raise SinkError(f"{self.topic} does not take what is sent: {self.failed}. What arrived stays; send again")


class FolderSink:
    """A folder or bucket that fills with Parquet or JSON Lines files. A file is there as a whole or not at all.

    Names hold what is in the file and the place of its first sample, so that sending again writes the same files.
    """

    def __init__(self, folder: Folder, *, lines: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.lines, self.clock = folder, lines, clock
        self.rows: list[Sample] = []
        self.size = self.written = 0
        self.since = 0.0

    def put(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            self.since = self.since if self.rows else self.clock()
            self.rows.append(sample)
            self.size += sum(map(len, sample.images))
            if len(self.rows) >= FILE_ROWS or self.size >= FILE_BYTES:
                self._write()
        if self.rows and self.clock() - self.since >= FILE_S:
            self._write()

    def close(self) -> int:
        if self.rows:
            self._write()
        return 0

    def _write(self) -> None:
        if self.lines:
            data = b"".join(json.dumps(json_record(sample)).encode() + b"\n" for sample in self.rows)
        else:
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_batches([to_batch(self.rows)]), sink)
            data = sink.getvalue()
        digest = hashlib.sha256(data).hexdigest()[:12]
        name = f"part-{self.written:09}-{digest}.{'jsonl' if self.lines else 'parquet'}"
        try:
            self.folder.put(name, data)
        except OSError as error:
            raise SinkError(f"{self.folder.root} cannot be written ({error}); check path, rights and space") from error
        self.written += len(self.rows)
        self.rows, self.size = [], 0


class PushSink:
    """A run's push endpoint. A request carries a key made of what it holds, and is sent again until it is answered."""

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        client: httpx.Client | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`key`: an API key with the scope push, where the endpoint asks for one."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url, self.headers, self.sleep = url, headers, sleep
        self.client = client or httpx.Client(timeout=30.0)
        self.refused = 0

    def put(self, samples: Sequence[Sample]) -> None:
        records: list[dict[str, Any]] = []
        size = 0
        for sample in samples:
            records.append(json_record(sample))
            size += sum(map(len, sample.images))
            if len(records) >= POST_ROWS or size >= POST_BYTES:
                self._post(records)
                records, size = [], 0
        if records:
            self._post(records)

    def close(self) -> int:
        self.client.close()
        return self.refused

    def _post(self, records: Sequence[dict[str, Any]]) -> None:
        body = json.dumps({"samples": records}).encode()
        headers = {
            **self.headers,
            "Content-Type": "application/json",
            "Idempotency-Key": hashlib.sha256(body).hexdigest()[:32],
        }
        waited, told = 0.0, "no answer"
        while waited <= PATIENCE_S:
            wait = 1.0
            with contextlib.suppress(httpx.TransportError):
                answer = self.client.post(self.url, content=body, headers=headers)
                if answer.status_code == 202:
                    self.refused += len(answer.json()["rejected"])
                    return
                told = f"{answer.status_code} {answer.text[:300]}"
                if answer.status_code == 422 and "rejected" in answer.json():
                    self.refused += len(answer.json()["rejected"])
                    return
                if answer.status_code not in (429, 502, 503, 504):
                    raise SinkError(f"{self.url} does not take samples: {told}")
                wait = float(answer.headers.get("Retry-After", wait))
                waited = 0.0 if answer.status_code == 429 else waited  # over our quota: it goes on, slowly
            self.sleep(wait)
            waited += wait
        raise SinkError(f"{self.url} has taken nothing for {PATIENCE_S:.0f} s: {told}. What it took stays; send again")
