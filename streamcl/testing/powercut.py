"""A simulated power cut: what a folder holds afterwards, if only what was synced has reached the disk. Linux."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path


class PowerLost(BaseException):
    """The machine is off: nothing after this line runs."""


class SimulatedDisk:
    """Remembers what was synced below a folder. Mutable.

    `sync` goes where os.fsync would: a file's bytes, or a folder's names, are on the disk from then on. The real page
    cache cannot be dropped in a test, so this stands for the harshest disk that keeps its word.
    """

    def __init__(self, root: Path, *, skip: Callable[[os.stat_result], bool] = lambda info: False) -> None:
        """`skip`: which syncs this disk lies about."""
        root.mkdir(parents=True)
        self.root, self.skip = root, skip
        self.bytes: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {}
        self._open: list[int] = []  # an inode that is open is not given to another file

    def sync(self, handle: int) -> None:
        info = os.fstat(handle)
        self._open.append(os.dup(handle))
        if self.skip(info):
            return
        path = Path(f"/proc/self/fd/{handle}")
        if stat.S_ISDIR(info.st_mode):
            self.names[info.st_ino] = {entry.name: entry.stat().st_ino for entry in path.resolve().iterdir()}
        else:
            self.bytes[info.st_ino] = path.read_bytes()

    def cut(self, target: Path, *, lucky: random.Random | None = None) -> None:
        """Write what is left to `target`. With `lucky`, each unsynced thing is there or not, as it draws."""
        self._restore(self.root, target, lucky)

    def close(self) -> None:
        for handle in self._open:
            os.close(handle)

    def _restore(self, folder: Path, target: Path, lucky: random.Random | None) -> None:
        target.mkdir()
        there = {path.name: path.stat().st_ino for path in folder.iterdir()}
        left = dict(self.names.get(folder.stat().st_ino, {}))
        if lucky is not None:
            left |= {name: inode for name, inode in there.items() if lucky.random() < 0.5}
        for name, inode in sorted(left.items()):
            path = folder / name
            if path.is_dir():
                self._restore(path, target / name, lucky)
                continue
            data = self.bytes.get(inode, b"")
            if lucky is not None and there.get(name) == inode and inode not in self.bytes:
                data = path.read_bytes()[: lucky.randrange(2**16)]
            (target / name).write_bytes(data)
