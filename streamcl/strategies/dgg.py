"""DGG, Dynamic Gradient Guidance (arXiv:2511.15164, CVPR 2026).

Forgetting is the missing gradient of the old tasks. It is approximated by the vector from the old optimum:

    d = θ − θ*                        θ*: the adapter at the end of the previous task, one anchor
    ĝ = d · min(1, ‖g‖ / ‖d‖)         never longer than the current gradient
    G = g + b · ĝ,  b ~ Bernoulli(α)  one draw a step;  g on the window and the replay draw, concatenated

One adapter is trained through all tasks; the first task is not guided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from streamcl.errors import ConfigError
from streamcl.store.memory import TaskMemory
from streamcl.strategies.base import Params, Probe, Stage, Strategy

ANCHOR = "anchor"


@dataclass(frozen=True)
class DGG(Strategy):
    """Guides each gradient away from leaving the old optimum.  arXiv:2511.15164."""

    alpha: float = 0.1
    """Probability α of guiding a step, in [0, 1]. 0 is plain training, bit for bit; 1 drops the Bernoulli draw."""
    norm_scope: Literal["tensor", "global"] = "tensor"
    """Over what the norms are taken. RECONSTRUCTED: the paper's notation does not say."""
    scaled: bool = True
    """False adds `d` as it is, without min(1, ‖g‖/‖d‖): the paper's ablation."""
    replay_rows: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"strategy.alpha {self.alpha}: a probability in [0, 1]")

    def prepare(self, stage: Stage, params: Params, memory: TaskMemory, probe: Probe) -> Params | None:
        anchor = memory.tensors.get(ANCHOR)
        return {name: anchor[name].to(value) for name, value in params.items()} if anchor else None

    def guide(self, grads: Params, params: Params, plan: Params | None, draw: torch.Generator) -> Params:
        if plan is None or torch.rand((), generator=draw).item() >= self.alpha:
            return grads
        g = [*grads.values()]
        d = torch._foreach_sub([params[name].detach() for name in grads], [plan[name] for name in grads])
        guided = torch._foreach_addcmul(g, d, self._scale(g, [*d])) if self.scaled else torch._foreach_add(g, d)
        return dict(zip(grads, guided, strict=True))

    def consolidate(
        self, params: Params, memory: TaskMemory, probe: Probe, plan: Any, *, closes_task: bool
    ) -> TaskMemory:
        if not closes_task:
            return memory
        return memory.with_group(ANCHOR, {name: value.detach().clone() for name, value in params.items()})

    def _scale(self, grads: list[Tensor], offset: list[Tensor]) -> tuple[Tensor, ...]:
        """min(1, ‖g‖/‖d‖) for each tensor; 0 where `d` is zero."""
        g, d = (torch.stack(torch._foreach_norm(part)) for part in (grads, offset))
        if self.norm_scope == "global":
            g, d = g.norm().expand_as(g), d.norm().expand_as(d)
        return torch.where(d > 0, (g / d).clamp(max=1.0), 0.0).unbind()
