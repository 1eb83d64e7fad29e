"""The quickstart over two and three nodes; of three, one that has a shard and a training worker is taken away.

What is run is the quickstart's YAML with fewer samples, joined to the cluster by `ray.address`. Two training workers
and four shard actors share the nodes that have `work`, in any way: what they compute does not depend on it. So all runs
must end alike, down to the weights of every version.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from streamcl import config as configuration
from streamcl.bench.quickstart import YAML
from streamcl.bench.reliability_client import PATIENT
from streamcl.bench.reliability_state import Ending, ending
from streamcl.bench.report import Claim
from streamcl.bench.scale_clusters import Cluster, Shape, local, spaced
from streamcl.learner import resolve
from streamcl.registry.backends import sha256
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.testing import free_port, kill_tree

SMALL = "zoo:stream?tasks=digits,animals&train=200&test=40"
OVERRIDES = (
    f"source.path={SMALL}#train", f"evaluate.path={SMALL}#test", "evaluate.samples=40", "detector.kind=labels",
    "window.samples=100", "train.epochs=1",
)  # fmt: skip
"""What differs from the quickstart as it is: less of everything."""
PLACED = (
    "train.workers=2", "placement.trainer.custom={work: 1}", "placement.trainer.spread=true",
    "placement.shards.custom={work: 0.1}", "placement.shards.spread=true",
)  # fmt: skip
HEAD, WORK = Shape(cpus=4), Shape(cpus=4, work=3)
"""One node with `work` has room for everything that wants it: two workers and four shard actors."""
WINDOW = 3
"""The window in whose training the node goes."""
WANTED = ("Shard", "ray::RayTrainWorker")
"""What the node that goes must have: how its processes call themselves."""
RUN_S = 500.0
RUNS = {
    "two nodes": {"nodes": 2},
    "three nodes": {"nodes": 3},
    "three nodes, one removed": {"nodes": 3, "lose": True},
    "three network namespaces, one removed": {"nodes": 3, "lose": True, "spaces": True},
}


@dataclass
class Life:
    """One `streamcl run` of the small quickstart on a cluster (mutable)."""

    folder: Path
    address: str

    def __post_init__(self) -> None:
        store, port = self.folder / "store", free_port()
        every = (*OVERRIDES, *PLACED, f"ray.address={self.address}", f"store.path={store}", f"serve.port={port}")
        self.config = resolve(configuration.load(YAML, every))
        self.log = Log(open_store(str(store)))
        self.due = time.monotonic() + RUN_S
        command = [sys.executable, "-m", "streamcl.cli", "run", str(YAML), *every, "--json"]
        with open(self.folder / "run.json", "wb") as out, open(self.folder / "run.log", "wb") as said:
            self.driver = subprocess.Popen(command, stdout=out, stderr=said, env=os.environ | PATIENT)

    def until(self, kind: str, number: int) -> int:
        """The commit of window `number`, or of the version that answers it; waits for it."""
        while True:
            for record in self.log.records():
                about = record.window if kind == "window" else record.version
                if record.kind == kind and about and about["id" if kind == "window" else "window"] == number:
                    return record.n
            if self.driver.poll() is not None or time.monotonic() > self.due:
                raise RuntimeError(f"the {kind} {number} never came: {self._told()}")
            time.sleep(0.05)

    def finish(self) -> dict[str, Any]:
        """The summary that the run prints."""
        if self.driver.wait(max(1.0, self.due - time.monotonic())):
            raise RuntimeError(self._told())
        summary: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return summary

    def _told(self) -> str:
        return (self.folder / "run.log").read_text(errors="replace")[-2000:]

    def close(self) -> None:
        if self.driver.poll() is None:
            kill_tree(self.driver.pid)
            self.driver.wait()


def actors(raylet: int) -> list[str]:
    """What runs on a node: the names of its actors' processes."""
    found = []
    for process in psutil.Process(raylet).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            name = " ".join(process.cmdline()).strip()
            found += [name] if name.startswith("ray::") and "IDLE" not in name else []
    return sorted(found)


def chosen(nodes: list[list[str]]) -> int:
    """The first node but the head that has all of WANTED."""
    for number, names in enumerate(nodes):
        if number and all(any(wanted in name for name in names) for wanted in WANTED):
            return number
    raise RuntimeError(f"no node but the head has {' and '.join(WANTED)}: {nodes}")


def remove(life: Life, cluster: Cluster) -> dict[str, Any]:
    """Takes a node away while window WINDOW trains: what it had, and the time to the next commit."""
    life.until("window", WINDOW)
    time.sleep(1.0)
    nodes = [actors(raylet) for raylet in cluster.raylets]
    gone = chosen(nodes)
    before = time.monotonic()
    at = life.log.head()
    cluster.remove(gone)
    commit = life.until("version", WINDOW)
    if at is None or at.kind != "window":
        raise RuntimeError("the window was trained before its node was removed: give it more samples")
    return {"recovered_s": round(time.monotonic() - before, 1), "gone": nodes[gone], "commits": [at.n, commit]}


def lived(folder: Path, nodes: int, *, lose: bool = False, spaces: bool = False) -> tuple[dict[str, Any], Ending]:
    """A run over so many nodes: what was measured, and its ending.  Raises RuntimeError when it does not end well."""
    folder.mkdir(parents=True)
    start = spaced if spaces else local
    with start(folder / "ray", [HEAD, *[WORK] * (nodes - 1)]) as cluster:
        life = Life(folder, cluster.address)
        started = time.monotonic()
        try:
            found = remove(life, cluster) if lose else {}
            summary = life.finish()
        finally:
            life.close()
    requests = {name: summary["requests"][name] for name in ("total", "failed", "mismatched")}
    wall = round(time.monotonic() - started)
    return {"nodes": nodes, "spaces": spaces, "lost": lose, "wall_s": wall, **requests, **found,
            "versions": len(summary["versions"]), "counters": summary["counters"]}, ending(life.config)  # fmt: skip


def measure(say: Console, runs: list[str]) -> list[dict[str, Any]]:
    """One row a run, with digests of what it ended with."""
    rows: list[dict[str, Any]] = []
    for name in runs:
        with tempfile.TemporaryDirectory(prefix="scl-") as scratch:
            found, end = lived(Path(scratch) / "run", **RUNS[name])  # type: ignore[arg-type]  # bools and ints by name
        rows.append({"part": "nodes", "run": name, **found, "ending": digests(end)})
        say.print({key: value for key, value in rows[-1].items() if key not in ("part", "gone", "ending")})
    return rows


def digests(end: Ending) -> dict[str, str]:
    """A digest of every part of an ending."""
    return {name: sha256(json.dumps(value, sort_keys=True).encode())[:16] for name, value in end.items()}


def claims(rows: list[dict[str, Any]], command: str) -> list[Claim]:
    """8.1, if anything of it was measured. Every run must end as the first that nothing befell."""
    calm = [row for row in rows if not row["lost"]]
    if not calm:
        return []
    lost = [row for row in rows if row["lost"]]
    times = ", ".join(f"{row['recovered_s']:.0f} s ({row['run'].split(',')[0]})" for row in lost)
    sizes = sorted({row["nodes"] for row in rows})
    failed, total = sum(row["failed"] for row in rows), sum(row["total"] for row in rows)
    wrong = [row["run"] for row in rows if row["ending"] != calm[0]["ending"]]
    value = (
        f"{len(rows)} runs on {' and '.join(map(str, sizes))} nodes, {len(rows) - len(wrong)} end alike (counters, "
        f"accepted samples, reservoir, digests of {rows[0]['versions']} versions); next commit {times} after a node "
        f"with {', '.join(WANTED)} went; {failed} of {total} requests failed, {sum(r['mismatched'] for r in rows)} "
        "answered by another version than they name"
    )
    what = "the quickstart (fewer samples) unchanged on two and three nodes; a node with a shard and a worker removed"
    holds = not wrong and {2, 3} <= set(sizes) and bool(lost) and any(row["spaces"] for row in lost)
    return [Claim("8.1", what, "nothing lost: every run ends as a calm one", value, holds, command)]
