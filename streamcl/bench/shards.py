"""The shard actors under SIGKILL, and another number of them: draws and memory of a calm run, or not?

Real Ray, real actors, without a model: windows offer rows and leave memories as a learner's would.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from streamcl.bench.report import Claim, about, save
from streamcl.cluster.memory import Shards
from streamcl.cluster.replay import Drawn, Replay, committed
from streamcl.cluster.runtime import start_ray, stop_ray
from streamcl.events import Checkpoint, Freeze, Offer
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.sections import Config, ReplayConfig, StoreConfig
from streamcl.store.memory import TaskMemory
from streamcl.store.sharding import shards_of
from streamcl.stream import Files
from streamcl.train.settings import ModelConfig
from streamcl.types import Window

COMMAND = "python -m streamcl.bench.shards"
KEY = b"k" * 32
ROWS = 60
CHECKPOINT = Checkpoint({}, {}, {}, 0.0)
Seen = list[tuple[Any, Any, bytes]]
"""Of each window: its replay draw, its held-out rows, the memory that was read back."""


def config(folder: Path, *, shards: int) -> Config:
    return Config(
        StoreConfig(str(folder), shards), ModelConfig("unused"), Files("unused"), replay=ReplayConfig(capacity=40)
    )


def freeze(number: int) -> Freeze:
    """Window `number`: its rows go to one of three tasks in turn."""
    task = f"task-{number % 3}"
    names = tuple(f"id-{number}-{i}" for i in range(ROWS))
    offer = Offer(task, names, (f"file-{number}",) * ROWS, tuple(range(ROWS)), ("s",) * ROWS)
    window = Window(number, task, (), (), number, 0, 0, False, known=("task-0", "task-1", "task-2"))
    return Freeze(window, offer, 24, CHECKPOINT)


def memory(number: int) -> TaskMemory:
    generator = torch.Generator().manual_seed(number)
    tensors = {f"layer-{i}.weight": torch.randn(8, 8, generator=generator) for i in range(12)}
    return TaskMemory({"anchor": tensors}, {"task": number})


def commit(log: Log, drawn: Drawn, refs: tuple[Any, ...]) -> None:
    named = {f"memory/{shard}": ref for shard, ref in enumerate(refs)}
    log.append("data", state={"refs": {**drawn.refs, **named}})


class Life:
    """A learner's use of its shards, window by window. Mutable: counts its kills."""

    def __init__(self, folder: Path, *, shards: int) -> None:
        self.config = config(folder, shards=shards)
        self.log = Log(open_store(str(folder)))
        self.log.acquire("life")
        self.replay = Replay(self.config, KEY)
        self.memory = Shards(str(folder), shards, run="shards")
        self.pool = ThreadPoolExecutor(1)
        self.killed = 0

    def window(self, number: int, dice: random.Random | None) -> tuple[Drawn, TaskMemory]:
        """One window's use of the shards; with dice, three of them are killed on the way."""
        if dice:
            self._kill(dice.choice([*self.replay.pids(), *self.memory.pids()]))
            victim = dice.choice(self.replay.pids())
        drawing = self.pool.submit(self.replay.freeze, freeze(number))
        if dice:
            self._kill(victim)  # while it takes in its rows, or just after, without a commit
        drawn = drawing.result()
        refs = self.memory.write(memory(number))
        if dice:
            self._kill(dice.choice(self.memory.pids()))
        kept = self.memory.read(refs)
        commit(self.log, drawn, refs)
        return drawn, TaskMemory.from_bytes(kept.to_bytes())

    def _kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.killed += 1

    def close(self) -> None:
        self.pool.shutdown()
        self.replay.close()
        self.memory.close()


def lived(folder: Path, *, windows: range, shards: int, dice: random.Random | None = None) -> tuple[Seen, int]:
    """A life over these windows, three kills each if there are dice: what was seen, and the number of kills."""
    life = Life(folder, shards=shards)
    seen: Seen = []
    for number in windows:
        drawn, kept = life.window(number, dice)
        seen.append((drawn.replay, drawn.heldout, kept.to_bytes()))
    life.close()
    return seen, life.killed


def changed(folder: Path) -> Seen:
    """Two windows with two shards, then two with five, over one store."""
    before, _ = lived(folder, windows=range(2), shards=2)
    after, _ = lived(folder, windows=range(2, 4), shards=5)
    return before + after


def moved(before: int, after: int, *, names: int = 20_000) -> float:
    """Share of parameter names whose shard changes with the number of shards."""
    keys = [f"layers.{i}.weight" for i in range(names)]
    return float((shards_of(keys, before) != shards_of(keys, after)).mean())


def reservoir(folder: Path) -> bytes:
    """The whole reservoir as the log's head has it."""
    return committed(Log(open_store(str(folder))), config(folder, shards=1), KEY).snapshot()


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--windows", type=int, default=24, help="three kills each")
    windows = parser.parse_args().windows
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="streamcl-bench-") as folder, console.status("killing shards"):
        root = Path(folder)
        start_ray(config(root, shards=1))
        calm, _ = lived(root / "calm", windows=range(windows), shards=3)
        killed, kills = lived(root / "killed", windows=range(windows), shards=3, dice=random.Random(0))
        same = killed == calm and reservoir(root / "killed") == reservoir(root / "calm")
        steady, _ = lived(root / "steady", windows=range(4), shards=2)
        turned = changed(root / "changed")
    stop_ray()
    share, command = moved(2, 5), COMMAND
    claims = [
        Claim(
            "4.4", "SIGKILL of shard actors between and during updates: draws, memory and reservoir of a calm run",
            "equal after >= 50 kills", f"{'equal' if same else 'different'} after {kills} kills in {windows} windows",
            same and kills >= 50, command,
        ),
        Claim(
            "4.6", "store.shards from 2 to 5 between two runs of one stream: windows that differ; keys that move",
            "0; <= 65 %", f"{sum(a != b for a, b in zip(turned, steady, strict=True))} of 4; {share:.1%}",
            turned == steady and share <= 0.65, command,
        ),
    ]  # fmt: skip
    rows = [{"windows": windows, "kills": kills, "equal": same, "moved": share}]
    console.print(f"written: {save('shards', about(seeds=[0]), rows=rows, claims=claims)}")


if __name__ == "__main__":
    main()
