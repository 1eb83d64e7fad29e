"""What would fail on this machine or cluster, before it does. Each check is a function of what was found out."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from streamcl.cluster import runtime, survey
from streamcl.cluster.survey import Node
from streamcl.errors import StreamclError
from streamcl.learner import resolve
from streamcl.registry.backends import probe
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.registry.versions import Registry
from streamcl.sections import Config

Level = Literal["ok", "warn", "fail"]
SAME = ("python", "ray", "streamcl")
"""What must be the same on every node, or Ray does not work; of other packages other versions are only suspicious."""
SHM_LEAST, SHM_GOOD = 128 * 2**20, 2 * 2**30
FILES_LEAST, FILES_GOOD = 4096, 65_536
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Finding:
    """What one check found out, and what to do about it."""

    check: str
    level: Level
    what: str
    todo: str = ""


@dataclass(frozen=True)
class Seen:
    """What was found out once, for all checks."""

    nodes: Sequence[Node]
    dashboard: str = ""
    """host:port of the dashboard of the cluster that was joined; empty without one."""
    auth: str = ""
    """RAY_AUTH_MODE."""
    parameters: int | None = None
    """How many the base model has; None if its files are not here."""
    trained_on: str = ""
    """Digest of the base that the store's live version was trained on; empty before there is one."""
    joined: bool = False
    """Whether a cluster was joined, and not only this machine looked at."""


def examine(config: Config) -> list[Finding]:
    """Every check. Starts nothing, joins the cluster if there is one, leaves nothing in the store."""
    config = resolve(config)
    found = [ports(config), source(config), store(config)]
    if any(one.check == "store" and one.level == "fail" for one in found):
        return found
    seen = look_around(config)
    return found + [check(config, seen) for check in CHECKS]


def look_around(config: Config) -> Seen:
    """This machine, or every node of the cluster that `ray.address` or RAY_ADDRESS names."""
    where = open_store(config.store.path)
    mark = where.put_unique("probe", b"doctor", "mark")
    asked = (config.store.path, mark, config.model.path)
    live = Registry(Log(where), config.name).resolve("live")
    trained_on = live.base_digest if live else ""
    parameters, auth = count_parameters(config.model.path), os.environ.get("RAY_AUTH_MODE", "")
    try:
        if not cluster(config):
            return Seen([survey.look(*asked)], "", auth, parameters, trained_on)
        runtime.start_ray(config)
        try:
            return Seen(survey.survey(*asked), survey.dashboard(), auth, parameters, trained_on, joined=True)
        finally:
            runtime.stop_ray()
    finally:
        where.delete(mark)


def cluster(config: Config) -> str:
    """The address of the cluster to join; empty for a Ray of this machine alone."""
    return config.ray.address or os.environ.get("RAY_ADDRESS", "")


def ports(config: Config) -> Finding:
    """Whether the endpoint's port is free on this machine."""
    host, port = config.serve.host, config.serve.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            level: Level = "warn" if cluster(config) else "fail"  # on a cluster it may be this run's endpoint, going on
            todo = "stop what listens there, or set serve.port"
            return Finding("ports", level, f"{host}:{port} cannot be used: {error.strerror}", todo)
    return Finding("ports", "ok", f"{host}:{port} is free")


def source(config: Config) -> Finding:
    """Whether the source can be reached and has something."""
    try:
        found = config.source.partitions()
    except StreamclError as error:
        return Finding("source", "fail", str(error), "mend what the message names, then run the doctor again")
    if not found:
        return Finding("source", "warn", "no partition yet", "nothing is learned until samples arrive")
    return Finding("source", "ok", f"{len(found)} partitions, such as {found[0]!r}")


def store(config: Config) -> Finding:
    """Whether the store keeps its promise to two writers."""
    try:
        probe(open_store(config.store.path))
    except (StreamclError, OSError, ImportError) as error:
        return Finding("store", "fail", f"{config.store.path}: {error}", "see store.path, its rights and credentials")
    return Finding("store", "ok", f"{config.store.path} lets only one of two writers win")


def auth(config: Config, seen: Seen) -> Finding:
    """Whether others than this machine reach a dashboard that runs whatever it is given."""
    host = seen.dashboard.rpartition(":")[0]
    if not host or _loopback(host):
        return Finding("auth", "ok", "no dashboard that others reach")
    if seen.auth == "token":
        return Finding("auth", "ok", f"dashboard {seen.dashboard} asks for a token")
    what = f"dashboard {seen.dashboard} is open: who reaches it runs code here (RAY_AUTH_MODE={seen.auth or 'unset'})"
    return Finding("auth", "fail", what, "set RAY_AUTH_MODE=token on every node, or --dashboard-host=127.0.0.1")


def versions(config: Config, seen: Seen) -> Finding:
    """Whether the nodes have the same Python, Ray, torch, streamcl …"""
    different = {
        name: sorted({node.versions.get(name, "missing") for node in seen.nodes}) for name in seen.nodes[0].versions
    }
    different = {name: found for name, found in different.items() if len(found) > 1}
    if not different:
        return Finding("versions", "ok", f"{len(seen.nodes)} nodes alike: " + _listed(seen.nodes[0].versions))
    what = "; ".join(f"{name}: {', '.join(found)}" for name, found in different.items())
    level: Level = "fail" if set(different) & set(SAME) else "warn"
    return Finding("versions", level, f"nodes differ in {what}", "use one image, or one lock file, on all nodes")


def shared_memory(config: Config, seen: Seen) -> Finding:
    """Whether Ray has room for objects in memory; without, it uses files."""
    least = min(seen.nodes, key=lambda node: node.shm)
    what = f"/dev/shm of {least.name} has {_size(least.shm)}"
    if least.shm >= SHM_GOOD:
        return Finding("shm", "ok", what)
    level: Level = "warn" if least.shm >= SHM_LEAST else "fail"
    return Finding("shm", level, what, f"docker run --shm-size, or a Memory volume; {_size(SHM_GOOD)} or more")


def open_files(config: Config, seen: Seen) -> Finding:
    """Whether a process may open enough files: Ray holds a socket for each worker, a reader a file a partition."""
    least = min(seen.nodes, key=lambda node: node.files)
    what = f"{least.name} lets a process open {least.files:,} files"
    if least.files >= FILES_GOOD:
        return Finding("files", "ok", what)
    level: Level = "warn" if least.files >= FILES_LEAST else "fail"
    return Finding("files", level, what, f"raise the hard limit (ulimit -Hn, LimitNOFILE) to {FILES_GOOD:,}")


def store_everywhere(config: Config, seen: Seen) -> Finding:
    """Whether every node reads what was just written to the store."""
    blind = [f"{node.name}: {node.store}" for node in seen.nodes if node.store]
    if not blind:
        return Finding("store on nodes", "ok", f"{len(seen.nodes)} nodes read it")
    return Finding(
        "store on nodes", "fail", "; ".join(blind), "mount the same folder on all nodes, or use s3:// or gs://"
    )


def model(config: Config, seen: Seen) -> Finding:
    """Whether the base model is everywhere, the same, and the one that the store's versions were trained on."""
    path, found = config.model.path, {node.model for node in seen.nodes}
    if found == {""}:
        if Path(path).is_absolute() or path.startswith("."):
            return Finding("model", "fail", f"{path} is no folder on any node", "give a folder or a hub id")
        return Finding("model", "warn", f"{path} is a hub id: not looked at", "have it cached on every node")
    if len(found) > 1:
        where = "; ".join(f"{node.name}: {node.model[:12] or 'missing'}" for node in seen.nodes)
        return Finding("model", "fail", f"{path} differs: {where}", "put the same files on every node")
    digest = found.pop()
    if seen.trained_on not in ("", digest):
        what = f"{path} is base {digest[:12]}, the live version was trained on {seen.trained_on[:12]}"
        return Finding("model", "fail", what, "give the model that the run began with, or a new store.path")
    return Finding("model", "ok", f"{path} is base {digest[:12]}")


def memory(config: Config, seen: Seen) -> Finding:
    """Whether the weights fit: once in each training worker and replica."""
    if seen.parameters is None:
        return Finding("memory", "warn", "the model's files are not here: its size is unknown", "look at it yourself")
    weights = seen.parameters * BYTES[config.model.dtype]
    workers = config.train.workers
    least, most = (workers, workers) if isinstance(workers, int) else workers
    what = f"{seen.parameters / 1e6:,.0f} M parameters, {_size(weights)} as {config.model.dtype}"
    if not config.train.use_gpu:
        need = weights * (most + config.serve.replicas + 1)  # and the reader's
        have = sum(node.memory for node in seen.nodes)
        level: Level = "ok" if need < have / 2 else "warn" if need < have else "fail"
        todo = "" if level == "ok" else "fewer workers or replicas, model.dtype=bfloat16, or more nodes"
        return Finding("memory", level, f"{what}; {_size(need)} in all processes, {_size(have)} there are", todo)
    gpus = sorted((size for node in seen.nodes for size in node.gpus), reverse=True)
    if len(gpus) < least:
        what = f"train.workers is {workers}, and there are {len(gpus)} GPUs"
        return Finding("memory", "fail", what, "fewer train.workers, or train.use_gpu=false")
    smallest = gpus[least - 1]
    weights //= least if config.train.shard else 1
    level = "ok" if 2 * weights < smallest else "warn" if weights < smallest else "fail"
    todo = "" if level == "ok" else "model.dtype=bfloat16, a smaller train.batch_size, or a larger GPU"
    return Finding("memory", level, f"{what}; the smallest GPU in use has {_size(smallest)}", todo)


CHECKS: tuple[Callable[[Config, Seen], Finding], ...] = (
    auth,
    versions,
    shared_memory,
    open_files,
    store_everywhere,
    model,
    memory,
)


def count_parameters(path: str) -> int | None:
    """How many numbers a model folder's safetensors hold, by their headers; None without any."""
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    return sum(sum(_shapes(file)) for file in files) if files else None


def _shapes(file: Path) -> Iterator[int]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for side in tensor["shape"]:
                count *= side
            yield count


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
