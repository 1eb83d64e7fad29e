"""O-LoRA (arXiv:2310.14152): a new adapter a task whose input directions are orthogonal to the old ones'.

L = CE + λ Σ_{j<t} Σ |A_t A_jᵀ|,   forward: W0 + Σ_{j<t} θ_j (frozen) + θ_t
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from streamcl.store.memory import TaskMemory
from streamcl.strategies.base import Params, Probe, Stage, Terms
from streamcl.strategies.stacked import OPEN, Stacked


@dataclass(frozen=True)
class OLoRA(Stacked):
    """Keeps the rows of each new A orthogonal to those of the old ones.  Wang et al., arXiv:2310.14152."""

    orth: float = 0.01
    """λ, of the sum of absolute values over all layers, at least 0."""

    def begin(self, served: Params, fresh: Params, memory: TaskMemory) -> Params:
        return dict(memory.tensors.get(OPEN) or fresh)

    def prepare(self, stage: Stage, params: Params, memory: TaskMemory, probe: Probe) -> Any:
        old = self.frozen(memory)
        return {name: old[name].to(value) for name, value in params.items() if "lora_A" in name and name in old}

    def penalty(self, params: Params, plan: Params) -> Terms:
        parts = [(params[name] @ old.T).abs().sum() for name, old in plan.items()]
        return {"orth": self.orth * torch.stack(parts).sum()} if parts else {}
