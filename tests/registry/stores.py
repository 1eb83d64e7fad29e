"""Stores for tests: one that keeps its promises in memory, one that loses replies, and broken twins."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from streamcl.registry.backends import Outcome, checked_key, sha256, uuid7
from streamcl.registry.log import Log, Record


class MemoryStore:
    """A dict with a lock."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def put_if_absent(self, key: str, data: bytes) -> Outcome:
        with self.lock:
            if checked_key(key) in self.objects:
                return "exists"
            self.objects[key] = data
            return "created"

    def get(self, key: str) -> bytes | None:
        return self.objects.get(checked_key(key))

    def put_unique(self, prefix: str, data: bytes, suffix: str) -> str:
        key = f"{prefix}/{uuid7()}-{sha256(data)[:12]}.{suffix}"
        assert MemoryStore.put_if_absent(self, key, data) == "created"
        return key

    def put(self, key: str, data: bytes) -> None:
        self.objects[checked_key(key)] = data

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects if not prefix or key.startswith(f"{prefix}/"))

    def delete(self, key: str) -> None:
        self.objects.pop(checked_key(key), None)

    def path(self, key: str) -> str:
        return f"memory://{checked_key(key)}"


class FaultyStore(MemoryStore):
    """A MemoryStore whose next commits go wrong, one word of `faults` each.

    lost: written, no reply.  dropped: not written, no reply.  delayed: no reply, written by `land` if still free then.
    repeated: the request arrives twice, the second reply is the one seen.  overtaken: `intruder` runs before the reply.
    preceded: `intruder` runs before the request arrives.  "": no fault.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.late: list[tuple[str, bytes]] = []
        self.asked: list[tuple[str, bytes]] = []
        self.intruder: Callable[[], object] = lambda: None

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

    def land(self) -> None:
        """The delayed requests arrive now."""
        late, self.late = self.late, []
        for key, data in late:
            MemoryStore.put_if_absent(self, key, data)


class Overwriting(FaultyStore):
    """Broken twin: put without the condition, as a plain PUT does."""

    def put_if_absent(self, key: str, data: bytes) -> Outcome:
        outcome = super().put_if_absent(key, data)
        if outcome == "exists":
            self.objects[key] = data
            return "created"
        return outcome

    def land(self) -> None:
        for key, data in self.late:
            self.objects[key] = data
        self.late = []


class NoTxnCheck(Log):
    """Broken twin: takes whatever lies at its number for its own."""

    def _is_ours(self, found: bytes, record: Record) -> bool:
        return True


class NoPostCommitCheck(Log):
    """Broken twin: does not look whether a newer writer came while it committed."""

    def _check_still_newest(self, record: Record) -> None:
        return


def quick(store: Any, kind: type[Log] = Log) -> Log:
    """A log that does not wait between tries."""
    return kind(store, clock=lambda: 0.0, backoff=lambda attempt: None)
