"""Parts for tests and benches: a source made of lists, a free port, and the end of a process tree."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from streamcl.errors import SourceError
from streamcl.stream.base import Polled, Source
from streamcl.types import DeadLetter, Sample, to_batch


@dataclass(frozen=True)
class ListSource(Source):
    """A source whose partitions are lists. A row's position is its index plus one."""

    rows: Mapping[str, Sequence[Sample | DeadLetter]]
    name: str = "list"
    unending: tuple[str, ...] = ()
    """Partitions that have nothing *now* after their last row, instead of ending: more may be put into the list."""
    idle_s: float | None = None

    def partitions(self) -> list[str]:
        return sorted(self.rows)

    def open(self, partition: str, position: int) -> ListReader:
        if not 0 <= position <= len(self.rows[partition]):
            raise SourceError(f"{partition!r} has {len(self.rows[partition])} rows; position {position} is beyond them")
        return ListReader(self, partition, position)


class ListReader:
    """Reads one list.  Mutates: `position`."""

    def __init__(self, source: ListSource, partition: str, position: int) -> None:
        self.position = position
        self._source, self._partition = source, partition

    def poll(self, limit: int) -> Polled | None:
        rows = [
            replace(row, source=self._source.name, partition=self._partition, position=self.position + offset)
            for offset, row in enumerate(self._source.rows[self._partition][self.position :][:limit], start=1)
        ]
        if not rows and self._partition not in self._source.unending:
            return None
        self.position += len(rows)
        good = [row for row in rows if isinstance(row, Sample)]
        return Polled(to_batch(good), tuple(row for row in rows if isinstance(row, DeadLetter)))


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def kill_tree(pid: int) -> int:
    """SIGKILL to a process and everything that it started, all at once; how many they were."""
    import psutil

    root = psutil.Process(pid)
    tree = [root, *root.children(recursive=True)]
    for sign in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: nobody may react to another's death
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(sign)
    psutil.wait_procs(tree, timeout=10)
    return len(tree)
