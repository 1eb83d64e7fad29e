"""One training step: loss, gradient, update. The three places where a strategy acts, in this order:

    loss = task loss + strategy.penalty          backward, mean over workers
    gradient = strategy.guide(gradient)          then clipped
    update = optimizer's step, momentum, scaling and decay included
    parameters = before + strategy.project(update)

The projection comes last because only then its guarantee holds: AdamW rescales each coordinate after a projected
gradient, and 8-22 % of the update leaks into the protected space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamcl.errors import NotFinite
from streamcl.strategies.base import Params, Strategy


@dataclass(frozen=True)
class StepLog:
    """What one step saw."""

    loss: float
    """Mean task loss of the batch, without penalty."""
    penalty: Mapping[str, float]
    """The strategy's terms, weighted, by name."""
    grad_norm: float
    """Norm of the guided gradient, before clipping."""


def train_step(
    loss_of: Callable[[], Tensor],
    params: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    strategy: Strategy,
    plan: Any,
    draw: torch.Generator,
    clip: float,
    average: Callable[[Params], Params] = lambda grads: grads,
) -> StepLog:
    """One step on `params`, in place.  Raises NotFinite before any parameter changes.

    `loss_of` may have accumulated gradients of a part of the loss already. `clip`: largest norm of the gradient, > 0.
    `average`: the mean of the workers' gradients.
    """
    optimizer.zero_grad(set_to_none=True)
    current: Params = dict(params)
    loss = loss_of()
    terms = strategy.penalty(current, plan)
    sum(terms.values(), loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    own = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in params.items()}
    grads = strategy.guide(average(own), current, plan, draw)
    for name, parameter in params.items():
        parameter.grad = grads[name]
    norm = nn.utils.clip_grad_norm_(params.values(), clip)
    if not torch.isfinite(norm + loss.detach()):
        raise NotFinite(f"loss {loss.item()}, gradient norm {norm.item()}: the window is abandoned before the update")
    _update(params, optimizer, strategy, plan)
    return StepLog(loss.item(), {name: value.item() for name, value in terms.items()}, norm.item())


def _update(
    params: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, strategy: Strategy, plan: Any
) -> None:
    """The optimizer's step, of which the strategy keeps a part."""
    if not strategy.projects:
        optimizer.step()
        return
    before = {name: parameter.detach().clone() for name, parameter in params.items()}
    optimizer.step()
    with torch.no_grad():
        update = {name: parameter - before[name] for name, parameter in params.items()}
        for name, kept in strategy.project(update, plan).items():
            params[name].copy_(before[name] + kept)
