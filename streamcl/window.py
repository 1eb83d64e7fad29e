"""A window on its way: rows gather in a draft until it closes. And the books: what became of every sample read, and
what time it is in the stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

from streamcl.errors import ConfigError
from streamcl.events import Arrival
from streamcl.store.recent import Recent
from streamcl.types import DeadLetter, Rows


@dataclass(frozen=True)
class WindowConfig:
    """When a window closes, besides at a boundary; and whether a sample may come too late for it."""

    samples: int = 1000
    """At this many samples, at least 1; held-out ones count."""
    max_bytes: int = 2**30
    """At this many bytes of encoded samples, at least 1. While one window trains another may wait and nothing is read,
    so about twice as much is pending at most, however slow training is."""
    age_s: float = 600.0
    """When the first of its samples has waited so many seconds, > 0, so that a slow stream trains too."""
    late: Literal["accept", "drop"] = "accept"
    """Whether a late sample is learned like any other, or dropped and counted as late."""
    late_s: float = 3600.0
    """How far a sample's time may lie behind the watermark before it is late, seconds, >= 0."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_bytes < 1 or self.age_s <= 0 or self.late_s < 0:
            raise ConfigError(
                f"a window of {self.samples} samples, {self.max_bytes} bytes or {self.age_s} s, late after "
                f"{self.late_s} s: at least 1 sample and 1 byte, more than 0 s, late after 0 s or more"
            )


@dataclass
class Watermark:
    """How far the stream has come in event time: where more than half of some `rows` samples in a row had arrived.

    Never falls, and a wrong clock cannot push it: that takes more than half of `rows` consecutive samples. No clock of
    ours is asked, so a stream of another year has one, and reading again gives the same. Changes in place.
    """

    rows: int = 64
    value: float | None = None
    """Unix seconds; None before `rows` samples."""
    latest: deque[float] = field(default_factory=deque)

    def take(self, time: float) -> None:
        """A sample is taken in."""
        self.latest.append(time)
        if len(self.latest) > self.rows:
            self.latest.popleft()
        if len(self.latest) == self.rows:
            median = sorted(self.latest)[(self.rows - 1) // 2]
            self.value = median if self.value is None else max(self.value, median)

    def drops(self, time: float, config: WindowConfig) -> bool:
        """Whether a sample of this time is late, and not taken in."""
        return config.late == "drop" and self.value is not None and time < self.value - config.late_s

    def copy(self) -> Watermark:
        return replace(self, latest=self.latest.copy())


@dataclass
class Counters:
    """What became of the samples read. Changes in place."""

    accepted: int = 0
    """In a frozen window, or held out with it."""
    dup: int = 0
    late: int = 0
    """Dropped as late."""
    dead: int = 0


class Books:
    """What became of every sample read, how far each partition was read, and what time it is. Changes in place."""

    def __init__(self, horizon: int) -> None:
        """`horizon`: how many ids back a repeated sample is noticed."""
        self.recent = Recent(horizon)
        self.counters = Counters()
        self.positions: dict[str, int] = {}
        self.watermark = Watermark()
        self.dead: list[DeadLetter] = []
        """Dead letters that no checkpoint has told yet."""

    def _pass(self, arrival: Arrival, row: int) -> None:
        """Reading has come past this row."""
        partition, position = arrival.partitions[row], int(arrival.positions_N[row])
        if arrival.dead:
            self._bury(arrival, partition=partition, before=position)
        self.positions[partition] = position

    def _bury(self, arrival: Arrival, *, partition: str | None = None, before: int | None = None) -> None:
        """Counts the arrival's dead letters that lie behind the position: of one partition up to a row, or all."""
        for letter in arrival.dead:
            if partition not in (None, letter.partition) or letter.position <= self.positions.get(letter.partition, -1):
                continue
            if before is None or letter.position < before:
                self.positions[letter.partition] = letter.position
                self.counters.dead += 1
                self.dead.append(letter)

    def books(self) -> dict[str, Any]:
        """The books as JSON values, but for untold dead letters: a checkpoint tells them."""
        return {
            "positions": dict(self.positions),
            "watermark": [self.watermark.value, *self.watermark.latest],
            "counters": asdict(self.counters),
            "recent": self.recent.snapshot(),
        }

    def reopen(self, state: Mapping[str, Any]) -> None:
        """Becomes what `books` saw."""
        self.positions = dict(state["positions"])
        self.watermark.value, *latest = state["watermark"]
        self.watermark.latest = deque(latest)
        self.counters = Counters(**state["counters"])
        self.recent.restore(state["recent"])


class Taken(NamedTuple):
    """A row that waits for its window. `number` counts the rows that the detector has seen."""

    number: int
    key: str
    row: int
    id: str
    source: str
    heldout: bool
    size: int
    """Bytes, encoded."""


@dataclass
class Draft:
    """A window being gathered. Changes in place."""

    task: str
    rows: list[Taken] = field(default_factory=list)
    since: float | None = None
    """When it was first looked at with rows in it, by the clock of Ticked; not kept over a restart."""
    closes_task: bool = False
    known: tuple[str, ...] = ()
    """Tasks met when it closed."""

    def full(self, config: WindowConfig) -> int | None:
        """How many of its first rows fill a window; None while all do not."""
        size = 0
        for count, row in enumerate(self.rows, 1):
            size += row.size
            if count == config.samples or size >= config.max_bytes:
                return count
        return None

    def trained_on(self) -> tuple[Rows, ...]:
        """The rows that are not held out, by file, in order of arrival."""
        files: dict[str, list[int]] = {}
        for row in self.rows:
            if not row.heldout:
                files.setdefault(row.key, []).append(row.row)
        return tuple(Rows(key, tuple(numbers)) for key, numbers in files.items())

    def snapshot(self) -> dict[str, Any]:
        """The draft as JSON values."""
        return asdict(self) | {"since": None}

    @staticmethod
    def restored(state: Mapping[str, Any] | None) -> Draft | None:
        """The draft that `snapshot` saw; None for None."""
        if state is None:
            return None
        rows = [Taken(*row) for row in state["rows"]]
        return Draft(state["task"], rows, None, state["closes_task"], tuple(state["known"]))
