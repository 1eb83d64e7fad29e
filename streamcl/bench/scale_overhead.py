"""The quickstart on real Ray against bare training: the same windows, the same loop, no Ray, in this process.

The run is the command that a user types, joined by a client that asks it. Its log says when what was committed; the
windows in it are then trained again by the class that Ray Train's workers use, alone on the machine. The control is a
`fit()` a window: the run's trainer, closed after each window, against the one that stays.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console

from streamcl import config as configuration
from streamcl.bench.quickstart import YAML, finish, run
from streamcl.bench.report import Claim
from streamcl.cluster.memory import Shards
from streamcl.cluster.runtime import start_ray, stop_ray
from streamcl.cluster.trainer import Trainer
from streamcl.cluster.worker import Worker
from streamcl.events import TrainResult
from streamcl.learner import resolve
from streamcl.registry.log import Log
from streamcl.registry.record import Record
from streamcl.registry.stores import open_store
from streamcl.sections import Config, EvaluateConfig
from streamcl.store.memory import TaskMemory
from streamcl.testing import free_port
from streamcl.types import Refs, Rows, Window

BAR = 1.15
FITS = 3
"""Windows of the control, with a group that stays and with one each."""
ROWS = 16
"""Samples of a window of the control: one step."""
STAGES = ("load", "train", "score")
KINDS = {
    "ray::RayTrainWorker": "training worker", "ray::Ingest": "ingest", "ray::ServeReplica": "replica",
    "ray::ServeController": "serve", "ray::ProxyActor": "serve", "ray::TrainController": "train controller",
    "ray::IDLE": "idle workers", "streamcl.cli": "driver", "ray::": "other actors",
}  # fmt: skip
"""What a process is counted as, by what it calls itself; the first that fits, else "ray itself"."""


class Clock(threading.Thread):
    """Looks every two seconds what processor time a process tree has taken, by kind. Mutable: what it has seen."""

    def __init__(self, pid: int) -> None:
        super().__init__(name="clock", daemon=True)
        self.root, self.ended = psutil.Process(pid), threading.Event()
        self.seen: list[tuple[float, Mapping[str, float]]] = []
        self.last: dict[int, tuple[str, float]] = {}

    def run(self) -> None:
        while not self.ended.wait(2.0):
            try:
                tree = [self.root, *self.root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in tree:
                try:
                    used = process.cpu_times()
                    self.last[process.pid] = (kind(" ".join(process.cmdline())), used.user + used.system)
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
            total: dict[str, float] = defaultdict(float)
            for name, seconds in self.last.values():
                total[name] += seconds
            self.seen.append((time.time(), total))

    def between(self, began: float, ended: float) -> dict[str, float]:
        """Processor seconds by kind between two times."""
        first = next(total for at, total in self.seen if at >= began)
        last = [total for at, total in self.seen if at <= ended][-1]
        spent = {name: last[name] - first.get(name, 0.0) for name in last}
        return {name: round(seconds, 1) for name, seconds in spent.items() if seconds > 0.5}


def kind(command: str) -> str:
    return next((name for mark, name in KINDS.items() if mark in command), "ray itself")


# -- the run -----------------------------------------------------------------------------------------------------------


def timeline(records: Sequence[Record]) -> dict[str, Any]:
    """When the steady part began and ended, and what its seconds went to.

    It begins when the worker takes up the first window (the commit of its version less what the worker says it took)
    and ends with the last commit that answers a window. `hand over`: a window's way to the worker and the result's way
    back into the log. `between`: from a version to the next window, which the stream may not have filled yet.
    """
    windows = {record.window["id"]: record.time for record in records if record.kind == "window" and record.window}
    versions = [record for record in records if record.version]
    took = [{stage: float(r.version["extra"]["seconds"][stage]) for stage in STAGES} for r in versions if r.version]
    answered = [record.version["window"] for record in versions if record.version]
    began = versions[0].time - sum(took[0].values())
    ended = max(record.time for record in records if record.version or record.alias)
    later = list(zip(answered[1:], versions[1:], took[1:], strict=True))
    hand_over = sum(record.time - windows[number] - sum(spent.values()) for number, record, spent in later)
    between = sum(windows[number] - before.time for (number, _, _), before in zip(later, versions, strict=False))
    stages = {stage: sum(spent[stage] for spent in took) for stage in STAGES}
    stages |= {"hand over": hand_over, "between": between}
    stages["last commit"] = ended - began - sum(stages.values())
    return {"windows": len(versions), "began": began, "ended": ended, "steady_s": ended - began, "stages": stages}


def ran(store: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """`streamcl run` of the quickstart: its timeline, whole wall time, start-up, and who took the processors."""
    started = time.time()
    with run(store, f"serve.port={free_port()}", *overrides) as process:
        clock = Clock(process.pid)
        clock.start()
        summary = finish(process)
        clock.ended.set()
    wall = time.time() - started
    found = timeline([*Log(open_store(str(store))).lineage()][::-1])
    cpu = clock.between(found["began"], found["ended"])
    start, end = found.pop("began") - started, wall - (found.pop("ended") - started)
    return {**found, "wall_s": wall, "start_s": start, "end_s": end, "cpu_s": cpu, "requests": summary["requests"]}


# -- without Ray -------------------------------------------------------------------------------------------------------


class Kept:
    """Task memories in the run's store, without actors."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def read(self, refs: Refs | None) -> TaskMemory:
        return TaskMemory.join([TaskMemory.from_bytes(self.log.get_object(ref)) for ref in refs or ()])

    def write(self, memory: TaskMemory) -> Refs:
        return (self.log.put_object("memory", memory.to_bytes(), "safetensors"),)


def windows_of(log: Log) -> list[tuple[Window, dict[str, Any]]]:
    """Every window that was answered, and what its version says of the training."""
    records = [*log.lineage()][::-1]
    told = {record.version["window"]: record.version["extra"] for record in records if record.version}
    windows = [json.loads(log.get_object(r.state["refs"]["window"])) for r in records if r.kind == "window"]
    return [(Window.from_json(window), told[window["id"]]) for window in windows if window["id"] in told]


def pure(config: Config) -> list[dict[str, Any]]:
    """The run's windows trained again in this process, on as many threads as a worker has: seconds by stage.

    `same`: steps and loss are those of the run.
    """
    torch.set_num_threads(1)
    log, rows = Log(open_store(config.store.path)), []
    worker = Worker(config, Kept(log))
    for window, told in windows_of(log):
        result = worker.run(window)
        assert result is not None
        same = (result.steps, result.loss) == (told["steps"], told["loss"])
        rows.append({"window": window.id, "same": same, **{f"{s}_s": result.seconds[s] for s in STAGES}})
    return rows


# -- the control -------------------------------------------------------------------------------------------------------


def tiny(window: Window, number: int) -> Window:
    """A first window of a few samples, which nothing is scored on."""
    first = window.samples[0]
    rows = (Rows(first.key, tuple(first.rows[:ROWS])),)
    return replace(window, id=number, samples=rows, again=(), replay=(), heldout={}, memory=None, base=0,
                   closes_task=False)  # fmt: skip


def fits(config: Config) -> dict[str, list[float]]:
    """Seconds from submitting a tiny window to its result: with a `fit()` each, and with a group that stays."""
    window = windows_of(Log(open_store(config.store.path)))[0][0]
    plain = replace(config, evaluate=EvaluateConfig())
    start_ray(plain)
    try:
        trainer = Trainer(plain, Shards(plain.store.path, 1, run="fits"), name="fits")
        each = []
        for number in range(FITS):
            each.append(timed(trainer, tiny(window, 1000 + number)))
            began = time.monotonic()
            trainer.close()
            each[-1] += time.monotonic() - began
        timed(trainer, tiny(window, 2000))
        stays = [timed(trainer, tiny(window, 2001 + number)) for number in range(FITS)]
        trainer.close()
    finally:
        stop_ray()
    return {"fit_s": each, "stays_s": stays}


def timed(trainer: Trainer, window: Window) -> float:
    began = time.monotonic()
    result = trainer.submit(window).future().result()
    if not isinstance(result, TrainResult):
        raise RuntimeError(f"the control's window was not trained: {result}")
    return time.monotonic() - began


# -- the part ----------------------------------------------------------------------------------------------------------


def measure(say: Console, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """One row: the run, its windows without Ray, the control. `overrides`: what differs from the quickstart."""
    with tempfile.TemporaryDirectory(prefix="scl-") as scratch:
        store = Path(scratch) / "store"
        found = ran(store, overrides)
        say.print(found)
        config = resolve(configuration.load(YAML, [f"store.path={store}", *overrides]))
        alone = pure(config)
        say.print(alone)
        control = fits(config)
        say.print(control)
    return [{"part": "overhead", "overrides": list(overrides), **found, "pure": alone, **control}]


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of all runs together, over bare training: the steady part as it ran, its training stage, what it would be if
    every stage took as long as without Ray (`apart`: reckoned, not run), and the steady part with a `fit()` a window.
    """
    bare = sum(window["train_s"] for row in rows for window in row["pure"])
    alone = sum(window[f"{stage}_s"] for row in rows for window in row["pure"] for stage in STAGES)
    steady = sum(row["steady_s"] for row in rows)
    ours = sum(row["stages"][name] for row in rows for name in ("hand over", "between", "last commit"))
    fit, stays = ([seconds for row in rows for seconds in row[name]] for name in ("fit_s", "stays_s"))
    more = statistics.median(fit) - statistics.median(stays)
    return {
        "pure_s": bare,
        "steady_s": steady,
        "steady": steady / bare,
        "train": sum(row["stages"]["train"] for row in rows) / bare,
        "apart": (alone + ours) / bare,
        "fit": (steady + more * sum(row["windows"] - 1 for row in rows)) / bare,
        "fit_more_s": more,
    }


def claims(rows: list[dict[str, Any]], command: str) -> list[Claim]:
    """8.3, if it was measured."""
    if not rows:
        return []
    found, form = ratios(rows), rows[0]["overrides"]
    windows = sum(row["windows"] for row in rows)
    same = sum(window["same"] for row in rows for window in row["pure"])
    each = ", ".join(f"{ratios([row])['steady']:.2f}" for row in rows)
    stages = ", ".join(f"{name} {sum(row['stages'][name] for row in rows):.1f}" for name in rows[0]["stages"])
    others = sum(seconds for row in rows for name, seconds in row["cpu_s"].items() if name != "training worker")
    value = (
        f"{found['steady']:.2f} ({found['steady_s']:.0f} s over {found['pure_s']:.0f} s; {len(rows)} runs: {each}; "
        f"{same} of {windows} windows with equal steps and loss): {stages} s. Training itself takes "
        f"{found['train']:.2f} times as long as alone: ingest, replica, driver and Ray took {others:.0f} CPU s "
        f"meanwhile on the same 2 cores; with stages as long as alone it would be {found['apart']:.2f} (reckoned). "
        f"Control, a fit() a window: + {found['fit_more_s']:.1f} s each, {found['fit']:.2f}"
    )
    what = "the quickstart" + (f" with {', '.join(form)}" if form else "")
    what += ": from the first window's start to the last commit, over pure training time of its windows, no Ray"
    return [Claim("8.3", what, f"<= {BAR}", value, found["steady"] <= BAR and same == windows, command)]
