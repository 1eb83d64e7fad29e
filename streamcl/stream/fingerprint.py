"""A file that was replaced by another of the same length: noticed by a fingerprint kept since it was first read.

Of a file that stays as it is: its size, its first and last bytes, and the store's own tag if there is one (an ETag). Of
lines that may be added to: the first bytes that were there. What both miss is another middle of the same length, in a
store that has no tags.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from streamcl.errors import SourceError
from streamcl.stream.base import Reader, Source

EDGE_BYTES = 2**16
"""How much of a file's beginning and end is looked at."""


class Ledger(Protocol):
    """Where fingerprints are kept: the run's store."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, data: bytes) -> None: ...


class Printed(Source, Protocol):
    """A source whose partitions have fingerprints."""

    def fingerprint(self, partition: str, known: Mapping[str, Any] | None) -> dict[str, Any]:
        """What `partition` looks like now, as JSON values; of what may grow, the part that is in `known`.

        Raises SourceError.
        """


@dataclass(frozen=True)
class Unchanged(Source):
    """A source whose partitions are what they were when reading them began."""

    source: Printed
    ledger: Ledger

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def idle_s(self) -> float | None:
        """See `Source`."""
        return self.source.idle_s

    def partitions(self) -> list[str]:
        """The source's.  Raises SourceError."""
        return self.source.partitions()

    def open(self, partition: str, position: int) -> Reader:
        """The source's reader.  Raises SourceError, also for a partition that has become another one.

        At position 0 nothing of it is in the log, so what is there now counts.
        """
        key = f"sources/{hashlib.sha256(json.dumps([self.name, partition]).encode()).hexdigest()[:32]}.json"
        kept = self.ledger.get(key) if position else None
        known = json.loads(kept) if kept else None
        found = self.source.fingerprint(partition, known)
        if known is None and found.get("head") != 0:
            self.ledger.put(key, json.dumps(found).encode())
        elif known is not None and found != known:
            raise SourceError(
                f"source {self.name!r}: {partition!r} was replaced under a committed position: {position} rows of "
                "another content have been read. Files may be added, not changed: restore it, or start a new run"
            )
        return self.source.open(partition, position)

    def committed(self, positions: Mapping[str, int]) -> None:
        """See `Source`."""
        self.source.committed(positions)


def of_file(fs: Any, path: str, *, grows: bool, known: Mapping[str, Any] | None) -> dict[str, Any]:
    """A file's fingerprint.  Raises OSError."""
    info = fs.info(path)
    size = int(info["size"])
    if grows:
        head = min(size, EDGE_BYTES) if known is None else int(known["head"])
        return {"head": head, "sha256": _digest(fs.cat_file(path, start=0, end=head))} if head else {"head": 0}
    edges = fs.cat_file(path, start=0, end=min(size, EDGE_BYTES)) if size else b""
    edges += fs.cat_file(path, start=max(0, size - EDGE_BYTES), end=size) if size > EDGE_BYTES else b""
    return {"size": size, "sha256": _digest(edges), "tag": info.get("ETag") or info.get("etag")}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
