"""Stores in memory: one that keeps its promises, and one that loses, delays and repeats requests and replies."""

from __future__ import annotations

import threading
from collections.abc import Callable

from streamcl.registry.backends import Outcome, checked_key, sha256, uuid7
from streamcl.registry.log import COLLECTED, Log
from streamcl.registry.record import Record
from streamcl.registry.versions import Registry


class MemoryStore:
    """A dict with a lock. `now`: the time (Unix, seconds) that it gives new objects; None is the real one. Mutable."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.now: float | None = None

    def put_if_absent(self, key: str, data: bytes) -> Outcome:
        with self.lock:
            if checked_key(key) in self.objects:
                return "exists"
            self.objects[key] = data
            return "created"

    def get(self, key: str) -> bytes | None:
        return self.objects.get(checked_key(key))

    def put_unique(self, prefix: str, data: bytes, suffix: str) -> str:
        name = uuid7() if self.now is None else f"{int(self.now * 1000):012x}{uuid7()[12:]}"
        key = f"{prefix}/{name}-{sha256(data)[:12]}.{suffix}"
        assert MemoryStore.put_if_absent(self, key, data) == "created"
        return key

    def put(self, key: str, data: bytes) -> None:
        self.objects[checked_key(key)] = data

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects if not prefix or key.startswith(f"{prefix}/"))

    def delete(self, key: str) -> None:
        self.objects.pop(checked_key(key), None)

    def tidy(self, before: float) -> None:
        return

    def path(self, key: str) -> str:
        return f"memory://{checked_key(key)}"


class FaultyStore(MemoryStore):
    """A MemoryStore whose next commits go wrong, one word of `faults` each.

    lost: written, no reply.  dropped: not written, no reply.  delayed: no reply, written by `land` if still free then.
    repeated: the request arrives twice, the second reply is the one seen.  overtaken: `intruder` runs before the reply.
    preceded: `intruder` runs before the request arrives.  "": no fault.  `deleting` runs before the next deletion.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.late: list[tuple[str, bytes]] = []
        self.asked: list[tuple[str, bytes]] = []
        self.intruder: Callable[[], object] = lambda: None
        self.deleting: Callable[[], object] = lambda: None

    def put_if_absent(self, key: str, data: bytes) -> Outcome:
        if not key.startswith("commits/"):
            return super().put_if_absent(key, data)
        self.asked.append((key, data))
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "dropped":
            return "unknown"
        if fault == "delayed":
            self.late.append((key, data))
            return "unknown"
        if fault == "preceded":
            self.intruder()
        outcome = super().put_if_absent(key, data)
        if fault == "overtaken":
            self.intruder()
        if fault == "repeated":
            return super().put_if_absent(key, data)
        return "unknown" if fault == "lost" else outcome

    def delete(self, key: str) -> None:
        before, self.deleting = self.deleting, lambda: None
        before()
        super().delete(key)

    def land(self) -> None:
        """The delayed requests arrive now."""
        late, self.late = self.late, []
        for key, data in late:
            MemoryStore.put_if_absent(self, key, data)


class Damage:
    """What went bad in a store, and what is whole by that knowledge alone, without a digest. Mutable."""

    def __init__(self, disk: MemoryStore) -> None:
        self.disk = disk
        self.spoilt: dict[str, bytes] = {}
        """The sound bytes of every object that was ever damaged."""

    def spoil(self, key: str, how: str) -> None:
        """Flip, cut or delete. The newest commit is never deleted: nobody could know that it was made."""
        data = self.disk.objects.pop(key, b"")
        self.spoilt.setdefault(key, data)
        if how == "flip" and data:
            self.disk.objects[key] = data[:-1] + bytes([data[-1] ^ 1])
        elif how == "cut" or key.startswith("commits/"):
            self.disk.objects[key] = data[: len(data) // 2]

    def spoiled(self, key: str) -> bool:
        return key in self.spoilt and self.disk.objects.get(key) != self.spoilt[key]

    def newest_whole(self) -> Record | None:
        """The commit that a recovery should find."""
        registry, lowest = Registry(quick(self.disk), "model"), 1
        for key in reversed(self.disk.list("commits")):
            n = int(key[-25:-5])
            if self.spoiled(key) or n < lowest:
                continue
            record = Record.parse(self.disk.objects[key], n=n)
            lowest = max(lowest, record.state.get(COLLECTED, 1))
            version = registry.newest(record)
            needed = [ref["key"] for ref in record.state.get("refs", {}).values()]
            needed += [key for key in self.spoilt if version and key.startswith(f"{version.path}/")]
            if not any(map(self.spoiled, needed)):
                return record
        return None


def quick(store: MemoryStore, kind: type[Log] = Log) -> Log:
    """A log that does not wait between tries and goes by the store's time."""
    return kind(store, clock=lambda: store.now or 0.0, backoff=lambda attempt: None)
