"""What a run tells Prometheus, through Ray's metrics. Each node exports them with a prefix: `ray_streamcl_lag_…`.

All are gauges, set anew from what the books say: they survive restarts of the learner, nothing is counted twice, and
they are exact (Ray 2.60 makes up a histogram's sum from the middles of its buckets). Tags are the run, a fate, a stage,
a shard or a kind: never a task, a window or a sample.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.metrics import Gauge

from streamcl import events as e
from streamcl.controller import Controller
from streamcl.serve.trial import Trial
from streamcl.store.memory import TaskMemory
from streamcl.store.reservoir import Reservoir

ERRORS = ("window", "reader")
"""A window that cannot be trained and gets no version; a reader that died and was replaced."""

GAUGES = {
    "samples": ("Samples read since the run began, by fate: accepted, dup, late, dead, pending.", "fate"),
    "unaccounted_samples": ("Samples that arrived since the learner started and are in no fate. Always 0.",),
    "backlog_rows": ("Rows that arrived and wait because two windows are full: reading has stopped.",),
    "pending_bytes": ("Encoded bytes of the samples that no frozen window has yet.",),
    "event_lag_seconds": ("Now minus the stream's own clock (its watermark).",),
    "staleness_seconds": ("From the event time of a window's end to the first answer by a version that learned it.",),
    "commits": ("Commits in the log.",),
    "tasks": ("Tasks met.",),
    "windows": ("Windows closed.",),
    "window_seconds": ("Time of the latest window by stage: load, train, score.", "stage"),
    "swap_seconds": ("Until every replica answered with the latest version.",),
    "live_version": ("Number of the version behind the alias; 0 is the bare base model.",),
    "live_since_seconds": ("When every replica began to answer with the live version (Unix).",),
    "score": ("Mean score in [0, 1] of the live version over the tasks that it was scored on.",),
    "errors": ("Errors that were survived since the learner started.", "kind"),
}
"""What the learner's process tells: a description, and the tags besides `run`."""
SHARD_GAUGES = {
    "reservoir_rows": ("Rows that may be replayed.", "shard"),
    "reservoir_bytes": ("Bytes of the snapshot of a shard of the reservoir.", "shard"),
    "memory_bytes": ("Bytes of what finished tasks left.", "shard"),
    "certificate_ratio": ("Largest error of a subspace, as a share of its rows' energy; 0 without subspaces.", "shard"),
}
"""What shards of the reservoir and of the task memory tell."""
REPLICA_GAUGES = {
    "replica_version": ("Number of the version that this replica answers with.",),
    "canary": ("Requests of a candidate's callers: sent to it, or unavailable, so that live answered.", "result"),
    "shadow": ("Live answers made again by a candidate: same, different, failed, dropped.", "result"),
}
"""What a replica tells, counted since it started."""


def gauges(told: Mapping[str, tuple[str, ...]], run: str) -> dict[str, Any]:
    """Ray's gauges by name."""
    made = {}
    for name, (about, *tags) in told.items():
        made[name] = Gauge(f"streamcl_{name}", description=about, tag_keys=("run", *tags))
        made[name].set_default_tags({"run": run})
    return made


def exporters() -> list[str]:
    """URLs where the nodes of the running Ray export their metrics; none while no Ray runs."""
    if not ray.is_initialized():
        return []
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes]


def tell_tried(gauges: Mapping[str, Any], trial: Trial) -> None:
    """What a replica's trials of candidates have come to."""
    sent, shadowed = trial.results()
    for name, counts in (("canary", sent), ("shadow", shadowed)):
        for result, count in counts.items():
            gauges[name].set(count, tags={"result": result})


class Metrics:
    """The learner's own metrics. Mutable; `watch` is for one thread."""

    def __init__(self, run: str) -> None:
        self.gauges = gauges(GAUGES, run)
        self.errors = dict.fromkeys(ERRORS, 0)
        self.arrived = 0
        self.came_before: int | None = None
        self.reached: dict[int, float] = {}
        """Event time, by window, of the windows that no replica has learned yet."""

    def watch(self, event: e.Event, controller: Controller, *, commits: int) -> None:
        """One event, before the controller handles it. `commits`: how many the log has."""
        match event:
            case e.Ticked():
                self._books(controller, commits)
            case e.Arrived(arrival):
                self.arrived += len(arrival) + len(arrival.dead)
            case e.Frozen(window) if controller.watermark.value is not None:
                self.reached[window.id] = controller.watermark.value
            case e.Trained(_, result):
                for stage, seconds in result.seconds.items():
                    self.gauges["window_seconds"].set(seconds, tags={"stage": stage})
            case e.Failed():
                self.failed("window")
            case e.Swapped(version):
                self._set("live_since_seconds", time.time())
                if (reached := self.reached.pop(version.window, None)) is not None:
                    self._set("staleness_seconds", time.time() - reached)
                if version.scores:
                    self._set("score", sum(version.scores.values()) / len(version.scores))

    def swapped(self, seconds: float) -> None:
        """Every replica was brought to a version in so many seconds."""
        self._set("swap_seconds", seconds)

    def failed(self, kind: str) -> None:
        """Something of a kind in ERRORS went wrong."""
        self.errors[kind] += 1

    def _books(self, controller: Controller, commits: int) -> None:
        balance = controller.balance()
        came = balance.pop("in")
        for fate, count in balance.items():
            self.gauges["samples"].set(count, tags={"fate": fate})
        for kind, count in self.errors.items():
            self.gauges["errors"].set(count, tags={"kind": kind})
        self.came_before = came if self.came_before is None else self.came_before
        if not controller.backlog:  # what lies there is counted when it is taken
            self._set("unaccounted_samples", self.arrived - (came - self.came_before))
        drafts = [draft for draft in (controller.open, controller.waiting) if draft]
        waiting = [(len(arrival) - start, arrival.sizes_N[start:].sum()) for arrival, start in controller.backlog]
        self._set("backlog_rows", sum(rows for rows, _ in waiting))
        pending = sum(row.size for draft in drafts for row in draft.rows) + sum(int(size) for _, size in waiting)
        self._set("pending_bytes", pending)
        if controller.watermark.value is not None:
            self._set("event_lag_seconds", time.time() - controller.watermark.value)
        self._set("commits", commits)
        self._set("tasks", len(controller.tasks))
        self._set("windows", controller.windows)
        self._set("live_version", controller.succession.standing.number)

    def _set(self, name: str, value: float) -> None:
        self.gauges[name].set(value)


class ShardMetrics:
    """What one shard tells of what it holds."""

    def __init__(self, run: str, shard: int) -> None:
        self.gauges, self.tags = gauges(SHARD_GAUGES, run), {"shard": str(shard)}

    def replay(self, reservoir: Reservoir, size: int) -> None:
        """The reservoir's shard, and the bytes of its snapshot."""
        self._set(reservoir_rows=len(reservoir), reservoir_bytes=size)

    def memory(self, part: TaskMemory, size: int) -> None:
        """The memory's shard, and its bytes."""
        self._set(memory_bytes=size, certificate_ratio=part.certificate or 0.0)

    def _set(self, **values: float) -> None:
        for name, value in values.items():
            self.gauges[name].set(value, tags=self.tags)
