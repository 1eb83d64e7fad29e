"""Clusters of several nodes on this machine: of `ray.cluster_utils`, or each node in a network namespace of its own.

In namespaces every node has an address of its own, and reaches the others through a bridge alone. That takes root.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from streamcl.bench.reliability_client import PATIENT
from streamcl.testing import free_port, kill_tree

BRIDGE, NET = "streamcl0", "10.77.0"
STORE_BYTES = 200_000_000
"""Of each node's object store."""
UP_S = 60.0
"""A node that is not up by then hangs."""


@dataclass(frozen=True)
class Shape:
    """What a node is said to have: logical CPUs, and units of a resource named `work`."""

    cpus: int
    work: int = 0

    @property
    def resources(self) -> dict[str, int]:
        return {"work": self.work} if self.work else {}


class Cluster(Protocol):
    """Nodes that run; the first is the head."""

    address: str
    raylets: list[int]
    """A process of each node that all its actors descend from."""

    def remove(self, node: int) -> None:
        """SIGKILL to a node, which is told nothing before."""


@dataclass
class Local:
    """Nodes of `ray.cluster_utils` (mutable): they share this machine's address."""

    process: subprocess.Popen[str]
    address: str = ""

    def __post_init__(self) -> None:
        self.raylets: list[int] = []

    def add(self, **options: Any) -> None:
        told = self._ask(f"add {json.dumps(options)}")
        self.address = told["address"]
        self.raylets.append(told["raylet"])

    def remove(self, node: int) -> None:
        self._ask(f"remove {node}")

    def _ask(self, command: str) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"the cluster's process ended with {self.process.wait()} at {command!r}")
        return json.loads(line)


@contextmanager
def local(folder: Path, shapes: Sequence[Shape]) -> Iterator[Local]:
    """A cluster of `ray.cluster_utils` that lives for the block."""
    folder.mkdir()
    command = [sys.executable, "-m", "streamcl.bench.scale_cluster"]
    env = os.environ | PATIENT | {"RAY_TMPDIR": str(folder)}
    pipe = subprocess.PIPE
    with open(folder.parent / "cluster.log", "wb") as said:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, text=True, env=env)
    try:
        cluster = Local(process)
        for number, shape in enumerate(shapes):
            head = {"include_dashboard": False} if number == 0 else {}
            options = {"num_cpus": shape.cpus, "resources": shape.resources, "object_store_memory": STORE_BYTES}
            cluster.add(**options, **head)
        yield cluster
    finally:
        if process.poll() is None:
            kill_tree(process.pid)
        process.wait()


@dataclass
class Spaced:
    """Nodes that `ray start` runs, each but the head in a network namespace of its own (mutable)."""

    folder: Path

    def __post_init__(self) -> None:
        self.port = free_port()
        self.address = f"{NET}.1:{self.port}"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.raylets: list[int] = []

    def add(self, shape: Shape, space: str) -> None:
        """One more node; "" is where we are."""
        number = len(self.nodes) + 1
        place = (
            ["--head", f"--port={self.port}", f"--temp-dir={self.folder}", "--include-dashboard=false",
             f"--ray-client-server-port={free_port()}"]
            if number == 1 else [f"--address={self.address}"]
        )  # fmt: skip
        command = [
            *(["ip", "netns", "exec", space] if space else []),
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *place, f"--num-cpus={shape.cpus}"),
            f"--node-ip-address={NET}.{number}", f"--resources={json.dumps(shape.resources)}",
            f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats",
            f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}",
            f"--dashboard-agent-grpc-port={free_port()}", f"--runtime-env-agent-port={free_port()}",
        ]  # fmt: skip
        device = {"GLOO_SOCKET_IFNAME": "eth0"} if space else {}  # all namespaces share this machine's host name
        with open(self.folder.parent / f"node-{number}.log", "wb") as out:
            env = os.environ | PATIENT | device
            self.nodes.append(subprocess.Popen(command, stdout=out, stderr=out, env=env))
        self.raylets.append(_raylet(self.nodes[-1].pid))

    def remove(self, node: int) -> None:
        kill_tree(self.nodes[node].pid)
        self.nodes[node].wait()


def _raylet(root: int) -> int:
    due = time.monotonic() + UP_S
    while time.monotonic() < due:
        for process in psutil.Process(root).children(recursive=True):
            if process.name() == "raylet":
                time.sleep(2.0)
                found: int = process.pid
                return found
        time.sleep(0.1)
    raise RuntimeError("the node has no raylet")


@contextmanager
def spaced(folder: Path, shapes: Sequence[Shape]) -> Iterator[Spaced]:
    """A cluster in network namespaces that lives for the block."""
    with bridge(len(shapes) - 1) as names:
        cluster = Spaced(folder)
        try:
            for shape, name in zip(shapes, ["", *names], strict=True):
                cluster.add(shape, name)
            yield cluster
        finally:
            for process in reversed(cluster.nodes):
                if process.poll() is None:
                    kill_tree(process.pid)
                process.wait()


@contextmanager
def bridge(spaces: int) -> Iterator[list[str]]:
    """A bridge and so many network namespaces on it: their names. This machine's own address on it is NET.1."""
    names = [f"streamcl-{number}" for number in range(spaces)]
    _take_down(names)  # of a run that was killed
    try:
        sh(f"ip link add {BRIDGE} type bridge")
        sh(f"ip addr add {NET}.1/24 dev {BRIDGE}")
        sh(f"ip link set {BRIDGE} up")
        for number, name in enumerate(names):
            sh(f"ip netns add {name}")
            sh(f"ip link add scl-v{number} type veth peer name eth0 netns {name}")
            sh(f"ip link set scl-v{number} master {BRIDGE} up")
            sh(f"ip -n {name} addr add {NET}.{number + 2}/24 dev eth0")
            sh(f"ip -n {name} link set eth0 up")
            sh(f"ip -n {name} link set lo up")
        yield names
    finally:
        _take_down(names)


def _take_down(names: Sequence[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, check=False)


def sh(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)
