"""Which ids were seen lately: the memory behind "every message can arrive twice"."""

from __future__ import annotations

import base64

import numpy as np


class Recent:
    """The last `horizon` distinct id hashes (mutates). An id that returns after more than `horizon` others is new."""

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon
        self._seen: dict[int, None] = {}

    def __contains__(self, id_hash: int) -> bool:
        return id_hash in self._seen

    def add(self, id_hash: int) -> bool:
        """Remembers the hash. False if it was there already."""
        if id_hash in self._seen:
            return False
        self._seen[id_hash] = None
        if len(self._seen) > self.horizon:
            del self._seen[next(iter(self._seen))]
        return True

    def snapshot(self) -> str:
        return base64.b64encode(np.fromiter(self._seen, np.uint64, len(self._seen)).tobytes()).decode()

    def restore(self, state: str) -> None:
        self._seen = dict.fromkeys(np.frombuffer(base64.b64decode(state), np.uint64).tolist())
