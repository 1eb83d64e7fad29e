"""HiFGO's penalties with their gradient written down: autograd's own way through a concatenation and a norm for each
tensor takes twice as long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SLOPES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "absolute": torch.sign,
    "square": lambda value: 2 * value,
    "signed": torch.ones_like,
}
"""The derivative of each form."""
FORMS: Mapping[str, Callable[[Tensor], Tensor]] = {"absolute": torch.abs, "square": torch.square, "signed": torch.clone}


@dataclass
class Directions:
    """Directions end to end, and their sum under the slopes of the last step. Mutable.

    Of eight slopes of "absolute", fewer than one changes in a step of training: reading its direction alone is
    cheaper than reading all.
    """

    rows_JP: Tensor
    slopes: tuple[float, ...] = ()
    sum_P: Tensor | None = None

    def combined(self, slope_J: Tensor) -> Tensor:
        """Σ_j slope_j d_j [P], to be left as it is."""
        slopes = tuple(slope_J.tolist())
        changed = [j for j, pair in enumerate(zip(slopes, self.slopes, strict=False)) if pair[0] != pair[1]]
        if self.sum_P is None or 2 * len(changed) > len(slopes):
            self.sum_P, changed = slope_J @ self.rows_JP, []
        for j in changed:
            self.sum_P.add_(self.rows_JP[j], alpha=slopes[j] - self.slopes[j])
        self.slopes = slopes
        return self.sum_P


class Pulls(torch.autograd.Function):
    """Σ_j form(<d_j, θ>) for directions d [J, P], and Σ_k ‖θ_k‖, for tensors θ_k that are P numbers end to end."""

    @staticmethod
    def forward(ctx: Any, directions: Directions, form: str, *params: Tensor) -> tuple[Tensor, Tensor]:
        along_J = directions.rows_JP @ end_to_end(params)
        lengths = torch.stack(torch._foreach_norm(params))
        ctx.directions = directions
        ctx.save_for_backward(SLOPES[form](along_J), lengths, *params)
        return FORMS[form](along_J).sum(), lengths.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slope_J, lengths, *params = ctx.saved_tensors
        flat_P = grads[0] * ctx.directions.combined(slope_J)
        parts = [part.view_as(p) for part, p in zip(flat_P.split([p.numel() for p in params]), params, strict=True)]
        torch._foreach_addcmul_(parts, params, torch.where(lengths > 0, grads[1] / lengths, 0.0).unbind())
        return None, None, *parts


def end_to_end(values: Sequence[Tensor]) -> Tensor:
    """One vector: a product with it costs a step far less than one with each tensor."""
    return torch.cat([value.flatten() for value in values])


def pulls(directions: Directions, form: str, params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The two sums of `Pulls`. `form`: "absolute", "square" or "signed"."""
    sums: tuple[Tensor, Tensor] = Pulls.apply(directions, form, *params)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return sums
