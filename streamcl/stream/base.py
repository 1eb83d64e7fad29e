"""What a source is, and how its partitions become one deterministic stream."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
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
LOOK_S = 10.0
"""How often an endless source is asked for partitions that were added."""


@dataclass(frozen=True)
class Polled:
    """What one poll brought. Both parts are in reading order; a row's `position` tells how they interleave."""

    batch: pa.RecordBatch
    """Accepted rows, of SAMPLE_SCHEMA."""
    dead: tuple[DeadLetter, ...] = ()
    waiting: str = ""
    """What is waited for, while something is wrong that may pass: "no broker has answered for 12 s"."""

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
    """Where samples come from. Reading a partition again from a position gives the same rows again.

    A source derives from this class; one that ends needs `name`, `partitions` and `open` only.
    """

    @property
    def name(self) -> str:
        """Goes into each row's `source`."""

    @property
    def idle_s(self) -> float | None:
        """None: the source ends. Seconds: it is endless, partitions may be added, and one that has had nothing for so
        long no longer holds the others back.
        """
        return None

    def partitions(self) -> list[str]:
        """The partitions there are, in a stable order."""

    def open(self, partition: str, position: int) -> Reader:
        """A reader that goes on at `position`; 0 is the start.  Raises SourceError."""

    def committed(self, positions: Mapping[str, int]) -> None:
        """Hears that the run's log holds everything up to these positions, which may then be told to others.

        A hint, given now and then and on any thread: whatever goes wrong with it is not raised, and is not the run's.
        """
        return


class _Lane:
    """What was read of one partition and not yet returned.  Mutates."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.ended = False
        self.empty_since: float | None = None
        self.waiting = ""
        self.row_bytes = 2**20  # a guess, until the first rows tell
        self.batch = NO_ROWS
        self.dead: tuple[DeadLetter, ...] = ()
        self.positions = np.empty(0, np.int64)
        self.times = np.empty(0, np.float64)
        self.is_dead = np.empty(0, np.bool_)

    def fill(self, limit: int, now: float) -> None:
        """Read on; only when everything read before has been taken."""
        polled = self.reader.poll(limit)
        if polled is None:
            self.ended = True
            return
        self.waiting = polled.waiting
        if not len(polled):
            self.empty_since = now if self.empty_since is None else self.empty_since
            return
        self.empty_since = None
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

    Of an endless source a partition holds the others back for `idle_s` at most, and partitions that were added are read
    from their start. There the order of rows of different partitions may also depend on when each was at hand. Nothing
    else does: what was taken is frozen, with its positions, in windows and never read again; what was not is read on.

    `positions` says exactly what has been returned. After a SourceError that may pass, poll again: no row is lost.
    """

    def __init__(
        self, source: Source, positions: Mapping[str, int], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        names = sorted(source.partitions())
        if gone := sorted(set(positions) - set(names)):
            raise SourceError(
                f"source {source.name!r} no longer has partition {gone[0]!r}, read up to {positions[gone[0]]}; "
                f"it has {len(names)} others. Bring it back, or start a new run"
            )
        self.positions = {name: positions.get(name, 0) for name in names}
        self._source, self._clock = source, clock
        self._looked = clock()
        self._lanes = self._opened()

    def _opened(self) -> dict[str, _Lane]:
        return {name: _Lane(self._source.open(name, position)) for name, position in self.positions.items()}

    def _look(self) -> None:
        """Opens partitions that were added to an endless source since the last look."""
        if self._source.idle_s is None or self._clock() - self._looked < LOOK_S:
            return
        self._looked = self._clock()
        with contextlib.suppress(SourceError):  # not listed this time; if something is wrong, a reader says what
            names = {*self._source.partitions()} - {*self.positions}
            added = {name: _Lane(self._source.open(name, 0)) for name in names}
            self.positions |= dict.fromkeys(added, 0)
            self._lanes = dict(sorted({**self._lanes, **added}.items()))

    def poll(self, limit: int) -> Polled | None:
        """At most `limit` rows, good and dead together; empty if there is nothing now; None when all have ended."""
        try:
            return self._polled(limit)
        except SourceError:
            self._lanes = {}  # rows may have left a reader and not reached us: the next poll opens at `positions` again
            raise

    def _polled(self, limit: int) -> Polled | None:
        self._lanes = self._lanes or self._opened()
        self._look()
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
        if not count and self._source.idle_s is None and all(lane.ended for lane in self._lanes.values()):
            return None
        self.positions = positions
        waiting = next((lane.waiting for lane in self._lanes.values() if lane.waiting), "")
        return Polled(_joined(batches), tuple(dead), waiting)

    def _filled(self, limit: int) -> bool:
        """Whether there is a row to take and no partition that is not idle could still have an earlier one."""
        lanes, now = self._lanes.values(), self._clock()
        for lane in lanes:
            if not len(lane.times) and not lane.ended:
                fits = BUFFER_BYTES // (len(lanes) * lane.row_bytes)
                lane.fill(max(1, min(fits, max(READ_ROWS, limit // len(lanes)))), now)
        return any(len(lane.times) for lane in lanes) and all(
            len(lane.times) or lane.ended or self._idle(lane, now) for lane in lanes
        )

    def _idle(self, lane: _Lane, now: float) -> bool:
        idle_s = self._source.idle_s
        return idle_s is not None and lane.empty_since is not None and now - lane.empty_since >= idle_s

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
        batch = _joined(batches)
        if len(batches) > 1:
            batch = batch.take(pa.array(_interleaved(owners[~is_dead])))
        return Polled(batch, tuple(dead[i] for i in _interleaved(owners[is_dead])))


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """The batches as one; a single one is not copied."""
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches or [NO_ROWS])


def _interleaved(owners: np.ndarray) -> np.ndarray:
    """Where each row lies when rows are grouped by owner: [0, 1, 0] is [0, 2, 1]."""
    return np.argsort(np.argsort(owners, kind="stable"), kind="stable")
