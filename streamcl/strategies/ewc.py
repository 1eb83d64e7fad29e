"""EWC, Elastic Weight Consolidation (arXiv:1612.00796), in its online form (arXiv:1805.06370).

    L = CE + λ/2 Σ_k F_k (θ_k − θ*_k)²

θ*: the adapter at the end of the last task; F: the sum over all windows up to there of the diagonal empirical Fisher
information as each left it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamcl.errors import ConfigError
from streamcl.store.memory import TaskMemory
from streamcl.strategies.base import Params, Probe, Stage, Strategy, Terms

ANCHOR, FISHER, OPEN = "anchor", "fisher", "fisher/open"


@dataclass(frozen=True)
class EWC(Strategy):
    """Holds what mattered to old tasks near its old value.  Kirkpatrick et al., arXiv:1612.00796."""

    strength: float = 0.3
    """λ, at least 0."""
    unit: bool = True
    """F scaled to a mean of 1, so that λ carries over between models; False takes it as it is, as in the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strength < 0:
            raise ConfigError(f"strategy.strength {self.strength}: at least 0")

    def prepare(self, stage: Stage, params: Params, memory: TaskMemory, probe: Probe) -> tuple[Params, Params] | None:
        if FISHER not in memory.tensors:
            return None
        fisher, anchor = ({n: memory.group(group)[n].to(p) for n, p in params.items()} for group in (FISHER, ANCHOR))
        size = torch.cat([value.flatten() for value in fisher.values()]).mean().clamp(min=1e-30)
        return anchor, {name: f / size if self.unit else f for name, f in fisher.items()}

    def penalty(self, params: Params, plan: tuple[Params, Params] | None) -> Terms:
        if plan is None:
            return {}
        anchor, fisher = plan
        parts = [(fisher[n] * (p - anchor[n]).square()).sum() for n, p in params.items()]
        return {"ewc": 0.5 * self.strength * torch.stack(parts).sum()}

    def consolidate(
        self, params: Params, memory: TaskMemory, probe: Probe, plan: Any, *, closes_task: bool
    ) -> TaskMemory:
        seen = probe.squared_gradient(params)
        if not closes_task:
            return memory.with_group(OPEN, _sum(seen, memory.tensors.get(OPEN, {})))
        fisher = _sum(_sum(seen, memory.tensors.get(OPEN, {})), memory.tensors.get(FISHER, {}))
        return memory.without_group(OPEN).with_group(ANCHOR, params).with_group(FISHER, fisher)


def _sum(new: Params, before: Mapping[str, Tensor]) -> Params:
    return {name: value.cpu() + before.get(name, 0.0) for name, value in new.items()}
