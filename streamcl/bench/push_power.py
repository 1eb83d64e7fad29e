"""Power cuts under the write-ahead log, on a simulated disk that keeps what was synced and little else."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

from streamcl.stream import Push
from streamcl.stream.frames import MAGIC, framed
from streamcl.stream.push import record_bytes
from streamcl.stream.wal import FolderShard
from streamcl.testing.powercut import PowerLost, SimulatedDisk
from streamcl.types import from_batch


def entry(id: str) -> bytes:
    messages = [{"role": "user", "content": "what is this?"}, {"role": "assistant", "content": "a fox"}]
    return record_bytes({"id": id, "messages": messages}, "")


def lost(folder: Path, seed: int, *, honest: bool = True) -> int:
    """How many promised entries are gone after a cut somewhere in 40 writes; a writer that starts then is read too.

    A writer that is not honest says so of entries that it has not synced.
    """
    dice = random.Random(seed)
    disk = SimulatedDisk(folder / f"before-{seed}")
    left = dice.randrange(4, 40)
    promised: list[str] = []

    def sync(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise PowerLost
        info = os.fstat(handle)
        if honest or stat.S_ISDIR(info.st_mode) or info.st_size <= len(MAGIC):
            disk.sync(handle)

    try:
        shard = FolderShard(disk.root / "wal", segment_bytes=500, sync=sync)
        for number in range(40):
            shard.write(framed(entry(str(number))))
            promised.append(str(number))
    except PowerLost:
        pass
    after = folder / f"after-{seed}"
    disk.cut(after, lucky=dice)
    disk.close()
    heir = FolderShard(after / "wal")
    heir.write(framed(entry("heir")))
    heir.close()
    there = [sample.id for sample in from_batch(Push(str(after / "wal")).open("0", 0).poll(100).batch)]
    assert there[-1] == "heir", "the log cannot be read to its end"
    return len({*promised} - {*there})
