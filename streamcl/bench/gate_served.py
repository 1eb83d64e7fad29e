"""Rollbacks through the command line while clients ask, and what the endpoint does when its processes are killed.

One Ray, two replicas, a learner whose stream never ends; every measurement is a row. A client asks several times a
second, each time over a new connection, and once more if there was no answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from streamcl import config as configuration
from streamcl.bench.reliability_client import PATIENT, Client, head, questions, write_run
from streamcl.learner import resolve
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.registry.versions import Registry
from streamcl.sections import Config
from streamcl.serve.client import Asked
from streamcl.testing import free_port, kill_tree

VICTIMS = {"replica": "ray::ServeReplica:streamcl", "controller": "ray::ServeController", "proxy": "ray::ProxyActor"}
WAIT_S = 300.0
AWAY_S = 12.0
"""How long the store is away."""


class Watching(Client):
    """Remembers when each question was asked and answered, and by which version. Mutable."""

    def __init__(self, config: Config) -> None:
        where = f"http://{config.serve.host}:{config.serve.port}"
        super().__init__(where, questions(config), period_s=0.1)
        self.told: list[tuple[float, float, int]] = []

    def _ask(self) -> Asked:
        started = time.time()
        asked = super()._ask()
        if asked.answer is not None:
            self.told.append((started, time.time(), asked.version))
        return asked

    def first(self, version: int, since: float) -> float | None:
        """When the version first answered after a moment."""
        return next((ended for _, ended, told in self.told if told == version and ended > since), None)

    def stale(self, version: int, since: float, until: float) -> int:
        """Answers to questions asked between the two moments that another version gave."""
        return sum(1 for started, _, told in self.told if since < started < until and told != version)


@dataclass
class Scene:
    """Everything that runs. Mutable: the learner's process."""

    path: Path
    config: Config
    ray: psutil.Process
    learner: subprocess.Popen[bytes] | None = None

    @property
    def registry(self) -> Registry:
        return Registry(Log(open_store(self.config.store.path)), self.config.name)

    def start(self) -> None:
        with open(self.path.with_suffix(".log"), "ab") as out:
            command = [sys.executable, "-m", "streamcl.cli", "run", str(self.path), "--json"]
            self.learner = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | PATIENT)

    def stop(self) -> None:
        if self.learner is not None and self.learner.poll() is None:
            kill_tree(self.learner.pid)
            self.learner.wait()

    def versions(self, *words: str) -> float:
        """`streamcl versions …`; seconds from its start to its end.  Raises CalledProcessError."""
        started = time.time()
        verb, *rest = words
        command = [sys.executable, "-m", "streamcl.cli", "versions", verb, str(self.path), *rest]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | PATIENT)
        return time.time() - started

    def pids(self, victim: str) -> list[int]:
        found = []
        for process in self.ray.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE and VICTIMS[victim] in " ".join(process.cmdline()):
                    found.append(process.pid)
        return sorted(found)


@contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    """A run that has learned all there is, and waits for more."""
    folder.mkdir(parents=True)
    with head(folder / "ray") as (address, process):
        path = write_run(folder, address=address, port=free_port())
        values = yaml.safe_load(path.read_text())
        values["source"]["tail"] = True
        values["window"] = {"samples": 96}
        values["gate"] = {"enabled": False}
        path.write_text(yaml.safe_dump(values))
        made = Scene(path, resolve(configuration.load(path)), process)
        made.start()
        try:
            until(lambda: (live := made.registry.resolve()) is not None and live.number >= 2)
            yield made
        finally:
            made.stop()


def until(ready: Any, seconds: float = WAIT_S) -> None:
    due = time.time() + seconds
    while not ready():
        if time.time() > due:
            raise TimeoutError(f"not there after {seconds} s")
        time.sleep(0.1)


def rollback(made: Scene, client: Watching) -> dict[str, Any]:
    """One move through the command line: to version 1, or back to 2."""
    live = made.registry.resolve()
    assert live is not None
    target = 1 if live.number != 1 else 2
    failed, started = client.failed, time.time()
    took = made.versions("promote", str(target))
    acknowledged = time.time()
    until(lambda: client.first(target, started))
    time.sleep(2.0)
    moved = made.registry.log.back()
    record = next(one for one in moved if one.alias)
    assert record.alias is not None
    first = client.first(target, started)
    assert first is not None
    return {
        "from": live.number, "to": target, "learner": made.learner is not None and made.learner.poll() is None,
        "command_s": round(took, 2), "first_answer_s": round(first - started, 2),
        "moved_to_answer_s": round(first - record.time, 2),
        "stale": client.stale(target, acknowledged, time.time()), "failed": client.failed - failed,
    }  # fmt: skip


@contextmanager
def away(store: Path) -> Iterator[None]:
    """The store cannot be reached: a file lies where its folder was, so that nobody makes a new one."""
    aside = store.with_name("away")
    store.rename(aside)
    while True:
        try:
            store.touch(exist_ok=False)
            break
        except FileExistsError:  # whoever was quicker has made an empty folder
            shutil.rmtree(store)
    try:
        yield
    finally:
        store.unlink()
        aside.rename(store)


def kill(made: Scene, client: Watching, victim: str) -> dict[str, Any]:
    """Kills one process of a kind, or takes the store away, and watches until all is well again."""
    before, retried, failed = client.total, client.retried, client.failed
    client.gap_s, row = 0.0, dict[str, Any](victim=victim)
    if victim == "store":
        with away(Path(made.config.store.path)):
            time.sleep(AWAY_S)
    elif victim == "learner":
        made.stop()
    else:
        old = made.pids(victim)
        os.kill(old[0], signal.SIGKILL)
        if victim == "replica":  # the one that comes must not answer from what was live when the other died
            live = made.registry.resolve()
            assert live is not None
            target = 1 if live.number != 1 else 2
            made.versions("promote", str(target))
            since = time.time()
        until(lambda: len(made.pids(victim)) >= len(old) and set(made.pids(victim)) != set(old))
    time.sleep(15.0)
    if victim == "replica":
        row["stale"] = client.stale(target, since, time.time())
    return {
        **row, "asked": client.total - before, "retried": client.retried - retried,
        "failed": client.failed - failed, "gap_s": round(client.gap_s, 1),
    }  # fmt: skip


def measured(folder: Path, *, moves: int = 6) -> Iterator[dict[str, Any]]:
    """All rows: rollbacks with the learner, kills, rollbacks without it."""
    with scene(folder) as made:
        client = Watching(made.config)
        until(lambda: client._ask().answer is not None)
        client.start()
        try:
            for _ in range(moves):
                yield rollback(made, client)
            for victim in ("replica", "controller", "proxy", "store", "learner"):
                yield kill(made, client, victim)
            for _ in range(moves // 2):
                yield rollback(made, client)
        finally:
            client.close()


if __name__ == "__main__":
    for found in measured(Path(sys.argv[1])):
        print(json.dumps(found), flush=True)
