"""HiFGO's penalties with their gradient written down: autograd's own way through a concatenation and a norm for each
tensor takes twice as long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


class Pulls(torch.autograd.Function):
    """Σ_j form(<d_j, θ>) for directions d [J, P], and Σ_k ‖θ_k‖, for tensors θ_k that are P numbers end to end."""

    @staticmethod
    def forward(ctx: Any, directions_JP: Tensor, form: str, *params: Tensor) -> tuple[Tensor, Tensor]:
        along_J = directions_JP @ end_to_end(params)
        lengths = torch.stack(torch._foreach_norm(params))
        ctx.save_for_backward(directions_JP, SLOPES[form](along_J), lengths, *params)
        return FORMS[form](along_J).sum(), lengths.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        directions_JP, slope_J, lengths, *params = ctx.saved_tensors
        flat_P = (grads[0] * slope_J) @ directions_JP
        parts = [part.view_as(p) for part, p in zip(flat_P.split([p.numel() for p in params]), params, strict=True)]
        torch._foreach_addcmul_(parts, params, torch.where(lengths > 0, grads[1] / lengths, 0.0).unbind())
        return None, None, *parts


def end_to_end(values: Sequence[Tensor]) -> Tensor:
    """One vector: a product with it costs a step far less than one with each tensor."""
    return torch.cat([value.flatten() for value in values])


def pulls(directions_JP: Tensor, form: str, params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The two sums of `Pulls`. `form`: "absolute", "square" or "signed"."""
    sums: tuple[Tensor, Tensor] = Pulls.apply(directions_JP, form, *params)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return sums
