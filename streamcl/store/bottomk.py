"""The k rows of smallest rank, whatever the order, the repeats and the splits they came in.

The state is a function of the *set* of offers: of one id's offers the least (rank, key, row) counts, of a source's rows
the `cap` least, of those the k least. So heaps merge, and a row offered again changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.store.keyed import Hashes

Objects = npt.NDArray[np.object_]
_LN2 = float.fromhex("0x1.62e42fefa39efp-1")
_TERMS = 11
_PIECES = 64
"""Batches that may wait to be sorted in. Late in a stream each brings a row or two, in arrays larger than that."""


@dataclass(frozen=True)
class Columns:
    """Rows as equally long columns."""

    rank: npt.NDArray[np.float64]
    hash: Hashes
    key: Objects
    row: npt.NDArray[np.int64]
    source: Objects

    def __len__(self) -> int:
        return len(self.rank)

    def take(self, where: npt.NDArray[Any]) -> Columns:
        """The rows at `where`: indices or a mask."""
        return Columns(self.rank[where], self.hash[where], self.key[where], self.row[where], self.source[where])

    @staticmethod
    def join(parts: Sequence[Columns]) -> Columns:
        return Columns(
            np.concatenate([p.rank for p in parts]),
            np.concatenate([p.hash for p in parts]),
            np.concatenate([p.key for p in parts]),
            np.concatenate([p.row for p in parts]),
            np.concatenate([p.source for p in parts]),
        )


def objects(texts: Sequence[str]) -> Objects:
    """Strings as an object array; equal ones share their memory."""
    out = np.empty(len(texts), dtype=object)
    out[:] = [sys.intern(text) for text in texts]
    return out


EMPTY = Columns(np.empty(0), np.empty(0, np.uint64), objects([]), np.empty(0, np.int64), objects([]))


def ranks(hashes: Hashes, weights: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64]:
    """−ln(u)/w, u in (0, 1) from the hash's upper 53 bits.

    The logarithm is made of IEEE +, −, ×, ÷ only: libm's differ in the last bit between machines, and a shard that
    moves would reorder near-ties.
    """
    u = ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    mantissa, exponent = np.frexp(u)
    small = mantissa < np.sqrt(0.5)
    mantissa, exponent = np.where(small, 2 * mantissa, mantissa), exponent - small
    s = (mantissa - 1) / (mantissa + 1)  # |s| < 0.172, and ln m = 2 (s + s³/3 + s⁵/5 + …)
    squared = s * s
    series = np.full_like(s, 1 / (2 * _TERMS + 1))
    for term in range(_TERMS - 1, -1, -1):
        series = series * squared + 1 / (2 * term + 1)
    return np.asarray(-(exponent * _LN2 + 2 * s * series) / weights, dtype=np.float64)


class BottomK:
    """The rows of one task (mutates): at most `capacity` of them, at most `cap` from one source."""

    def __init__(self, capacity: int, *, cap: int) -> None:
        self.capacity, self.cap = capacity, cap
        self.bound = float("inf")
        """Rows of larger rank were let go, so none is admitted. A purge leaves it, or late rows would count more."""
        self._rows = EMPTY
        self._pending: list[Columns] = []
        self._waiting = 0

    def offer(self, rows: Columns) -> None:
        """Take in rows. Those of rank above `bound` may be left out by the caller: they change nothing."""
        self._pending.append(rows)
        self._waiting += len(rows)
        if self._waiting >= self.capacity or len(self._pending) >= _PIECES:
            self.rows()

    def rows(self) -> Columns:
        """The rows kept, least rank first."""
        if self._pending:
            self._settle(Columns.join([self._rows, *self._pending]))
        return self._rows

    def merge(self, rows: Columns, bound: float) -> None:
        """Take in another heap: its rows and what it had to let go."""
        self.bound = min(self.bound, bound)
        self._settle(Columns.join([self._rows, *self._pending, rows]))

    def purge(self, source: str) -> int:
        """Drop a source's rows and answer how many they were. The bound stays."""
        rows = self.rows()
        self._rows = rows.take(rows.source != source)
        return len(rows) - len(self._rows)

    def _settle(self, rows: Columns) -> None:
        self._pending, self._waiting = [], 0
        rows = rows.take(rows.rank <= self.bound)
        rows = rows.take(_least_of_each_id(rows))
        rows = rows.take(np.lexsort((rows.hash, rows.rank)))
        if self.cap < self.capacity:
            rows = rows.take(_least_of_each_source(rows, self.cap))
        if len(rows) > self.capacity or (len(rows) == self.capacity and np.isfinite(self.bound)):
            rows = rows.take(np.arange(self.capacity))
            self.bound = float(rows.rank[-1])
        self._rows = rows


def _least_of_each_id(rows: Columns) -> npt.NDArray[np.intp]:
    order = np.lexsort((rows.row, rows.rank, rows.hash))
    hashes = rows.hash[order]
    repeated = hashes[1:] == hashes[:-1]
    if not repeated.any():
        return order
    tied = np.append(repeated, False) | np.insert(repeated, 0, False)
    # strings are compared only where an id came more than once
    again = sorted(order[tied].tolist(), key=lambda i: (rows.hash[i], rows.rank[i], rows.key[i], rows.row[i]))
    order[tied] = again
    return np.asarray(order[np.insert(~repeated, 0, True)])


def _least_of_each_source(rows: Columns, cap: int) -> npt.NDArray[np.bool_]:
    """Mask of sorted `rows`: the first `cap` of each source."""
    seen: dict[str, int] = {}
    keep = np.empty(len(rows), dtype=bool)
    for i, source in enumerate(rows.source):
        seen[source] = seen.get(source, 0) + 1
        keep[i] = seen[source] <= cap
    return keep
