"""A small learner on a local store that kills itself at `STREAMCL_KILL_AT=point:nth`. Run again, it goes on.

    STREAMCL_KILL_AT="linked:7" python tests/registry/crash.py /some/folder
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from streamcl.registry.backends import LocalStore
from streamcl.registry.log import Log
from streamcl.registry.versions import Registry

BATCHES = [[0, 1, 2], [2, 3], [4, 1], [5, 5, 6]]
"""Sample ids as the source delivers them, some twice."""


class KillPoint:
    """Counts the points reached; at `point:nth` the process dies as by kill -9."""

    def __init__(self, at: str = "", sign: signal.Signals = signal.SIGKILL) -> None:
        self.at = at
        self.sign = sign
        self.counts: Counter[str] = Counter()

    def __call__(self, point: str) -> None:
        self.counts[point] += 1
        if f"{point}:{self.counts[point]}" == self.at:
            os.kill(os.getpid(), self.sign)


def learn(root: Path, reached: KillPoint, store: type[LocalStore] = LocalStore) -> None:
    """Take in every batch once; freeze a window after every second one, publish and promote its version."""
    log = Log(store(root, reached=reached))
    registry = Registry(log, "model")
    log.acquire(f"process {os.getpid()}")
    record = log.recover()
    assert record is not None
    registry.repair()
    state: dict[str, Any] = {"sources": {"p": 0}, "counters": {"in": 0, "accepted": 0, "dup": 0}, "windows": 0}
    state.update(record.state)
    seen = json.loads(log.get_object(state["refs"]["seen"])) if "refs" in state else []
    answer(registry, state["windows"])
    for position in range(state["sources"]["p"], len(BATCHES)):
        freeze(log, registry, state, due=position // 2)
        fresh = [sample for sample in dict.fromkeys(BATCHES[position]) if sample not in seen]
        seen += fresh
        counters = state["counters"]
        counts = (len(BATCHES[position]), len(fresh), len(BATCHES[position]) - len(fresh))
        counters = {name: counters[name] + more for name, more in zip(("in", "accepted", "dup"), counts, strict=True)}
        state["refs"] = {"seen": log.put_object("memory", json.dumps(seen).encode(), "json")}
        state |= {"sources": {"p": position + 1}, "counters": counters}
        log.append("data", state=state)
    freeze(log, registry, state, due=len(BATCHES) // 2)


def freeze(log: Log, registry: Registry, state: dict[str, Any], *, due: int) -> None:
    if state["windows"] < due:
        state["windows"] += 1
        log.append("window", window={"id": state["windows"]}, state=state)
        answer(registry, state["windows"])


def answer(registry: Registry, window: int) -> None:
    if window:
        files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"trained on window %d" % window}
        version = registry.publish(files, window=window, task="t", base_digest="b", scores={"accuracy": 0.5})
        registry.promote(version.number)


def history(root: Path) -> list[Any]:
    """What the log tells, without what may differ from run to run: fences, names, times."""
    told = []
    for record in Log(LocalStore(root)).records():
        if record.kind != "fence":
            refs = {name: ref["sha256"] for name, ref in record.state.get("refs", {}).items()}
            version = record.version and (record.version["number"], record.version["digest"], record.version["window"])
            alias = record.alias and (record.alias["version"]["number"], record.alias["before"])
            told.append((record.kind, {**record.state, "refs": refs}, record.window, version, alias))
    return told


if __name__ == "__main__":
    learn(Path(sys.argv[1]), KillPoint(os.environ.get("STREAMCL_KILL_AT", "")))
