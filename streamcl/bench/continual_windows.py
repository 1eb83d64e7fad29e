"""HiFGO's stages elsewhere in a task of several windows: the forms that its own was measured against."""

from __future__ import annotations

from dataclasses import dataclass

from streamcl.store.memory import TaskMemory
from streamcl.strategies import HiFGO, Params, Stage
from streamcl.strategies.stacked import OPEN, adapters, within


@dataclass(frozen=True)
class InEveryWindow(HiFGO):
    """Both stages in every window: the next one's stage 1 goes on, without the old adapters, from a stage 2."""

    def stages(self, memory: TaskMemory, *, closes_task: bool) -> tuple[Stage, ...]:
        return super().stages(memory.without_group(OPEN), closes_task=True)


@dataclass(frozen=True)
class AtTheEnd(HiFGO):
    """All windows of a task but its last are stage 1, and serve the old adapters alone; the last is stage 2."""

    def stages(self, memory: TaskMemory, *, closes_task: bool) -> tuple[Stage, ...]:
        return (Stage(old_adapters=closes_task or not adapters(memory)),)

    def served(self, params: Params, memory: TaskMemory, *, closes_task: bool) -> Params:
        if closes_task or not adapters(memory):
            return super().served(params, memory, closes_task=closes_task)
        return within(self.frozen(memory), self.served_rank)
