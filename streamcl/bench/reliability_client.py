"""What a run on real Ray is surrounded by: its stream and YAML, a Ray of its own, and a client that goes on asking."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import yaml

from streamcl import zoo
from streamcl.sections import Config
from streamcl.serve.client import Asked, ask
from streamcl.stream import Files
from streamcl.testing import free_port, kill_tree
from streamcl.types import Sample, from_batch

TASKS = ("animals", "maps")
TRAIN, WINDOW = 144, 32
PATIENT = {
    "RAY_worker_niceness": "0",  # 15 by default: beside other work the workers would starve
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_AUTH_MODE": "disabled",
}
"""What Ray and its drivers run under, on a machine that does other things too."""


def write_run(folder: Path, *, address: str, port: int) -> Path:
    """The stream and the YAML of a run in `folder`."""
    zoo.write_stream(folder / "stream", TASKS, train=TRAIN, test=12, partitions=2)
    values = {
        "name": "small",
        "store": {"path": str(folder / "store"), "shards": 2},
        "batch": 16,
        "model": {"path": "zoo:small", "lora": {"r": 4, "alpha": 8}},
        "source": {"kind": "files", "path": str(folder / "stream" / "train")},
        "detector": {"kind": "labels"},
        "strategy": {"kind": "dgg", "replay_rows": 16},
        "window": {"samples": WINDOW},
        "replay": {"capacity": 16, "key": "seed"},
        "train": {"epochs": 1, "batch_size": 8},
        "evaluate": {"path": str(folder / "stream" / "test"), "samples": 12},
        "serve": {"port": port, "replicas": 2},
        "ray": {"address": address},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@contextmanager
def head(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A Ray of one node that lives for the block: its address, and the process that all its others descend from."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=4"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"),
        *(f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"),
        *(f"--metrics-export-port={free_port()}", "--object-store-memory=300000000", "--disable-usage-stats"),
        # given, or the raylet would die if its agent did not choose them within 15 s
        *(f"--dashboard-agent-grpc-port={free_port()}", f"--runtime-env-agent-port={free_port()}"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | PATIENT)
    try:
        yield f"127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        kill_tree(process.pid)
        process.wait()


class Client(threading.Thread):
    """Asks a question every `period_s`, and once more if there was no answer. Mutable: what came of it."""

    def __init__(self, url: str, samples: Sequence[Sample], *, period_s: float = 0.25) -> None:
        super().__init__(name="client", daemon=True)
        self.url, self.samples, self.period_s = url, samples, period_s
        self.total = self.retried = self.failed = 0
        self.gap_s = 0.0
        """The longest time between two answers."""
        self.digests: set[str] = set()
        self.errors: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        answered = time.monotonic()
        while not self.ended.wait(self.period_s):
            asked = self._ask()
            self.total += 1
            if asked.answer is None:
                self.retried += 1
                self.errors.append(asked.error)
                self.ended.wait(self.period_s)
                asked = self._ask()
            if asked.answer is None:
                self.failed += 1
                self.errors.append(asked.error)
                continue
            self.digests.add(asked.digest)
            self.gap_s = max(self.gap_s, time.monotonic() - answered)
            answered = time.monotonic()

    def _ask(self) -> Asked:
        sample = self.samples[self.total % len(self.samples)]
        with httpx.Client(base_url=self.url, timeout=20.0) as client:  # a new connection each time, as a new client has
            return ask(client, sample, model="small")

    def close(self) -> None:
        self.ended.set()
        self.join()


def questions(config: Config) -> list[Sample]:
    source = Files(path=str(config.evaluate.path))
    polled = [source.open(partition, 0).poll(4) for partition in source.partitions()]
    return [sample for part in polled if part for sample in from_batch(part.batch)]
