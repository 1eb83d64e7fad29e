"""Reads the raw rows of a partition through the door."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pyarrow as pa

from streamcl.errors import SourceError
from streamcl.stream.base import NO_ROWS, Polled
from streamcl.stream.columnar import taken
from streamcl.stream.door import Door
from streamcl.stream.formats import Row
from streamcl.stream.tables import Block
from streamcl.types import DeadLetter, Sample, to_batch

CLIENTS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("aiohttp", "ClientError"),
)
"""What the clients of object stores raise besides OSError: no credentials, a connection that is lost."""
POLL_BYTES = 32 * 2**20
"""A poll ends once it has gathered this much of images."""


class DoorReader:
    """One partition's rows, one piece after the other.  Mutates: `position`."""

    def __init__(
        self,
        door: Door,
        partition: str,
        position: int,
        pieces: Iterator[Block | Row | None],
        unreadable: Callable[[Exception], SourceError],
    ) -> None:
        """`pieces` begin after `position`; None is nothing now. `unreadable` says what an error of theirs means."""
        self.position = position
        self._door, self._partition, self._pieces, self._unreadable = door, partition, pieces, unreadable
        self._rest: Polled | None = None

    def poll(self, limit: int) -> Polled | None:
        """The next rows; None at the partition's end.  Raises SourceError."""
        gathered = _Gathered()
        try:
            while gathered.rows < limit and gathered.size < POLL_BYTES:
                piece = self._rest or next(self._pieces, _END)
                self._rest = None
                if not isinstance(piece, Block | Row | Polled):
                    break
                if isinstance(piece, Row):
                    gathered.add(self._door.take(piece, self._partition))
                    continue
                polled = taken(piece, self._door, self._partition) if isinstance(piece, Block) else piece
                now, self._rest = _split(polled, limit - gathered.rows)
                gathered.extend(now)
            else:
                piece = None
        except unreadable() as error:
            raise self._unreadable(error) from error
        if piece is _END and not gathered.rows:
            return None
        self.position = max(self.position, gathered.last)
        return gathered.polled()


_END = object()


def unreadable(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What a file, a store or a damaged content raises, and `others`. (A column's name may not be UTF-8.)"""
    clients = [getattr(sys.modules[module], name) for module, name in CLIENTS if module in sys.modules]
    return (OSError, EOFError, MemoryError, UnicodeDecodeError, pa.ArrowException, *clients, *others)


def _split(polled: Polled, count: int) -> tuple[Polled, Polled | None]:
    """The first `count` rows, good and dead together, and the others if there are any."""
    if len(polled) <= count:
        return polled, None
    good = polled.batch["position"].to_numpy()
    last = sorted([*good.tolist(), *(letter.position for letter in polled.dead)])[count - 1]
    here, dead = int((good <= last).sum()), [letter for letter in polled.dead if letter.position <= last]
    rest = Polled(polled.batch.slice(here), polled.dead[len(dead) :])
    return Polled(polled.batch.slice(0, here), tuple(dead)), rest


class _Gathered:
    """What a poll has so far.  Mutates."""

    def __init__(self) -> None:
        self.rows = self.size = self.last = 0
        self._batches: list[pa.RecordBatch] = []
        self._singly: list[Sample] = []
        self._dead: list[DeadLetter] = []

    def add(self, one: Sample | DeadLetter) -> None:
        self.rows, self.last = self.rows + 1, one.position
        if isinstance(one, DeadLetter):
            self._dead.append(one)
        else:
            self._singly.append(one)
            self.size += sum(map(len, one.images))

    def extend(self, polled: Polled) -> None:
        """Rows that follow those before."""
        self.rows += len(polled)
        ends = [letter.position for letter in polled.dead[-1:]]
        if polled.batch.num_rows:
            ends.append(polled.batch["position"][-1].as_py())
            self._batches.append(polled.batch)
            self.size += polled.batch.nbytes
        self._dead += polled.dead
        self.last = max(self.last, *ends)

    def polled(self) -> Polled:
        """A partition's pieces are of one kind: rows or blocks, and single rows that stand for damaged blocks."""
        batches = [*self._batches, *([to_batch(self._singly)] if self._singly else [])]
        whole = batches[0] if len(batches) == 1 else pa.concat_batches(batches) if batches else NO_ROWS
        return Polled(whole, tuple(self._dead))
