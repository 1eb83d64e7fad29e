"""The quickstart on real Ray against bare training: the same windows, the same loop, no Ray, in this process.

The run is the command that a user types, joined by a client that asks it. As a window begins to train in it, the class
that Ray Train's workers use trains it here as well; the two take turns, each alone on the machine in its own. The run's
log says when what was committed. The control is a `fit()` a window: the run's trainer, closed after each window,
against the one that stays.
"""

from __future__ import annotations

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
from rich.console import Console

from streamcl import config as configuration
from streamcl.bench.quickstart import YAML, finish, run
from streamcl.bench.report import Claim
from streamcl.bench.scale_turns import Spans, Turns, moving, pure, window_of
from streamcl.cluster.memory import Shards
from streamcl.cluster.runtime import start_ray, stop_ray
from streamcl.cluster.trainer import Trainer
from streamcl.events import TrainResult
from streamcl.learner import resolve
from streamcl.registry.log import Log
from streamcl.registry.record import Record
from streamcl.registry.stores import open_store
from streamcl.sections import Config, EvaluateConfig
from streamcl.testing import free_port
from streamcl.types import Rows, Window

BAR = 1.15
FITS = 3
"""Windows of the control, with a group that stays and with one each."""
ROWS = 16
"""Samples of a window of the control: one step."""
ASKED = 1.1
"""Requests a second of wall time: two a second of the time in which the run moves, as in the quickstart."""
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


def timeline(records: Sequence[Record], stopped: Spans = ()) -> dict[str, Any]:
    """When the steady part began and ended, and what its seconds went to, those in `stopped` left out.

    It begins when the worker takes up the first window (the commit of its version less what the worker says it took)
    and ends with the last commit that answers a window. `hand over`: a window's way to the worker and the result's way
    back into the log. `between`: from a version to the next window, which the stream may not have filled yet.
    """
    windows = {record.window["id"]: record.time for record in records if record.kind == "window" and record.window}
    versions = [record for record in records if record.version]
    spans = [_spans(record) for record in versions]
    began, stages = spans[0]["load"][0], dict.fromkeys((*STAGES, "hand over", "between"), 0.0)
    ended = max(record.time for record in records if record.version or record.alias)
    for at, (record, mine) in enumerate(zip(versions, spans, strict=True)):
        took = {stage: moving(*mine[stage], stopped) for stage in STAGES}
        for stage, seconds in took.items():
            stages[stage] += seconds
        if at and record.version:
            asked = windows[record.version["window"]]
            stages["hand over"] += moving(asked, record.time, stopped) - sum(took.values())
            stages["between"] += moving(versions[at - 1].time, asked, stopped)
    steady = moving(began, ended, stopped)
    stages["last commit"] = steady - sum(stages.values())
    return {"windows": len(versions), "began": began, "ended": ended, "steady_s": steady, "stages": stages}


def _spans(record: Record) -> dict[str, tuple[float, float]]:
    """When a version's worker did what, counted back from its commit."""
    assert record.version is not None
    end, found = record.time, {}
    for stage in reversed(STAGES):
        seconds = float(record.version["extra"]["seconds"][stage])
        found[stage] = (end - seconds, end)
        end -= seconds
    return found


def ran(config: Config, overrides: Sequence[str]) -> dict[str, Any]:
    """`streamcl run` of the quickstart beside bare training: its timeline, who took the processors, and `pure`.

    `config`: the quickstart's, with `overrides` and its store.
    """
    more = (f"serve.port={free_port()}", f"ask.per_second={ASKED}")
    with run(Path(config.store.path), *more, *overrides) as process:
        clock, turns = Clock(process.pid), Turns(process.pid)
        clock.start()
        alone = [*pure(config, process, turns)]
        summary = finish(process)
        clock.ended.set()
    records = [*Log(open_store(config.store.path)).lineage()][::-1]
    found = timeline(records, turns.stopped)
    told = {record.version["window"]: record.version["extra"] for record in records if record.version}
    for row in alone:
        there = told[row["window"]]
        row["same"] = (row.pop("steps"), row.pop("loss")) == (there["steps"], there["loss"])
    cpu, stopped = clock.between(found.pop("began"), found.pop("ended")), sum(b - a for a, b in turns.stopped)
    return {**found, "stopped_s": stopped, "cpu_s": cpu, "requests": summary["requests"], "pure": alone}


# -- the control -------------------------------------------------------------------------------------------------------


def tiny(window: Window, number: int) -> Window:
    """A first window of a few samples, which nothing is scored on."""
    first = window.samples[0]
    rows = (Rows(first.key, tuple(first.rows[:ROWS])),)
    return replace(window, id=number, samples=rows, again=(), replay=(), heldout={}, memory=None, base=0,
                   closes_task=False)  # fmt: skip


def fits(config: Config) -> dict[str, list[float]]:
    """Seconds from submitting a tiny window to its result: with a `fit()` each, and with a group that stays."""
    log = Log(open_store(config.store.path))
    window = window_of(log, next(record for record in log.records() if record.kind == "window"))
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
        config = resolve(configuration.load(YAML, [f"store.path={Path(scratch) / 'store'}", *overrides]))
        found = ran(config, overrides)
        say.print(found)
        control = fits(config)
        say.print(control)
    return [{"part": "overhead", "overrides": list(overrides), **found, **control}]


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of all runs together, over bare training: the steady part, its training stage, and the steady part with a `fit()`
    a window.
    """
    bare = sum(window["train_s"] for row in rows for window in row["pure"])
    steady = sum(row["steady_s"] for row in rows)
    fit, stays = ([seconds for row in rows for seconds in row[name]] for name in ("fit_s", "stays_s"))
    more = statistics.median(fit) - statistics.median(stays)
    return {
        "pure_s": bare,
        "steady_s": steady,
        "steady": steady / bare,
        "train": sum(row["stages"]["train"] for row in rows) / bare,
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
        f"{found['steady']:.2f} ({found['steady_s']:.0f} s over {found['pure_s']:.0f} s; by run: {each}; "
        f"{same} of {windows} windows with equal steps and loss): {stages} s. Training itself takes "
        f"{found['train']:.2f} times as long as alone: ingest, replica, driver and Ray took {others:.0f} CPU s "
        f"meanwhile on the same 2 cores. Control, a fit() a window: + {found['fit_more_s']:.1f} s each, "
        f"{found['fit']:.2f}"
    )
    what = "the quickstart" + (f" with {', '.join(form)}" if form else "")
    what += ": from the first window's start to the last commit, over pure training time of its windows, no Ray"
    return [Claim("8.3", what, f"<= {BAR}", value, found["steady"] <= BAR and same == windows, command)]
