"""What a finished task leaves behind: groups of named tensors, sharded by parameter name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from streamcl.errors import Corrupt
from streamcl.store import sharding
from streamcl.store.tensors import Buffer, pack, unpack

FORMAT = "streamcl-task-memory-1"


@dataclass(frozen=True, eq=False)
class TaskMemory:
    """Anchors, frozen adapters, subspaces and what describes them. A value: strategies return a new one."""

    tensors: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    """Group → parameter name → tensor. Groups: "anchor", "adapter/0", "subspace/3", … A name may end in ":part"."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What JSON can hold: ranks, errors, the tasks' embeddings that tell a returning one."""

    def group(self, name: str) -> Mapping[str, torch.Tensor]:
        """One group.  Raises KeyError."""
        if name not in self.tensors:
            raise KeyError(f"task memory has no group {name!r}; it has {sorted(self.tensors)}")
        return self.tensors[name]

    def with_group(self, name: str, tensors: Mapping[str, torch.Tensor]) -> TaskMemory:
        """This memory with one group added or replaced."""
        return replace(self, tensors={**self.tensors, name: dict(tensors)})

    def without_group(self, name: str) -> TaskMemory:
        """This memory without a group, whether it has it or not."""
        return replace(self, tensors={group: some for group, some in self.tensors.items() if group != name})

    def with_meta(self, **meta: Any) -> TaskMemory:
        """This memory with entries of `meta` added or replaced."""
        return replace(self, meta={**self.meta, **meta})

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for group in self.tensors.values() for t in group.values())

    @property
    def certificate(self) -> float | None:
        """The largest error of a subspace, as a share of its rows' energy; None without subspaces."""
        tensors = (item for group in self.tensors.values() for item in group.items())
        numbers = (tensor.tolist() for name, tensor in tensors if name.endswith(":numbers"))
        return max((error / energy for _, energy, error, *_ in numbers if energy), default=None)

    def to_bytes(self) -> bytes:
        """The memory as safetensors; equal memories give equal bytes.  Raises NotFinite."""
        assert not any("|" in group for group in self.tensors)
        flat = {f"{group}|{name}": tensor for group, some in self.tensors.items() for name, tensor in some.items()}
        return pack(flat, {"format": FORMAT, "groups": sorted(self.tensors), "meta": self.meta})

    @staticmethod
    def from_bytes(data: Buffer) -> TaskMemory:
        """What `to_bytes` saw. The tensors are views of `data`: nobody may write to them.  Raises Corrupt."""
        flat, header = unpack(data)
        if not isinstance(header, dict) or header.get("format") != FORMAT or not {"groups", "meta"} <= set(header):
            raise Corrupt(f"not a task memory: {str(header)[:80]}")
        tensors: dict[str, dict[str, torch.Tensor]] = {group: {} for group in header["groups"]}
        for path, tensor in flat.items():
            group, _, name = path.partition("|")
            tensors.setdefault(group, {})[name] = tensor
        return TaskMemory(tensors, header["meta"])

    def split(self, shards: int) -> list[TaskMemory]:
        """One memory a shard; each has all groups, the parameters that it owns, and the whole `meta`."""
        parts = {group: sharding.split(tensors, shards) for group, tensors in self.tensors.items()}
        return [TaskMemory({group: parts[group][i] for group in parts}, self.meta) for i in range(shards)]

    @staticmethod
    def join(parts: Sequence[TaskMemory]) -> TaskMemory:
        """The whole of what `split` gave, for any number of shards; names in order."""
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        for part in parts:
            for group, some in part.tensors.items():
                tensors.setdefault(group, {}).update(some)
        ordered = {group: dict(sorted(some.items())) for group, some in tensors.items()}
        return TaskMemory(ordered, {name: value for part in parts for name, value in part.meta.items()})
