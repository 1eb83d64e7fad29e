"""A window on its way: rows gather in a draft until it closes. And the books: what became of every sample read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from streamcl.errors import ConfigError
from streamcl.types import Rows


@dataclass(frozen=True)
class WindowConfig:
    """When a window closes, besides at a boundary."""

    samples: int = 1000
    """At this many samples, at least 1; held-out ones count."""
    age_s: float = 600.0
    """When the first of its samples has waited so many seconds, > 0, so that a slow stream trains too."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.age_s <= 0:
            raise ConfigError(f"a window of {self.samples} samples or {self.age_s} s: at least 1 sample, more than 0 s")


@dataclass
class Counters:
    """What became of the samples read. Changes in place."""

    accepted: int = 0
    """In a frozen window, or held out with it."""
    dup: int = 0
    late: int = 0
    dead: int = 0


class Taken(NamedTuple):
    """A row that waits for its window. `number` counts the rows that the detector has seen."""

    number: int
    key: str
    row: int
    id: str
    source: str
    heldout: bool


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
