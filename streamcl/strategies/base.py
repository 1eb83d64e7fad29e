"""The strategy contract: how an update spares old tasks.

A training step has three quantities, and a strategy may touch each: the loss (`penalty`), the gradient (`guide`), the
update (`project`). The defaults touch nothing: the base class is plain fine-tuning.

A strategy is a frozen dataclass of hyper-parameters. It sees dicts of tensors, never the model, the trainer or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from streamcl.store.memory import TaskMemory

Params = dict[str, Tensor]
"""Adapter tensors by name."""


@dataclass(frozen=True)
class Stage:
    """One pass over part of a window."""

    share: float = 1.0
    """Share of the window's samples, in (0, 1]. Stages take consecutive shares of the shuffled window."""


class Probe(Protocol):
    """What a strategy may ask about data. In a test a quadratic plays it."""

    def gradient(self, params: Params) -> Params:
        """Mean gradient of the current window's loss at `params`."""

    def replay_gradient(self, params: Params) -> Params | None:
        """Mean gradient of the loss on the replay draw at `params`; None without replay."""


@dataclass(frozen=True)
class Strategy:
    """Plain fine-tuning, and the contract of every other strategy. Tensors in arguments are never changed in place."""

    stages: ClassVar[tuple[Stage, ...]] = (Stage(),)
    projects: ClassVar[bool] = False
    """True when `project` does something: the step then remembers the parameters before each update."""

    replay_rows: int = 0
    """Rows of earlier tasks, drawn from the reservoir, that are mixed into each window; 0 draws none."""

    def prepare(self, stage: Stage, params: Params, memory: TaskMemory, probe: Probe) -> Any:
        """Called once before each stage. What it returns is the `plan` of the calls below."""
        return None

    def penalty(self, params: Params, plan: Any) -> Tensor | None:
        """A scalar added to the loss, or None."""
        return None

    def guide(self, grads: Params, params: Params, plan: Any, draw: torch.Generator) -> Params:
        """The gradient to follow. Called after all-reduce and before clipping.

        `draw` is seeded by the window and the step, so a random choice is the same on every worker.
        """
        return grads

    def project(self, update: Params, plan: Any) -> Params:
        """The part of the optimizer's finished update (momentum, scaling and decay included) that is kept."""
        return update

    def consolidate(self, params: Params, memory: TaskMemory, probe: Probe) -> TaskMemory:
        """What the finished task leaves for the tasks to come. Called once per task, at its end."""
        return memory
