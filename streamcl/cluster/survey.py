"""What a machine has, as seen from itself: asked here, or of every node of a running Ray."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from streamcl.errors import StreamclError
from streamcl.registry.stores import open_store
from streamcl.train.model import base_digest

PACKAGES = ("ray", "torch", "transformers", "peft", "pyarrow", "streamcl")
SHM = "/dev/shm"


@dataclass(frozen=True)
class Node:
    """One machine."""

    name: str
    versions: Mapping[str, str]
    """Of python and PACKAGES."""
    cpus: float
    memory: int
    """Bytes of RAM that the machine has."""
    shm: int
    """Bytes of shared memory: where Ray keeps objects."""
    files: int
    """How many files a process may open (the hard limit, to which Ray raises its own)."""
    gpus: tuple[int, ...] = ()
    """Bytes of memory of each GPU."""
    store: str = ""
    """Why the run's store cannot be read from here; empty if it can."""
    model: str = ""
    """Digest of the base model as it lies here; empty if `model.path` is no model folder here."""


def look(store: str, mark: str, model: str) -> Node:
    """This machine. `mark`: a key that was just written to the store."""
    return Node(
        name=socket.gethostname(),
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        cpus=os.cpu_count() or 1,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        shm=shutil.disk_usage(SHM).total if os.path.isdir(SHM) else 0,
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        gpus=_gpus(),
        store=_unread(store, mark),
        model=base_digest(model) if (Path(model) / "config.json").is_file() else "",
    )


def survey(store: str, mark: str, model: str) -> list[Node]:
    """Every node of the Ray that was joined."""
    remote = ray.remote(num_cpus=0, max_retries=0)(look)
    alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    here = [NodeAffinitySchedulingStrategy(node_id=node, soft=False) for node in alive]
    asked = [remote.options(scheduling_strategy=strategy).remote(store, mark, model) for strategy in here]
    return list(ray.get(asked, timeout=120))


def dashboard() -> str:
    """host:port of the dashboard of the Ray that was joined; empty if it has none."""
    context: Any = ray.get_runtime_context()
    return str(context.worker.node.address_info.get("webui_url") or "")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _unread(store: str, mark: str) -> str:
    try:
        return "" if open_store(store).get(mark) is not None else f"{store} has no {mark} here: another folder?"
    except (StreamclError, OSError, ImportError) as error:
        return str(error)


def _gpus() -> tuple[int, ...]:
    if not (tool := shutil.which("nvidia-smi")):
        return ()
    command = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return tuple(int(size) * 2**20 for size in told if size.isdigit())
