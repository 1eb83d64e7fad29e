"""One commit: a small JSON record that carries its own digest and that of the commit before it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from streamcl.errors import Corrupt
from streamcl.registry.backends import sha256

Kind = Literal["fence", "data", "window", "version", "alias", "rollback", "gc"]
OUTCOMES = ("accepted", "dup", "late", "dead", "pending")
"""What becomes of a sample that came in: the counters that must add up to `in`."""


def canonical(value: object) -> bytes:
    """`value` as the one JSON text that stands for it: sorted keys, no spaces, no NaN (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Record:
    """One commit, as it was read back. `sha256` is the digest of everything else."""

    n: int
    prev: dict[str, Any] | None
    """`{"n", "sha256"}` of the commit it continues. Commits between that one and `n`, if any, were found broken."""
    epoch: int
    owner: str
    txn: str
    kind: Kind
    time: float
    state: dict[str, Any] = field(default_factory=dict)
    """What a restarted learner needs: `sources` {partition: position}, `counters`, `watermark`, `refs` {name: ref} …

    An object that `refs` names may name others, by key and uncompressed; those name no further ones.
    """
    window: dict[str, Any] | None = None
    """A job's frozen inputs, with the window's `id`. Committed once a window, before the version that answers it."""
    version: dict[str, Any] | None = None
    alias: dict[str, Any] | None = None
    to: int | None = None
    """For a rollback: the commit whose state holds again. What was committed between it and here is undone."""
    why: str = ""

    @property
    def sha256(self) -> str:
        return sha256(canonical(vars(self)))

    @property
    def link(self) -> dict[str, Any]:
        """What the next commit says of this one."""
        return {"n": self.n, "sha256": self.sha256}

    def encode(self) -> bytes:
        return canonical({**vars(self), "sha256": self.sha256})

    @staticmethod
    def parse(data: bytes, *, n: int) -> Record:
        """The record in the object of commit `n`.  Raises Corrupt unless it is whole and unchanged."""
        try:
            fields = json.loads(data)
            digest = fields.pop("sha256")
            record = Record(**fields)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise Corrupt(f"commit {n} cannot be parsed ({error}): {data[:80]!r}") from error
        found = record.sha256
        if found != digest or canonical({**vars(record), "sha256": found}) != data or record.n != n:
            raise Corrupt(f"commit {n} was changed: as number {record.n} with sha256 {found} it says {digest}")
        return record


def check_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind {kind!r} is not allowed: one of {', '.join(get_args(Kind))}")


def check_balance(state: Mapping[str, Any]) -> None:
    """Every sample that came in is accounted for, once: AssertionError with the numbers otherwise."""
    counters = state.get("counters")
    if counters is not None:
        known = {name: counters.get(name, 0) for name in OUTCOMES}
        came, total = counters.get("in", 0), sum(known.values())
        assert came == total, f"counters do not balance: in={came}, but {known} make {total}"
