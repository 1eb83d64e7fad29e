"""What strategies share that keep one adapter a task: old ones are frozen, the newest is trained, the sum is served.

State between tasks: the group "adapter/i" of every finished task i, and "last", from which the next one starts. While a
task goes on over several windows, "open" is its adapter so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from streamcl.errors import ConfigError
from streamcl.store.budget import keep_adapters, pairs_of, recompress
from streamcl.store.memory import TaskMemory
from streamcl.strategies.base import Params, Probe, Strategy

LAST, OPEN = "last", "open"


@dataclass(frozen=True)
class Stacked(Strategy):
    """One adapter a task."""

    served_rank: int = 64
    """Largest rank of what is published: the sum of all adapters, or what is nearest to it."""
    memory_rank: int = 512
    """Largest total rank of the adapters kept; beyond it the oldest two become one."""
    memory_error: float = 0.02
    """Relative error at which two merged adapters need no more rank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.served_rank, self.memory_rank) < 1:
            raise ConfigError(f"served_rank {self.served_rank}, memory_rank {self.memory_rank}: each is at least 1")

    def begin(self, served: Params, fresh: Params, memory: TaskMemory) -> Params:
        return dict(memory.tensors.get(OPEN) or memory.tensors.get(LAST) or fresh)

    def frozen(self, memory: TaskMemory) -> Params:
        return stacked([dict(memory.group(group)) for group in adapters(memory)])

    def served(self, params: Params, memory: TaskMemory, *, closes_task: bool) -> Params:
        if not adapters(memory):
            return params
        return within(stacked([self.frozen(memory), params]), self.served_rank)

    def consolidate(
        self, params: Params, memory: TaskMemory, probe: Probe, plan: Any, *, closes_task: bool
    ) -> TaskMemory:
        memory = memory.without_group(OPEN)
        if not closes_task:
            return memory.with_group(OPEN, params)
        number = 1 + max((int(group.partition("/")[2]) for group in adapters(memory)), default=-1)
        memory = memory.with_group(f"adapter/{number}", params)
        return keep_adapters(memory, rank=self.memory_rank, error=self.memory_error)


def adapters(memory: TaskMemory) -> list[str]:
    """The groups of finished tasks' adapters, oldest first."""
    groups = [group for group in memory.tensors if group.startswith("adapter/")]
    return sorted(groups, key=lambda group: int(group.partition("/")[2]))


def stacked(parts: list[Params]) -> Params:
    """Adapters as one whose update is the sum of theirs: A [R, I] and B [O, R] with the ranks stacked."""
    names = parts[0] if parts else {}
    return {name: torch.cat([part[name] for part in parts], dim=0 if "lora_A" in name else 1) for name in names}


def within(params: Params, rank: int) -> Params:
    """The adapter of at most `rank` whose update is nearest to that of `params`, which may be `params` itself.

    All layers get the same rank, filled up with zeros where a layer has less.
    """
    ranks = {len(a_RI) for a_RI, _ in pairs_of(params).values()}
    size = min(rank, max(ranks))
    if ranks == {size}:
        return params
    kept: Params = {}
    for name, (a_RI, b_OR) in pairs_of(params).items():
        if len(a_RI) > size:
            a_RI, b_OR, _ = recompress([(a_RI, b_OR)], size)
        missing = size - len(a_RI)
        kept[name] = torch.cat([a_RI, a_RI.new_zeros(missing, a_RI.shape[1])])
        kept[name.replace("lora_A", "lora_B")] = torch.cat([b_OR, b_OR.new_zeros(len(b_OR), missing)], 1)
    return kept
