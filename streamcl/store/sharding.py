"""Which of N shards owns a name: rendezvous hashing.

Each name goes to the shard with the highest hash of (name, shard). When N changes, a name moves only if its highest
hash belongs to a shard that came or went: 2 → 5 moves three fifths, the least that leaves the load even. No table is
stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from streamcl.store.keyed import Hashes, mix, siphash

Value = TypeVar("Value")
_PUBLIC = b"streamcl shards."


def shards_of(names: Sequence[str], shards: int) -> npt.NDArray[np.int64]:
    """The shard, in [0, shards), of each name.

    What follows a ":" in a name is a part of the same parameter's state ("layer.q:sketch") and stays with it.
    """
    if shards < 1:
        raise ValueError(f"cannot share names over {shards} shards: at least 1")
    return rendezvous(siphash([name.partition(":")[0] for name in names], key=_PUBLIC), shards)


def rendezvous(hashes: Hashes, shards: int) -> npt.NDArray[np.int64]:
    """The shard of each hash: the one whose own mix of it is highest."""
    scores = np.stack([mix(hashes, 2 * shard + 2) for shard in range(shards)])  # even: the reservoir draws by odd seeds
    return np.asarray(scores.argmax(axis=0), dtype=np.int64)


def split(items: Mapping[str, Value], shards: int) -> list[dict[str, Value]]:
    """Items by the shard that owns their name."""
    parts: list[dict[str, Value]] = [{} for _ in range(shards)]
    for (name, value), shard in zip(items.items(), shards_of(list(items), shards).tolist(), strict=True):
        parts[shard][name] = value
    return parts
