"""HiFGO / Octopus (arXiv:2605.14938, CVPR 2026): history-free gradient orthogonality, one adapter a task.

To first order, adding θ_i harms task j < i by <dL_Dj/dθ'_j, θ_i>. Old data is gone, so the gradient is taken where the
old models stand, on the data at hand (GPWC). θ'_j = W0 + Σ_{m≤j} θ_m.

    L_orth  = Σ_{j<i} | <dL_Di(θ'_j)/dθ'_j, θ_i> |        Eq. 7;  dagger: only j = i−1, Eq. 8
    stage 1   L = CE,                         W0 + θ_i: the old adapters stay out                 Eq. 9
    stage 2   L = CE + λ1 L_orth + λ2 L_norm, W0 + Σ_{j<i} θ_j (frozen) + θ_i                     Eq. 10

θ_{i,1} starts from θ_{i−1,1}, θ_{i,2} from θ_{i,1}; what is served is W0 + Σ θ_{i,2}. The first task has neither old
adapters nor penalties, so its two stages are one. Of a task of many windows the first one is stage 1 as a whole, then
stage 2 in part, and the others go on in stage 2: the task is learned, and served, with each of them, and its last
window may be as short as it likes. (Stage 1 again, from what stage 2 made of the adapter, undoes a part of stage 2.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from streamcl.errors import ConfigError
from streamcl.store.budget import pairs_of
from streamcl.store.memory import TaskMemory
from streamcl.strategies.base import Params, Probe, Stage, Terms
from streamcl.strategies.closed import FORMS, Directions, end_to_end, pulls
from streamcl.strategies.stacked import LAST, OPEN, Stacked, adapters, stacked


@dataclass(frozen=True)
class Plan:
    """What a stage goes by."""

    first: Params | None = None
    """θ_{i,1}, once stage 1 is over; in a window after a task's first, what the memory has of it."""
    directions: Params | Directions | None = None
    """What the new adapter is to be orthogonal to, for J old models: its P numbers end to end, or in weight space
    [J, O, I] by the name of A. None in stage 1."""


@dataclass(frozen=True)
class HiFGO(Stacked):
    """Keeps each new adapter orthogonal to old models' gradients on the new data.  arXiv:2605.14938."""

    orth: float = 2e-2
    """λ1. The paper's value; its reduction is unknown, ours is for directions of unit length."""
    norm: float = 0.03
    """λ2, of the sum of the tensors' L2 norms (not squared). RECONSTRUCTED: the paper has 1e-2, reduction unknown."""
    stage2: float = 0.5
    """Share of a window that stage 2 trains on, in (0, 1). The paper's 0.2 is too few steps for windows of hundreds."""
    stage1_on_all: bool = False
    """True: stage 1 sees the whole window, as in the authors' scripts; False: what stage 2 does not, as in Fig. 6,
    unless the task goes on after the window."""
    chain: bool = False
    """True: stage 1 starts from θ_{i−1,1}, as in the paper, so that what it knows of old tasks is added a second time
    in stage 2 and must be unlearned there; False: from an untrained adapter."""
    two_stages: bool = True
    """False trains all of a window as stage 2: the paper's ablation."""
    dagger: bool = False
    """True looks at the newest old model only: constant cost a task."""
    to: Literal["gradients", "parameters"] = "gradients"
    """What θ_i is orthogonal to; "parameters", the old adapters themselves, is the paper's ablation."""
    form: Literal["absolute", "square", "signed"] = "absolute"
    """RECONSTRUCTED: signed, as printed, has no lower bound and rewards moving along −G."""
    space: Literal["factors", "weights"] = "factors"
    """RECONSTRUCTED: <dL/dA, A_i> + <dL/dB, B_i>, or the Taylor term itself, <dL/dW, B_i A_i>."""
    unit: bool = True
    """RECONSTRUCTED: the gradients scaled to length 1, because a raw penalty diverges."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.stage2 < 1:
            raise ConfigError(f"strategy.stage2 {self.stage2}: a share of the window, in (0, 1)")

    def begin(self, served: Params, fresh: Params, memory: TaskMemory) -> Params:
        return super().begin(served, fresh, memory) if self.chain else dict(memory.tensors.get(OPEN) or fresh)

    def stages(self, memory: TaskMemory, *, closes_task: bool) -> tuple[Stage, ...]:
        if not adapters(memory) or not self.two_stages or OPEN in memory.tensors:
            return (Stage(),)
        on_all = self.stage1_on_all or not closes_task
        return (Stage(0.0, 1.0 if on_all else 1 - self.stage2, old_adapters=False), Stage(1 - self.stage2))

    def prepare(self, stage: Stage, params: Params, memory: TaskMemory, probe: Probe) -> Plan:
        if not stage.old_adapters or not adapters(memory):
            return Plan()
        at_first = memory.tensors.get(LAST, {}) if OPEN in memory.tensors else params
        first = {name: value.detach().clone() for name, value in at_first.items()} if self.two_stages else None
        old = [{n: memory.group(group)[n].to(p) for n, p in params.items()} for group in adapters(memory)]
        newest = len(old) - 1
        each = [self._direction(old[: j + 1], probe) for j in range(newest * self.dagger, newest + 1)]
        if self._in_weights:
            return Plan(first, {name: torch.stack([direction[name] for direction in each]) for name in each[0]})
        flat = [end_to_end([direction[name] for name in params]) for direction in each]
        return Plan(first, Directions(torch.stack(flat)))

    def penalty(self, params: Params, plan: Plan) -> Terms:
        if plan.directions is None:
            return {}
        if isinstance(plan.directions, Directions):
            orth, norm = pulls(plan.directions, self.form, [*params.values()])
        else:
            orth = FORMS[self.form](_along(plan.directions, params)).sum()
            norm = torch.stack(torch._foreach_norm([*params.values()])).sum()
        return {"orth": self.orth * orth, "norm": self.norm * norm}

    def consolidate(
        self, params: Params, memory: TaskMemory, probe: Probe, plan: Plan | None, *, closes_task: bool
    ) -> TaskMemory:
        memory = super().consolidate(params, memory, probe, plan, closes_task=closes_task)
        if plan is None or not self.chain:
            return memory
        return memory.with_group(LAST, {name: value.cpu() for name, value in (plan.first or params).items()})

    def _direction(self, old: list[Params], probe: Probe) -> Params:
        """What the old models up to the newest in `old` want kept still."""
        if self.to == "parameters":
            grads = dict(old[-1])
        elif self._in_weights:
            grads = probe.weight_gradient(stacked(old))
        else:
            grads = probe.gradient(old[-1], stacked(old[:-1]))
        length = torch.stack([grad.norm() for grad in grads.values()]).norm() if self.unit else torch.tensor(1.0)
        return {name: grad / length.clamp(min=1e-30).to(grad) for name, grad in grads.items()}

    @property
    def _in_weights(self) -> bool:
        return self.space == "weights" and self.to == "gradients"


def _along(directions: Params, params: Params) -> Tensor:
    """[J]: the Taylor term, in weight space."""
    parts = [((directions[name] @ a_RI.T) * b_OR).sum((1, 2)) for name, (a_RI, b_OR) in pairs_of(params).items()]
    return torch.stack(parts).sum(0)
