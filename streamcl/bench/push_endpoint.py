"""The push endpoint as a process that may be killed: the route, its log and uvicorn, without a model or Ray.

    python -m streamcl.bench.push_endpoint STORE PORT [TWIN]

TWIN names a writer that is broken on purpose: "early" says 202 while the samples are still in its own memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.serve.push import Samples, push_app
from streamcl.serve.quota import PushConfig
from streamcl.stream.limits import Limits
from streamcl.stream.segments import FOLDER
from streamcl.stream.wal import FolderShard, Wal

UNLIMITED = PushConfig(samples_per_s=1e9, bytes_per_s=10**12)
EARLY_BYTES = 64 * 2**10


class Early(FolderShard):
    """Writes once so much has come together, and does not wait for it: as a buffered file does. Mutable."""

    kept = b""

    def write(self, frames: bytes) -> None:
        self.kept += frames
        if len(self.kept) >= EARLY_BYTES:
            super().write(self.kept)
            self.kept = b""


TWINS = {"": FolderShard, "early": Early}


def samples(store: str, twin: str = "", *, config: PushConfig = UNLIMITED) -> Samples:
    """The route over the log of a run's store; nobody is asked for a key."""
    log = Log(open_store(store))

    def committed() -> dict[str, int]:
        head = log.head()
        return dict(head.state.get("sources", {})) if head else {}

    wal = Wal(TWINS[twin](Path(store) / FOLDER))
    return Samples(wal, committed, lambda http: "", config=config, limits=Limits())


if __name__ == "__main__":
    where, port, *twin = sys.argv[1:]
    uvicorn.run(push_app(samples(where, *twin)), host="127.0.0.1", port=int(port), log_level="warning")
