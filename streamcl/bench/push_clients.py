"""Producers that post until they are answered, and endpoints that are killed under them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import httpx
import psutil

from streamcl.bench.push_endpoint import UNLIMITED
from streamcl.bench.push_learner import config_of
from streamcl.cluster import push
from streamcl.cluster.runtime import start_ray, stop_ray
from streamcl.sections import ServeConfig
from streamcl.serve.push import PATH, derived

AGAIN = 0.1
"""Share of the posts that repeat an answered one, as a producer does that did not hear the answer."""
TEXT = "what is the picture of? " * 8
BOOT_S = 120.0


class Producer(threading.Thread):
    """Posts one batch after the other, each with the same key until it is answered with 202. Mutable."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(name=f"producer-{number}", daemon=True)
        self.url, self.number, self.dice = url, number, random.Random(number)
        self.ids: dict[str, tuple[str, ...]] = {}
        """Of the samples behind each key that was answered."""
        self.tries: Counter[str] = Counter()
        """Requests by key that reached an endpoint, answered or not."""
        self.seconds: list[float] = []
        self.refused: list[str] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30.0) as http:
            while not self.stopping.is_set():
                key = f"{self.number}/{len(self.ids)}"
                if self.ids and self.dice.random() < AGAIN:
                    key = self.dice.choice([*self.ids][-50:])
                records, ids = batch(key)
                while not self._answered(http, key, records):
                    time.sleep(0.05)
                self.ids[key] = ids

    def close(self) -> None:
        """Stops once the batch under way is answered."""
        self.stopping.set()
        self.join()

    def _answered(self, http: httpx.Client, key: str, records: list[dict[str, Any]]) -> bool:
        started = time.monotonic()
        try:
            answer = http.post(PATH, json={"samples": records}, headers={"idempotency-key": key})
        except httpx.ConnectError:
            return False
        except httpx.HTTPError:
            self.tries[key] += 1
            return False
        self.tries[key] += 1
        self.seconds.append(time.monotonic() - started)
        if answer.status_code == 202 and answer.json()["accepted"] == len(records):
            return True
        if answer.status_code < 500:
            self.refused.append(answer.text)
        return False


def batch(key: str) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """One to four records, the same for the same key, and the ids they will have: every second key names its own."""
    dice = random.Random(key)
    count, named = dice.randint(1, 4), dice.random() < 0.5
    ids = tuple(f"{key}/{index}" if named else derived("", key, index) for index in range(count))
    records: list[dict[str, Any]] = []
    for index in range(count):
        messages = [
            {"role": "user", "content": f"{TEXT}{key} {index}"},
            {"role": "assistant", "content": str(dice.random())},
        ]
        records.append({"messages": messages, "task": "fox", **({"id": ids[index]} if named else {})})
    return records, ids


class Endpoint(Protocol):
    """Something that answers at `url`, and can be killed."""

    url: str

    def kill(self) -> None:
        """SIGKILL."""

    def start(self) -> None:
        """Answers when this returns."""

    def close(self) -> None: ...


class Process:
    """`streamcl.bench.push_endpoint` on a port. Mutable."""

    def __init__(self, store: Path, port: int, twin: str = "") -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.command = [sys.executable, "-m", "streamcl.bench.push_endpoint", str(store), str(port), twin]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        wait_until_it_answers(self.url)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()


class OnRay:
    """The deployment on Ray Serve, whose replica is killed; Serve starts another. Mutable."""

    def __init__(self, store: Path, port: int) -> None:
        self.url, self.started = f"http://127.0.0.1:{port}", False
        self.config = replace(config_of(store, ends=False), serve=ServeConfig(port=port, push=UNLIMITED))

    def start(self) -> None:
        if not self.started:
            start_ray(self.config)
            push.start(self.config)
            self.started = True
        wait_until_it_answers(self.url)

    def kill(self) -> None:
        (replica,) = [process for process in self._replicas() if process.status() != psutil.STATUS_ZOMBIE]
        replica.send_signal(signal.SIGKILL)
        replica.wait(10)

    def _replicas(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ServeReplica:streamcl-push" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def close(self) -> None:
        stop_ray()


def wait_until_it_answers(url: str) -> None:
    """Any answer of the route itself will do: to GET it says 405."""
    due = time.monotonic() + BOOT_S
    while time.monotonic() < due:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}{PATH}", timeout=5.0).status_code == 405:
                return
        time.sleep(0.05)
    raise TimeoutError(f"{url} does not answer after {BOOT_S} s")
