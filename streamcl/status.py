"""What the log of a run's store says of it. Nothing needs to run for that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from streamcl.config import load
from streamcl.learner import resolve
from streamcl.registry.log import Log
from streamcl.registry.record import OUTCOMES
from streamcl.registry.stores import open_store
from streamcl.registry.versions import Registry
from streamcl.report import passed, versions_of
from streamcl.store import snapshot
from streamcl.store.memory import TaskMemory
from streamcl.stream import from_jsonl
from streamcl.types import DeadLetter, Ref


def status_of(file: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Positions, counters, tasks, versions and shards of a run, as JSON values.  Raises ConfigError, Corrupt.

    `unaccounted`: samples read that are in none of the other counters. Always 0, or a record would be refused.
    """
    config = resolve(load(file, overrides))
    log = Log(open_store(config.store.path))
    head = log.head()
    state = head.state if head else {}
    live = Registry(log, config.name).resolve("live")
    refs, counters = state.get("refs", {}), state.get("counters", {})
    learner = json.loads(log.get_object(refs["learner"])) if "learner" in refs else {}
    return {
        "store": config.store.path,
        "commits": head.n if head else 0,
        "epoch": head.epoch if head else 0,
        "live": live.number if live else None,
        "positions": state.get("sources", {}),
        "counters": counters,
        "unaccounted": counters.get("in", 0) - sum(counters.get(fate, 0) for fate in OUTCOMES),
        "watermark": state.get("watermark"),
        "training": state.get("training"),
        "tasks": learner.get("tasks", []),
        "versions": [_version(found) for found in versions_of(log)],
        "shards": shards(log, refs),
    }


def _version(made: Mapping[str, Any]) -> dict[str, Any]:
    """What the list of versions says of one; `refused`: why the gate did not let it answer, empty if it did."""
    refused = "" if passed(made) else made["extra"]["gate"]["why"]
    return {**{name: made[name] for name in ("number", "digest", "task", "window", "scores")}, "refused": refused}


def letters_of(file: str, overrides: Sequence[str]) -> tuple[list[DeadLetter], int]:
    """The dead letters that a run keeps, oldest first, and how many gave way.  Raises ConfigError, Corrupt."""
    log = Log(open_store(resolve(load(file, overrides)).store.path))
    head = log.head()
    ref = head.state.get("refs", {}).get("dead") if head else None
    if head is None or ref is None:
        return [], 0
    return from_jsonl(log.get_object(ref)), head.state["dropped"]


def shards(log: Log, refs: Mapping[str, Ref]) -> list[dict[str, Any]]:
    """For each shard: bytes and rows of its reservoir, bytes and tensors of its memory, and its worst certificate."""
    found: dict[int, dict[str, Any]] = {}
    for name, ref in sorted(refs.items()):
        kind, _, shard = name.partition("/")
        if kind not in ("replay", "memory"):
            continue
        data = log.get_object(ref)
        told = _replay(data) if kind == "replay" else _memory(data)
        found.setdefault(int(shard), {"shard": int(shard)}).update({f"{kind}_bytes": len(data), **told})
    return [found[shard] for shard in sorted(found)]


def _replay(data: bytes) -> dict[str, Any]:
    _, parts = snapshot.unpack(data)
    return {
        "replay_rows": sum(len(part.rows) for part in parts if not part.held),
        "heldout_rows": sum(len(part.rows) for part in parts if part.held),
    }


def _memory(data: bytes) -> dict[str, Any]:
    memory = TaskMemory.from_bytes(data)
    return {
        "memory_tensors": sum(map(len, memory.tensors.values())),
        "memory_groups": sorted(memory.tensors),
        "certificate": memory.certificate,
    }
