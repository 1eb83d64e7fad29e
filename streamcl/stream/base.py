"""What a source is, and how its partitions become one deterministic stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from streamcl.errors import SourceError
from streamcl.types import SAMPLE_SCHEMA, DeadLetter

NO_ROWS = pa.RecordBatch.from_pylist([], schema=SAMPLE_SCHEMA)
BUFFER_BYTES = 256 * 2**20
"""About how much `Merged` holds of all partitions together, and about the most that one poll returns."""
READ_ROWS = 64
"""Rows read of a partition at a time, at least: the merge pauses for each partition that runs out."""


@dataclass(frozen=True)
class Polled:
    """What one poll brought. Both parts are in reading order; a row's `position` tells how they interleave."""

    batch: pa.RecordBatch
    """Accepted rows, of SAMPLE_SCHEMA."""
    dead: tuple[DeadLetter, ...] = ()

    def __len__(self) -> int:
        return int(self.batch.num_rows) + len(self.dead)


class Reader(Protocol):
    """Reads one partition, in order.  Mutates: `position`."""

    @property
    def position(self) -> int:
        """Where reading resumes *after* the last row, good or dead, that `poll` returned. Grows with every row."""

    def poll(self, limit: int) -> Polled | None:
        """At most `limit` rows, good and dead together; empty if there is nothing now; None at the partition's end.

        Never waits for a producer. Fewer rows than `limit` are no sign of an end: a reader also bounds bytes.
        Raises SourceError; then `position` stands where it stood, and reading goes on with a new reader from there.
        """


class Source(Protocol):
    """Where samples come from. Reading a partition again from a position gives the same rows again."""

    @property
    def name(self) -> str:
        """Goes into each row's `source`."""

    def partitions(self) -> list[str]:
        """The partitions there are, in a stable order."""

    def open(self, partition: str, position: int) -> Reader:
        """A reader that goes on at `position`; 0 is the start.  Raises SourceError."""


class _Lane:
    """What was read of one partition and not yet returned.  Mutates."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.ended = False
        self.row_bytes = 2**20  # a guess, until the first rows tell
        self.batch = NO_ROWS
        self.dead: tuple[DeadLetter, ...] = ()
        self.positions = np.empty(0, np.int64)
        self.times = np.empty(0, np.float64)
        self.is_dead = np.empty(0, np.bool_)

    def fill(self, limit: int) -> None:
        """Read on; only when everything read before has been taken."""
        polled = self.reader.poll(limit)
        if polled is None:
            self.ended = True
            return
        good, dead = polled.batch.num_rows, len(polled.dead)
        positions = np.concatenate([polled.batch["position"], np.array([d.position for d in polled.dead], np.int64)])
        times = np.concatenate([polled.batch["time"], np.full(dead, -np.inf)])
        order = np.argsort(positions)
        self.batch, self.dead = polled.batch, polled.dead
        self.positions, self.is_dead = positions[order], order >= good
        # A row earlier than the one before it follows at once, and so does a dead row: both count as that row's time.
        self.times = np.maximum.accumulate(times[order])
        if good:
            self.row_bytes = max(1, polled.batch.nbytes // good)

    def take(self, count: int) -> tuple[pa.RecordBatch, tuple[DeadLetter, ...]]:
        """The first `count` rows."""
        dead = int(self.is_dead[:count].sum())
        taken = self.batch.slice(0, count - dead), self.dead[:dead]
        self.batch, self.dead = self.batch.slice(count - dead), self.dead[dead:]
        self.positions, self.times, self.is_dead = self.positions[count:], self.times[count:], self.is_dead[count:]
        return taken


class Merged:
    """All partitions of a source as one stream, always the earliest head first.  Mutates: `positions`.

    Heads are compared by (time, partition, position); within a partition rows keep their order. Which row comes next
    therefore depends on `positions` alone: not on poll sizes, batch sizes, or where reading was resumed. The price: a
    partition with nothing now holds the others back, since its next row may be the earliest. A row that is earlier than
    its predecessor, and a dead row, come right after the predecessor.

    `positions` says exactly what has been returned. After a SourceError that may pass, poll again: no row is lost.
    """

    def __init__(self, source: Source, positions: Mapping[str, int]) -> None:
        names = sorted(source.partitions())
        if gone := sorted(set(positions) - set(names)):
            raise SourceError(
                f"source {source.name!r} no longer has partition {gone[0]!r}, read up to {positions[gone[0]]}; "
                f"it has {len(names)} others. Bring it back, or start a new run"
            )
        self.positions = {name: positions.get(name, 0) for name in names}
        self._source = source
        self._lanes = self._opened()

    def _opened(self) -> dict[str, _Lane]:
        return {name: _Lane(self._source.open(name, position)) for name, position in self.positions.items()}

    def poll(self, limit: int) -> Polled | None:
        """At most `limit` rows, good and dead together; empty if there is nothing now; None when all have ended."""
        try:
            return self._polled(limit)
        except SourceError:
            self._lanes = {}  # rows may have left a reader and not reached us: the next poll opens at `positions` again
            raise

    def _polled(self, limit: int) -> Polled | None:
        self._lanes = self._lanes or self._opened()
        batches: list[pa.RecordBatch] = []
        dead: list[DeadLetter] = []
        positions = dict(self.positions)
        count = taken_bytes = 0
        while count < limit and taken_bytes < BUFFER_BYTES and self._filled(limit):
            taken = self._take(limit - count, positions)
            batches.append(taken.batch)
            dead += taken.dead
            count += len(taken)
            taken_bytes += taken.batch.nbytes
        if not count and all(lane.ended for lane in self._lanes.values()):
            return None
        self.positions = positions
        return Polled(pa.concat_batches(batches) if batches else NO_ROWS, tuple(dead))

    def _filled(self, limit: int) -> bool:
        """Whether there is a row to take and no partition could still have an earlier one."""
        lanes = self._lanes.values()
        for lane in lanes:
            if not len(lane.times) and not lane.ended:
                fits = BUFFER_BYTES // (len(lanes) * lane.row_bytes)
                lane.fill(max(1, min(fits, max(READ_ROWS, limit // len(lanes)))))
        return all(len(lane.times) or lane.ended for lane in lanes) and any(len(lane.times) for lane in lanes)

    def _take(self, limit: int, positions: dict[str, int]) -> Polled:
        """The next rows as far as what is buffered decides them: until a partition that may go on has been used up."""
        lanes = [(name, lane) for name, lane in self._lanes.items() if len(lane.times)]
        owners = np.repeat(np.arange(len(lanes)), [len(lane.times) for _, lane in lanes])
        # Lanes are in order of their names, and the sort is stable: ties fall by partition, then position.
        order = np.argsort(np.concatenate([lane.times for _, lane in lanes]), kind="stable")
        last = np.cumsum([len(lane.times) for _, lane in lanes]) - 1
        order = order[: min(limit, 1 + int(np.argsort(order)[last].min()))]
        is_dead = np.concatenate([lane.is_dead for _, lane in lanes])[order]
        owners = owners[order]
        batches: list[pa.RecordBatch] = []
        dead: list[DeadLetter] = []
        for index, taken in zip(*np.unique(owners, return_counts=True), strict=True):
            name, lane = lanes[index]
            positions[name] = int(lane.positions[taken - 1])
            batch, letters = lane.take(int(taken))
            batches.append(batch)
            dead += letters
        batch = pa.concat_batches(batches)
        if len(batches) > 1:
            batch = batch.take(pa.array(_interleaved(owners[~is_dead])))
        return Polled(batch, tuple(dead[i] for i in _interleaved(owners[is_dead])))


def _interleaved(owners: np.ndarray) -> np.ndarray:
    """Where each row lies when rows are grouped by owner: [0, 1, 0] is [0, 2, 1]."""
    return np.argsort(np.argsort(owners, kind="stable"), kind="stable")
