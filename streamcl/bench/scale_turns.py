"""Two programs on one machine in turn: a process tree and a loop in this process, ten seconds each.

Shared machines change their speed by half within minutes, so what is measured one after the other cannot be compared.
While one of the two works the other stands still, and its time is not counted.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import psutil
import torch

from streamcl.cluster.worker import Worker
from streamcl.registry.log import Log
from streamcl.registry.record import Record
from streamcl.registry.stores import open_store
from streamcl.sections import Config, EvaluateConfig
from streamcl.store.memory import TaskMemory
from streamcl.train.step import StepLog
from streamcl.types import Refs, Window

SLICE_S = 10.0
Spans = Sequence[tuple[float, float]]
"""From when to when (Unix, seconds)."""


class Turns:
    """A tree that stands still while the loop works. Mutable: since when, and what was."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.since: float | None = None
        self.stopped: list[tuple[float, float]] = []
        """When the tree stood still."""

    def take(self) -> None:
        """The loop's turn."""
        self.since = time.time()
        self._signal(signal.SIGSTOP)
        self._signal(signal.SIGSTOP)  # those that were started meanwhile

    def give(self) -> None:
        """The tree's turn."""
        self._signal(signal.SIGCONT)
        if self.since is not None:
            self.stopped.append((self.since, time.time()))
        self.since = None

    def step(self) -> float:
        """To be called by the loop all the time: after SLICE_S, lets the tree work as long; seconds that it waited."""
        began = time.time()
        if self.since is None or began - self.since < SLICE_S:
            return 0.0
        self.give()
        time.sleep(SLICE_S)
        self.take()
        return time.time() - began

    def _signal(self, sign: signal.Signals) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (self.root, *self.root.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(sign)


def moving(began: float, ended: float, stopped: Spans) -> float:
    """The seconds between two times in which the tree did not stand still."""
    return ended - began - sum(max(0.0, min(ended, last) - max(began, first)) for first, last in stopped)


# -- the loop: training without Ray ------------------------------------------------------------------------------------


class Kept:
    """Task memories in the run's store, without actors."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def read(self, refs: Refs | None) -> TaskMemory:
        return TaskMemory.join([TaskMemory.from_bytes(self.log.get_object(ref)) for ref in refs or ()])

    def write(self, memory: TaskMemory) -> Refs:
        return (self.log.put_object("memory", memory.to_bytes(), "safetensors"),)


def pure(config: Config, process: subprocess.Popen[str], turns: Turns) -> Iterator[dict[str, Any]]:
    """The run's windows trained in this process, on as many threads as a worker has, each as soon as the run has begun
    it: seconds, steps and loss. Nothing is scored.
    """
    torch.set_num_threads(1)
    log, bare = Log(open_store(config.store.path)), replace(config, evaluate=EvaluateConfig())
    worker, done = None, 0
    while process.poll() is None:
        windows = [record for record in log.records() if record.kind == "window" and record.state["refs"].get("window")]
        if len(windows) <= done:
            time.sleep(0.2)
            continue
        turns.take()
        worker = worker or Worker(bare, Kept(log))
        yield trained(worker, window_of(log, windows[done]), turns)
        done += 1
        turns.give()


def trained(worker: Worker, window: Window, turns: Turns) -> dict[str, Any]:
    waited = 0.0

    def step(step: int, steps: int, log: StepLog) -> None:
        nonlocal waited
        waited += turns.step()

    result = worker.run(replace(window, heldout={}), step)
    assert result is not None
    seconds = result.seconds["train"] - waited
    return {"window": window.id, "train_s": seconds, "steps": result.steps, "loss": result.loss}


def window_of(log: Log, record: Record) -> Window:
    return Window.from_json(json.loads(log.get_object(record.state["refs"]["window"])))
