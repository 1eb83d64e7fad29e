"""Fwd-Prompt (arXiv:2401.09181): prompt tuning whose updates stay where old tasks are not and pre-training is.

Old inputs of the language model span U_old, pre-training spans U_pre. Each update g of the prompts is projected

    residual    g − g U_old U_oldᵀ                                                     less interference
    both        g U' U'ᵀ,  U' = orth(U_pre − U_old U_oldᵀ U_pre)                       and reuse
    exempt      g − g U' U'ᵀ,  U' = orth(U_old − U_pre U_preᵀ U_old)                   shared directions stay free

after the optimizer's momentum, scaling and decay. U_old grows after each task with the leading directions of what it
leaves unexplained of the task's inputs, until it holds a share of their energy (GPM, arXiv:2103.09762). No old sample
is kept. Values live among the language model's input embeddings, keys among their queries.

RECONSTRUCTED, for no equation of the paper can be had: all of the above. From the paper's abstract: a pool with image
and text keys, an SVD of input embeddings, projections to the residual space and to the pre-trained one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from streamcl.errors import ConfigError
from streamcl.store.memory import TaskMemory
from streamcl.strategies.base import Params, Probe, Stage, Strategy

OLD = "subspace/old"
"""The group of U_old [d, k], by parameter."""


@dataclass(frozen=True)
class Plan:
    """Orthonormal bases [d, k] by parameter [..., d]: what its update is kept out of, and what it is confined to."""

    outside: Params = field(default_factory=dict)
    within: Params = field(default_factory=dict)


@dataclass(frozen=True)
class FwdPrompt(Strategy):
    """Prompts whose updates leave the space of old inputs alone.  Zheng et al., arXiv:2401.09181."""

    adapter: ClassVar[Literal["lora", "prompts"]] = "prompts"
    projects: ClassVar[bool] = True

    projection: Literal["both", "residual", "exempt", "none"] = "both"
    """"none" is plain prompt tuning. Keys have no pre-trained space: "both" and "exempt" are "residual" for them."""
    energy: float = 0.5
    """Share, in (0, 1], of a task's input energy that U_old comes to hold for the values. 0.50 as in PGP."""
    energy_keys: float = 0.97
    """The same for the keys. 0.97 as in PGP."""
    energy_prior: float = 0.9
    """Share, in (0, 1], of the token embeddings' energy that U_pre holds."""
    cap: float = 0.8
    """Largest share, in (0, 1), of a space's dimensions that U_old may fill; a full one grows no more."""
    least: int = 16
    """Smallest rank of U' that "both" confines to, at least 1; below it, only U_old is avoided."""
    first: bool = False
    """True lets "both" confine the first task as well, to U_pre; False trains it freely."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("energy", "energy_keys", "energy_prior", "cap"):
            if not 0 < getattr(self, name) <= (1 - 1e-9 if name == "cap" else 1):
                raise ConfigError(f"strategy.{name} {getattr(self, name)}: a share, above 0 and at most 1 (cap: below)")
        if self.least < 1:
            raise ConfigError(f"strategy.least {self.least}: at least 1")

    def prepare(self, stage: Stage, params: Params, memory: TaskMemory, probe: Probe) -> Plan:
        old = {n: value.to(params[n].device, torch.float64) for n, value in memory.tensors.get(OLD, {}).items()}
        if self.projection == "none" or not (old or self.first):
            return Plan()
        outside, within = {name: orth(value) for name, value in old.items()}, {}
        for name, moment in probe.prior().items() if self.projection != "residual" else ():
            prior = leading(moment, self.energy_prior)
            kept_out = outside.get(name, prior[:, :0])
            if self.projection == "exempt":
                outside[name] = orth(without(kept_out, prior))
            elif (reused := orth(without(prior, kept_out))).shape[1] >= self.least:
                within[name] = reused
        return Plan(*({name: basis.to(params[name]) for name, basis in part.items()} for part in (outside, within)))

    def project(self, update: Params, plan: Plan) -> Params:
        kept = {name: update[name] @ basis @ basis.T for name, basis in plan.within.items()}
        for name, basis in plan.outside.items():  # last, so that this guarantee holds exactly
            value = kept.get(name, update[name])
            kept[name] = value - value @ basis @ basis.T
        return kept

    def leak(self, update: Params, plan: Plan) -> float:
        whole = sum(float(update[name].square().sum()) for name in plan.outside)
        inside = sum(float((update[name] @ basis).square().sum()) for name, basis in plan.outside.items())
        return float((inside / whole) ** 0.5) if whole else 0.0

    def consolidate(
        self, params: Params, memory: TaskMemory, probe: Probe, plan: Any, *, closes_task: bool
    ) -> TaskMemory:
        """Of a task of several windows, the last one's data stand for all."""
        if not closes_task or self.projection == "none":
            return memory
        old = dict(memory.tensors.get(OLD, {}))
        for name, moment in probe.moments().items():
            before = old.get(name, params[name].new_zeros(len(moment), 0)).to(moment)
            energy = self.energy_keys if "keys" in name else self.energy
            old[name] = grown(before, moment, energy, most=int(self.cap * len(moment))).to(params[name])
        return memory.with_group(OLD, old)


def grown(old_DK: Tensor, moment_DD: Tensor, energy: float, *, most: int) -> Tensor:
    """`old` and the leading directions of H − H U Uᵀ: together they hold `energy` of ‖H‖², or they are `most`."""
    rest_DD = without(without(moment_DD, old_DK).T, old_DK)
    new_DK = leading(rest_DD, energy, of=float(moment_DD.trace()))
    return orth(torch.cat([old_DK, new_DK[:, : max(0, most - old_DK.shape[1])]], 1))


def leading(moment_DD: Tensor, energy: float, *, of: float | None = None) -> Tensor:
    """The fewest eigenvectors [D, K] that leave at most 1 − `energy` of the trace, or of `of`, to the others."""
    values, vectors = torch.linalg.eigh(moment_DD.double())
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    left = values.sum() - values.cumsum(0) + values  # before each one is taken
    total = float(values.sum()) if of is None else of
    leading_DK: Tensor = vectors[:, : int((left > (1 - energy) * total + 1e-12 * total).sum())]
    return leading_DK


def without(x_DK: Tensor, basis_DR: Tensor) -> Tensor:
    """The columns' parts outside an orthonormal basis."""
    return x_DK - basis_DR @ (basis_DR.T @ x_DK)


def orth(x_DK: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span; directions of relative size below 1e-6 are rounding."""
    left, sizes, _ = torch.linalg.svd(x_DK, full_matrices=False)
    basis_DK: Tensor = left[:, : int((sizes > 1e-6 * max(1.0, float(sizes.max()) if len(sizes) else 0.0)).sum())]
    return basis_DK
