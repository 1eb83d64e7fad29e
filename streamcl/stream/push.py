"""Samples that producers post to the endpoint, read from the write-ahead log in which it keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from streamcl.errors import BadSample, ConfigError, SourceError
from streamcl.stream.base import Polled, Source
from streamcl.stream.deadletter import payload, refuse
from streamcl.stream.decode import decode
from streamcl.stream.frames import MAGIC, Frame, frame_after, frame_at, place, position
from streamcl.stream.isolate import CHILD
from streamcl.stream.limits import Limits
from streamcl.stream.segments import Segments
from streamcl.types import DeadLetter, Sample, to_batch

POLL_BYTES = 32 * 2**20
"""A poll ends once it has gathered this much of records."""
IDLE_S = 1.0
FIELDS = ("schema", "id", "messages", "images", "task", "time")


def record_bytes(record: Mapping[str, Any], producer: str) -> bytes:
    """A record as the log keeps it, with who posted it. Fields that `decode` ignores are left out."""
    kept = {name: record[name] for name in FIELDS if name in record}
    return json.dumps({"producer": producer, "record": kept}, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Push(Source):
    """What is posted to /v1/samples. Each of the endpoint's writers is a partition; it never ends.

    The run goes on until it is stopped. A sample's `source` is the name given here and its producer's: "push/robots".
    """

    path: str = ""
    """Folder or URL of the write-ahead log. The run sets it: `wal` in its store."""
    limits: Limits = field(default_factory=Limits)
    name: str = "push"
    """Goes into each sample's `source`."""

    @property
    def idle_s(self) -> float:
        """How long a partition with nothing new may hold the others back, seconds."""
        return IDLE_S

    def partitions(self) -> list[str]:
        """The log's shards; none before the first sample was posted.  Raises SourceError."""
        return Segments(self._url()).shards()

    def open(self, partition: str, position: int) -> PushReader:
        """Reads a shard from a position on.  Raises SourceError."""
        segments = Segments(self._url())
        numbers = list(segments.sizes(partition))
        segment, _ = place(position)
        if max(segment, 1) not in numbers or numbers[-1] - numbers[0] >= len(numbers):
            there = f"{len(numbers)} segments from {numbers[0]} to {numbers[-1]}" if numbers else "no segment"
            raise SourceError(
                f"{self.path}: shard {partition} changed under a committed position: {there}, and reading goes on in "
                f"segment {max(segment, 1)}. Restore the log's folder, or start a new run"
            )
        return PushReader(self, segments, partition, position)

    def _url(self) -> str:
        if not self.path:
            raise ConfigError("source.path: the log of a push source lies in the store of a run; start it with `run`")
        return self.path


class PushReader:
    """Reads one shard of the log.  Mutates: `position`."""

    def __init__(self, push: Push, segments: Segments, shard: str, start: int) -> None:
        self.position = start
        self._push, self._segments, self._shard = push, segments, shard
        segment, self._at = place(start)
        self._segment = max(segment, 1)
        self._data, self._base = b"", self._at  # bytes of the segment, from `_base` on; `_at` is read next

    def poll(self, limit: int) -> Polled:
        """The next rows; empty if there is nothing now.  Raises SourceError."""
        good: list[Sample] = []
        dead: list[DeadLetter] = []
        size, at = 0, self.position
        while len(good) + len(dead) < limit and size < POLL_BYTES and (read := self._next()) is not None:
            entry, at = read
            size += len(entry or b"")
            taken = self._taken(entry, at)
            if isinstance(taken, DeadLetter):
                dead.append(taken)
            else:
                good.append(taken)
        self.position = at
        return Polled(to_batch(good), tuple(dead))

    def _next(self) -> tuple[bytes | None, int] | None:
        """The next entry and the position after it; no entry for damage; None if there is nothing now."""
        while True:
            ended = False
            if (frame := self._here()) is None:
                ended = self._segments.exists(self._shard, self._segment + 1)  # then what can be read now is all
                self._load()
                frame = self._here()
            if frame is None and not ended:
                return None
            if frame is None and (whole := frame_after(self._data, self._at - self._base)):
                self._at = self._base + whole.start
                return None, position(self._segment, self._at)
            if frame is None or not frame.payload:  # what is left was being written when its writer died; or END
                self._segment, self._at, self._data, self._base = self._segment + 1, 0, b"", 0
                continue
            self._at = self._base + frame.stop
            return frame.payload, position(self._segment, self._at)

    def _here(self) -> Frame | None:
        return frame_at(self._data, self._at - self._base)

    def _load(self) -> None:
        """Reads the rest of the segment, as far as it is there."""
        there = self._segments.exists(self._shard, self._segment)
        if not there and (self._at or not self._segments.exists(self._shard, self._segment - 1)):
            raise SourceError(
                f"{self._push.path}: segment {self._segment} of shard {self._shard} is gone, and was not read to its "
                "end. Restore the log's folder, or start a new run"
            )
        self._data = self._segments.read(self._shard, self._segment, self._at) if there else b""
        self._base = self._at
        if there and self._at == 0:
            if not self._data.startswith(MAGIC):
                raise SourceError(f"{self._push.path}: segment {self._segment} was not written by this version")
            self._at = len(MAGIC)

    def _taken(self, entry: bytes | None, at: int) -> Sample | DeadLetter:
        source, shard = self._push.name, self._shard
        if entry is None:
            reason = str(refuse("damaged", f"bytes of segment {self._segment} do not match their check sum"))
            return DeadLetter(reason, "", source, shard, at)
        kept = json.loads(entry)
        producer, record = kept["producer"], kept["record"]
        source = f"{source}/{producer}" if producer else source
        try:
            sample = decode(record, self._push.limits, prove=CHILD.prove)
        except BadSample as error:
            return DeadLetter(str(error), record["id"], source, shard, at, payload(record))
        return replace(sample, source=source, partition=shard, position=at)
