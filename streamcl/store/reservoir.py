"""The replay reservoir: bottom-k by keyed hash, one heap per task.

rank = −ln(u(id))/w with u a keyed hash of the id; the k smallest stay. That makes a uniform sample (weighted by w), the
same for any order, repeats, shards and crashes. Ids must be unique over the stream (sources prefix their own). Samples
are held by reference: a key of an Arrow file in the run's store, and a row. The hash's key is the stream's secret:
without it nobody can choose ids that are always kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy

import numpy as np
import numpy.typing as npt

from streamcl.errors import ConfigError
from streamcl.store.bottomk import BottomK, Columns, objects, ranks
from streamcl.store.keyed import Hashes, derive, mix, siphash
from streamcl.store.sharding import rendezvous
from streamcl.store.snapshot import Part, Settings, pack, unpack
from streamcl.types import Rows


class Reservoir:
    """What may be replayed (mutates): up to `capacity` rows of every task, and as many held out for scoring."""

    def __init__(self, capacity: int, *, key: bytes, heldout: float = 0.1, per_source: float = 1.0) -> None:
        """`heldout`: share of ids never trained on. `per_source`: largest share of `capacity` for one source.

        Rows that come without a source count as one source.
        """
        if capacity < 1 or not 0 <= heldout < 1 or not 0 < per_source <= 1:
            raise ConfigError(
                f"reservoir of capacity {capacity}, heldout {heldout}, per_source {per_source}: "
                "capacity must be at least 1, heldout in [0, 1), per_source in (0, 1]"
            )
        self.settings = Settings(capacity, heldout, per_source, derive(key, "fingerprint")[:8].hex())
        self._key = derive(key, "reservoir")
        self._heaps: dict[tuple[str, bool], BottomK] = {}

    def offer(
        self,
        task: str,
        ids: Sequence[str],
        keys: Sequence[str],
        rows: Sequence[int] | npt.NDArray[np.int64],
        sources: Sequence[str] | None = None,
        weights: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """Take in samples of `task`, one an id. An id offered again changes nothing.

        `ids` may be an Arrow array, which saves a conversion. Of an id that comes with different weights or places, the
        least (rank, key, row) counts.
        """
        if weights is not None and not (np.isfinite(weights) & (weights > 0)).all():
            raise ValueError("weights must be finite and above 0")
        hashes = siphash(ids, key=self._key)
        rank = ranks(hashes, 1.0 if weights is None else weights)
        held = self._held(hashes)
        for side in (False, True):
            heap = self._heap(task, side)
            where = np.flatnonzero((held == side) & (rank <= heap.bound))
            if len(where):
                picked = where.tolist()
                heap.offer(
                    Columns(
                        rank[where],
                        hashes[where],
                        objects([keys[i] for i in picked]),
                        np.array([rows[i] for i in picked], dtype=np.int64),
                        objects([""] * len(picked) if sources is None else [sources[i] for i in picked]),
                    )
                )

    def is_heldout(self, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which ids are held out: never train on them."""
        return self._held(siphash(ids, key=self._key))

    def sample(self, n: int, seed: int, *, exclude: str | None = None) -> list[Rows]:
        """Up to `n` rows without replacement, equal quotas over the tasks but `exclude`.

        What a small task cannot give, the others do. The draw depends on the kept set and `seed` alone, not on how the
        set was sharded or merged.
        """
        heaps = sorted(self._heaps.items())
        pools = {task: heap.rows() for (task, held), heap in heaps if not held and task != exclude}
        quotas = equal_quotas(n, {task: len(rows) for task, rows in pools.items()}, seed)
        return _grouped(*(_drawn(rows, quotas[task], seed) for task, rows in pools.items()))

    def heldout(self, task: str, n: int, seed: int) -> list[Rows]:
        """Up to `n` rows of `task` that no window trains on."""
        heap = self._heaps.get((task, True))
        return _grouped(_drawn(heap.rows(), n, seed)) if heap else []

    def merge(self, other: Reservoir) -> None:
        """Become the reservoir of both streams. `other` stays as it is."""
        self._same(other.settings)
        for (task, held), theirs in other._heaps.items():
            self._heap(task, held).merge(theirs.rows(), theirs.bound)

    def shards_of(self, ids: Sequence[str], shards: int) -> npt.NDArray[np.int64]:
        """The shard, in [0, shards), that each id is to be offered to."""
        return rendezvous(siphash(ids, key=self._key), shards)

    def split(self, shards: int) -> list[Reservoir]:
        """This reservoir as `shards` of them, by id: together they hold its rows, and go on as if they always had."""
        parts = []
        for shard in range(shards):
            part = copy(self)
            part._heaps = {}
            for (task, held), heap in self._heaps.items():
                rows = heap.rows()
                part._heap(task, held).merge(rows.take(rendezvous(rows.hash, shards) == shard), heap.bound)
            parts.append(part)
        return parts

    def purge(self, source: str) -> int:
        """Drop a source's rows everywhere and answer how many they were.

        The thresholds stay, so that what is offered later is not favoured over what was let go. A merge of purged
        shards may hold rows that one unsharded reservoir had let go; both are uniform.
        """
        return sum(heap.purge(source) for heap in self._heaps.values())

    def tasks(self) -> dict[str, int]:
        """Rows that may be replayed, by task."""
        return {task: len(heap.rows()) for (task, held), heap in sorted(self._heaps.items()) if not held}

    def __len__(self) -> int:
        return sum(self.tasks().values())

    def snapshot(self) -> bytes:
        """The whole state but the secret key, as an Arrow IPC file. Equal states give equal bytes."""
        parts = [Part(task, held, heap.rows(), heap.bound) for (task, held), heap in sorted(self._heaps.items())]
        return pack(self.settings, parts)

    def restore(self, data: bytes) -> None:
        """Become what `snapshot` saw.  Raises Corrupt; ConfigError if it was taken under another key or held-out share.

        A smaller `capacity` or `per_source` cuts the rows; a larger one fills up only below the old thresholds.
        """
        settings, parts = unpack(data)
        self._same(settings)
        self._heaps = {}
        for part in parts:
            self._heap(part.task, part.held).merge(part.rows, part.bound)

    def _heap(self, task: str, held: bool) -> BottomK:
        settings = self.settings
        if (task, held) not in self._heaps:
            cap = max(1, int(settings.capacity * settings.per_source))
            self._heaps[task, held] = BottomK(settings.capacity, cap=cap)
        return self._heaps[task, held]

    def _held(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        return np.asarray(mix(hashes) < np.uint64(int(self.settings.heldout * 2**64)))

    def _same(self, other: Settings) -> None:
        mine = self.settings
        if (mine.heldout, mine.fingerprint) != (other.heldout, other.fingerprint):
            raise ConfigError(
                f"reservoir with heldout {other.heldout}, key {other.fingerprint} does not fit one with heldout "
                f"{mine.heldout}, key {mine.fingerprint}: both are fixed for the life of a run's store"
            )


def equal_quotas(n: int, sizes: dict[str, int], seed: int) -> dict[str, int]:
    """Split `n` over tasks as evenly as their sizes allow; who gets the odd ones turns with `seed`."""
    names = sorted(sizes, key=lambda name: (sizes[name], hashlib.sha256(f"{seed}/{name}".encode()).digest()))
    quotas, left = {}, n
    for done, name in enumerate(names):  # smallest first: what it cannot give goes to those that can
        share = left // (len(names) - done)
        quotas[name] = min(sizes[name], share)
        left -= quotas[name]
    return quotas


def _drawn(rows: Columns, n: int, seed: int) -> tuple[list[str], list[int]]:
    """Files and rows of a uniform draw of `n`."""
    if not 0 < n < len(rows):
        return rows.key[:n].tolist(), rows.row[:n].tolist()
    order = mix(rows.hash, 2 * seed + 1)  # odd: 0 decided what is held out
    chosen = np.argpartition(order, n - 1)[:n]
    return rows.key[chosen].tolist(), rows.row[chosen].tolist()


def _grouped(*drawn: tuple[list[str], list[int]]) -> list[Rows]:
    by_key: dict[str, list[int]] = {}
    for keys, rows in drawn:
        for key, row in zip(keys, rows, strict=True):
            by_key.setdefault(key, []).append(row)
    return [Rows(key, tuple(sorted(rows))) for key, rows in sorted(by_key.items())]
