"""The learner on real Ray while its processes are killed, one victim a run, with a client that goes on asking.

Ray's head is a process of its own, as on a cluster: the driver joins it, so that the endpoint outlives the driver.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from streamcl import config as configuration
from streamcl.bench.reliability_client import PATIENT, Client, head, questions, write_run
from streamcl.bench.reliability_state import Ending, Violation, different, ending
from streamcl.learner import resolve
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.sections import Config
from streamcl.testing import free_port, kill_tree

VICTIMS = {
    "driver": "streamcl.cli run",
    "ingest": "ray::Ingest",
    "replay shard": "ray::ReplayShard",
    "memory shard": "ray::MemoryShard",
    "train controller": "ray::TrainController",
    "train worker": "ray::RayTrainWorker",
    "replica": "ray::ServeReplica:streamcl",
}
"""What is killed, and how its process calls itself."""
RUN_S = 900.0
"""A run that takes longer hangs."""


# -- one run -----------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One run and what befell it (mutable)."""

    yaml: Path
    config: Config
    ray: psutil.Process
    victim: str = ""
    driver: subprocess.Popen[bytes] | None = None
    client: Client | None = None
    kills: int = 0
    recovered_s: list[float] = field(default_factory=list)
    """From each kill to the next commit; for a replica, until there are as many as before."""

    def __post_init__(self) -> None:
        self.log = Log(open_store(self.config.store.path))
        self.due = time.monotonic() + RUN_S

    def start(self) -> None:
        """`streamcl run`; what it says goes to a file beside the YAML."""
        with open(self.yaml.with_suffix(".log"), "ab") as out:
            command = [sys.executable, "-m", "streamcl.cli", "run", str(self.yaml), "--json"]
            self.driver = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | PATIENT)

    def wait_for_window(self, number: int) -> None:
        """Until window `number` or a later one has been committed, or the run is over."""
        while True:
            for record in self.log.back():
                if record.window and record.window["id"] < number:
                    break
                if record.window or self._ended():
                    return
            self._pause(0.05)

    def kill(self) -> None:
        """Kills one process of the victim's kind and waits until the run is over it; nothing after the run's end."""
        while not (pids := self._pids()):
            if self._ended():
                return
            self._pause(0.05)
        at, before, count = self._end(), time.monotonic(), len(pids)
        os.kill(pids[self.kills % count], signal.SIGKILL)
        self.kills += 1
        if self.victim == "driver":
            assert self.driver is not None
            self.driver.wait()
            time.sleep(3.0)  # nobody is there but the endpoint
            self.start()
        while not self._over(at, set(pids), count):
            self._pause(0.05)
        self.recovered_s.append(time.monotonic() - before)

    def _over(self, at: int, pids: set[int], count: int) -> bool:
        if self.victim == "replica":
            now = self._pids()
            return len(now) >= count and not pids <= set(now)
        new = [record.kind for record in self.log.records(at + 1)]
        return any(kind not in ("fence", "rollback") for kind in new) or self._ended()

    def finish(self) -> None:
        assert self.driver is not None
        while not self._ended():
            self._pause(0.2)
        if self.driver.returncode:
            raise Violation(f"G1: the driver ended with {self.driver.returncode}: {self._told()}")

    def _ended(self) -> bool:
        return self.driver is not None and self.driver.poll() is not None

    def _end(self) -> int:
        newest = self.log.head()
        return newest.n if newest else 0

    def _pids(self) -> list[int]:
        if self.victim == "driver":
            return [self.driver.pid] if self.driver and not self._ended() else []
        found = []
        for process in self.ray.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE and VICTIMS[self.victim] in " ".join(process.cmdline()):
                    found.append(process.pid)
        return sorted(found)

    def _pause(self, seconds: float) -> None:
        if time.monotonic() > self.due:
            raise Violation(f"G1: the run hangs, {self.kills} kills of a {self.victim}: {self._told()}")
        if self._ended() and self.driver is not None and self.driver.returncode:
            raise Violation(f"G1: the driver ended with {self.driver.returncode}: {self._told()}")
        time.sleep(seconds)

    def _told(self) -> str:
        return self.yaml.with_suffix(".log").read_text(errors="replace")[-1500:]

    def close(self) -> None:
        if self.client is not None and self.client.is_alive():
            self.client.close()
        if self.driver is not None and not self._ended():
            kill_tree(self.driver.pid)
            self.driver.wait()


def lived(folder: Path, victim: str = "", *, kills: int = 0) -> tuple[Ending, dict[str, Any]]:
    """One run over a Ray of its own, with so many kills of the victim: its ending, and what was measured.

    Raises Violation when the run does not come to its end.
    """
    folder.mkdir()
    with head(folder / "ray") as (address, process):
        path = write_run(folder, address=address, port=free_port())
        run = Run(path, resolve(configuration.load(path)), process, victim)
        try:
            started = time.monotonic()
            run.start()
            run.wait_for_window(2)  # the first version is answered with
            run.client = _client(run)
            for number in range(kills):
                run.wait_for_window(2 + number)
                run.kill()
            run.finish()
            time.sleep(3.0)  # the endpoint goes on when the driver has gone
            run.client.close()
            wall = time.monotonic() - started
            return ending(run.config), _measured(run, wall)
        finally:
            run.close()


def _client(run: Run) -> Client:
    """A client that has had its first answer."""
    client = Client(f"http://{run.config.serve.host}:{run.config.serve.port}", questions(run.config))
    while client._ask().answer is None:
        run._pause(0.2)
    client.start()
    return client


def _measured(run: Run, wall: float) -> dict[str, Any]:
    client = run.client
    assert client is not None
    return {
        "victim": run.victim,
        "kills": run.kills,
        "recovered_s": [round(seconds, 1) for seconds in run.recovered_s],
        "asked": client.total,
        "retried": client.retried,
        "failed": client.failed,
        "gap_s": round(client.gap_s, 2),
        "versions_seen": len(client.digests),
        "wall_s": round(wall),
        "errors": sorted(set(client.errors))[:5],
    }


def compared(folder: Path, victims: Sequence[str], *, kills: int) -> Iterator[dict[str, Any]]:
    """A calm run, then one run a victim: what was measured, and in `wrong` how its ending differs."""
    calm, about = lived(folder / "calm")
    yield {**about, "wrong": ""}
    for number, victim in enumerate(victims):
        try:
            found, about = lived(folder / f"victim-{number}", victim, kills=kills)
            yield {**about, "wrong": different(found, calm)}
        except Violation as error:
            yield {"victim": victim, "kills": 0, "wrong": str(error)}


if __name__ == "__main__":
    root = Path(sys.argv[1])
    root.mkdir(parents=True, exist_ok=True)
    for row in compared(root, sys.argv[3:] or list(VICTIMS), kills=int(sys.argv[2])):
        print(json.dumps(row), flush=True)
