"""The strategy contract: how an update spares old tasks.

A training step has three quantities, and a strategy may touch each: the loss (`penalty`), the gradient (`guide`), the
update (`project`). The defaults touch nothing: the base class is plain fine-tuning.

A strategy is a frozen dataclass of hyper-parameters. It sees dicts of tensors, never the model, the trainer or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from streamcl.errors import ConfigError
from streamcl.store.memory import TaskMemory

Params = dict[str, Tensor]
"""Adapter tensors by name."""


Terms = dict[str, Tensor]
"""Scalars that are added to the loss, by name."""


@dataclass(frozen=True)
class Stage:
    """One pass over part of a window."""

    start: float = 0.0
    stop: float = 1.0
    """Which share of the shuffled window it trains on: from `start` to `stop`, both in [0, 1]."""
    old_adapters: bool = True
    """Whether the finished tasks' frozen adapters (`Strategy.frozen`) take part in the forward pass. Without them
    replay rows are left out too: the new adapter would learn the old tasks a second time."""


class Probe(Protocol):
    """What a strategy may ask about data. In a test a quadratic plays it."""

    def gradient(self, params: Params, extra: Params | None = None) -> Params:
        """Mean gradient of the current window's loss at `params`, with `extra` frozen in the forward pass."""

    def replay_gradient(self, params: Params) -> Params | None:
        """Mean gradient of the loss on the replay draw at `params`; None without replay."""

    def squared_gradient(self, params: Params, extra: Params | None = None) -> Params:
        """Mean over samples of the squared gradient: the diagonal of the empirical Fisher information."""

    def weight_gradient(self, extra: Params) -> Params:
        """Mean gradient [O, I] with respect to the adapted weights at base + `extra`, by the name of the layer's A."""

    def moments(self) -> Params:
        """HᵀH [d, d], float64, by parameter [..., d]; H [n, d]: what of the window's data meets the rows of each.

        {} without data, and for parameters that meet none in a space of their own, as LoRA's.
        """

    def prior(self) -> Params:
        """The same of what the base saw in pre-training, for the parameters where that is known."""


@dataclass(frozen=True)
class Strategy:
    """Plain fine-tuning, and the contract of every other strategy. Tensors in arguments are never changed in place."""

    adapter: ClassVar[Literal["lora", "prompts"]] = "lora"
    """What is trained: the section of `model` that says its form."""
    projects: ClassVar[bool] = False
    """True when `project` does something: the step then remembers the parameters before each update."""

    replay_rows: int = 0
    """Rows of earlier tasks, drawn from the reservoir, that are mixed into each window; 0 draws none."""
    replay_share: float = 0.0
    """Least share, in [0, 1), of what a window is trained on that is replay: the drawn rows are repeated until they are
    so many. 0 takes each once."""

    def __post_init__(self) -> None:
        if not 0 <= self.replay_share < 1:
            raise ConfigError(f"strategy.replay_share {self.replay_share}: a share in [0, 1)")

    def begin(self, served: Params, fresh: Params, memory: TaskMemory) -> Params:
        """What a window's training starts from: here the adapter of the version before it.

        `fresh`: an untrained adapter, another one for each task. Before the first version it is `served` too.
        """
        return served

    def stages(self, memory: TaskMemory, *, closes_task: bool) -> tuple[Stage, ...]:
        """How a window is passed through."""
        return (Stage(),)

    def frozen(self, memory: TaskMemory) -> Params:
        """The finished tasks' adapters as one, ranks stacked: A [R, I], B [O, R]. {} when there is none."""
        return {}

    def prepare(self, stage: Stage, params: Params, memory: TaskMemory, probe: Probe) -> Any:
        """Called once before each stage. What it returns is the `plan` of the calls below."""
        return None

    def penalty(self, params: Params, plan: Any) -> Terms:
        """What is added to the loss, weighted."""
        return {}

    def guide(self, grads: Params, params: Params, plan: Any, draw: torch.Generator) -> Params:
        """The gradient to follow. Called after all-reduce and before clipping.

        `draw` is seeded by the window and the step, so a random choice is the same on every worker.
        """
        return grads

    def project(self, update: Params, plan: Any) -> Params:
        """The part of the optimizer's finished update (momentum, scaling and decay included) that is kept.

        A parameter that is left out keeps its whole update.
        """
        return update

    def leak(self, update: Params, plan: Any) -> float:
        """‖UᵀΔ‖ / ‖Δ‖: the share of an update Δ that lies in the protected space. 0.0 where nothing is protected."""
        return 0.0

    def served(self, params: Params, memory: TaskMemory, *, closes_task: bool) -> Params:
        """The adapter to publish after a window; `memory` is what it was before the window."""
        return params

    def consolidate(
        self, params: Params, memory: TaskMemory, probe: Probe, plan: Any, *, closes_task: bool
    ) -> TaskMemory:
        """What a trained window leaves for those to come; `plan` is its last stage's, None for an empty window."""
        return memory
