"""A thousand tasks with the layer shapes of a 7B model, on disk: what a snapshot costs, and reading it for a window."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from streamcl.store.budget import keep_adapters, merge_bases
from streamcl.store.memory import TaskMemory
from streamcl.store.sharding import shards_of

LAYERS = 32
SHAPES = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (4096, 11008),
    "mlp.up_proj": (4096, 11008),
    "mlp.down_proj": (11008, 4096),
}
"""Inputs and outputs of each linear layer of LLaMA-7B."""
BASES = {"self_attn": 4096, "self_attn.o_proj": 4096, "mlp": 4096, "mlp.down_proj": 11008}
"""Inputs that layers share."""
RANK, RANK_BUDGET = 2, 8
DIRECTIONS, DIRECTIONS_BUDGET = 1, 4
SHARDS = 2


@dataclass
class Disk:
    """Shards of groups as files named by their sha256 (mutates). Groups that did not change are not written again."""

    root: Path
    memory: TaskMemory = field(default_factory=TaskMemory)
    files: dict[str, list[Path]] = field(default_factory=dict)

    def snapshot(self, memory: TaskMemory) -> None:
        """Write what changed, synced, then drop what no group names any more."""
        old, self.files = self.files, {}
        for group, tensors in memory.tensors.items():
            if tensors is self.memory.tensors.get(group):
                self.files[group] = old[group]
            else:
                parts = TaskMemory({group: tensors}, memory.meta).split(SHARDS)
                self.files[group] = [self._write(part.to_bytes()) for part in parts]
        self.memory = memory
        named = {path for paths in self.files.values() for path in paths}
        for path in {path for paths in old.values() for path in paths} - named:
            path.unlink()

    def read(self) -> TaskMemory:
        """The whole memory, every file's sha256 checked."""
        parts = []
        for path in (path for paths in self.files.values() for path in paths):
            data = path.read_bytes()
            assert hashlib.sha256(data).hexdigest() == path.stem
            parts.append(TaskMemory.from_bytes(data))
        return TaskMemory.join(parts)

    @property
    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.root.iterdir())

    def _write(self, data: bytes) -> Path:
        path = self.root / f"{hashlib.sha256(data).hexdigest()}.safetensors"
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return path


def simulate(root: Path, *, tasks: int, budget: bool, every: int, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each task: seconds to consolidate and to snapshot; each `every` tasks also to read; bytes on disk."""
    chance = torch.Generator().manual_seed(seed)
    disk, memory, rows = Disk(root), TaskMemory(), []
    for task in range(tasks):
        memory, consolidate_s = _timed(lambda m=memory, t=task: _finish(m, t, chance, budget=budget))
        _, snapshot_s = _timed(lambda m=memory: disk.snapshot(m))
        row = {"task": task + 1, "consolidate_s": consolidate_s, "snapshot_s": snapshot_s, "mb": disk.nbytes / 2**20}
        if (task + 1) % every == 0:
            read, row["read_s"] = _timed(disk.read)
            assert read.nbytes == memory.nbytes
        if merged := memory.meta.get("merged"):
            row |= {"merged_adapters": merged["adapters"], "merged_error": merged["error"]}
        rows.append(row)
    return rows


def moved_keys() -> dict[str, Any]:
    """What a change from 2 to 5 shards moves: parameters of the 7B shapes and ids; and that nothing is lost."""
    names = [name for layer in range(LAYERS) for name in _adapter_names(layer)]
    ids = [f"source/part-0/{i:012d}" for i in range(100_000)]
    tiny = TaskMemory({"anchor": {name: torch.full((3,), float(i)) for i, name in enumerate(names)}})
    again = TaskMemory.join(TaskMemory.join(tiny.split(2)).split(5))
    return {
        "parameters": len(names),
        "parameters_moved": float((shards_of(names, 2) != shards_of(names, 5)).mean()),
        "ids": len(ids),
        "ids_moved": float((shards_of(ids, 2) != shards_of(ids, 5)).mean()),
        "nothing_lost": again.to_bytes() == tiny.to_bytes(),
    }


def _finish(memory: TaskMemory, task: int, chance: torch.Generator, *, budget: bool) -> TaskMemory:
    """What a strategy's `consolidate` does, with random data in place of training."""
    memory = memory.with_group(f"adapter/{task}", dict(_adapter(chance)))
    fresh = dict(_bases(chance))
    if not budget:
        return memory.with_group(f"subspace/{task}", fresh)
    if "subspace" in memory.tensors:
        old = memory.group("subspace")
        fresh = {name: merge_bases([old[name], basis], DIRECTIONS_BUDGET)[0] for name, basis in fresh.items()}
    return keep_adapters(memory.with_group("subspace", fresh), rank=RANK_BUDGET, error=0.05)


def _adapter(chance: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    for layer in range(LAYERS):
        for (inputs, outputs), name in zip(SHAPES.values(), _adapter_names(layer)[::2], strict=True):
            a, b = torch.randn(RANK, inputs, generator=chance), torch.randn(outputs, RANK, generator=chance)
            yield name, a.to(torch.bfloat16)
            yield name.replace("lora_A", "lora_B"), b.to(torch.bfloat16)


def _adapter_names(layer: int) -> list[str]:
    return [f"model.layers.{layer}.{linear}.lora_{ab}.weight" for linear in SHAPES for ab in "AB"]


def _bases(chance: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    for layer in range(LAYERS):
        for name, inputs in BASES.items():
            random_DK = torch.randn(inputs, DIRECTIONS, generator=chance)
            yield f"model.layers.{layer}.{name}", torch.linalg.qr(random_DK).Q


def _timed(call: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return call(), time.perf_counter() - start
