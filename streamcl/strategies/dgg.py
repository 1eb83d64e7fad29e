"""DGG, Dynamic Gradient Guidance (arXiv:2511.15164, CVPR 2026).

Forgetting is the missing gradient of the old tasks. It is approximated by the vector from the old optimum:

    d = θ − θ*                        θ*: the adapter at the end of the previous task, one anchor
    ĝ = d · min(1, ‖g‖ / ‖d‖)         never longer than the current gradient
    G = g + b · ĝ,  b ~ Bernoulli(α)  one draw a step;  g on the window and the replay draw, concatenated

One adapter is trained through all tasks; the first task is not guided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"strategy.alpha {self.alpha}: a probability in [0, 1]")

    def prepare(self, stage: Stage, params: Params, memory: TaskMemory, probe: Probe) -> Params | None:
        anchor = memory.tensors.get(ANCHOR)
        return dict(anchor) if anchor else None

    def guide(self, grads: Params, params: Params, plan: Params | None, draw: torch.Generator) -> Params:
        if plan is None or torch.rand((), generator=draw).item() >= self.alpha:
            return grads
        offset = {name: params[name].detach() - plan[name].to(params[name]) for name in grads}
        scale = self._scale(grads, offset)
        return {name: grads[name] + scale[name] * offset[name] for name in grads}

    def consolidate(self, params: Params, memory: TaskMemory, probe: Probe) -> TaskMemory:
        return memory.with_group(ANCHOR, {name: value.detach().clone() for name, value in params.items()})

    def _scale(self, grads: Params, offset: Params) -> dict[str, Tensor | float]:
        """min(1, ‖g‖/‖d‖) for each tensor; 0 where `d` is zero."""
        if not self.scaled:
            return dict.fromkeys(grads, 1.0)
        g = {name: value.norm() for name, value in grads.items()}
        d = {name: value.norm() for name, value in offset.items()}
        if self.norm_scope == "global":
            g = dict.fromkeys(grads, torch.stack([*g.values()]).norm())
            d = dict.fromkeys(grads, torch.stack([*d.values()]).norm())
        return {name: torch.where(d[name] > 0, (g[name] / d[name]).clamp(max=1.0), 0.0) for name in grads}
