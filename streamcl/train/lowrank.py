"""A frozen linear layer and its low-rank update as one operation: y = x Wᵀ + bias + s (x Aᵀ) Bᵀ.

Layer by layer the update costs more in copies, scalings and sums as large as the activations than in arithmetic. Here
the small products are added in place to the large ones, forward and backward, and only x and x Aᵀ are kept between.
Letters: N rows, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LowRank(torch.autograd.Function):
    """Differentiable once, with respect to everything but the bias and the scale."""

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        low_NR = x_NI @ a_RI.T
        y_NO = x_NI @ weight_OI.T if bias_O is None else torch.addmm(bias_O, x_NI, weight_OI.T)
        ctx.save_for_backward(x_NI, weight_OI, a_RI, b_OR, low_NR)
        ctx.scale = scale
        return y_NO.addmm_(low_NR, b_OR.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI, a_RI, b_OR, low_NR = ctx.saved_tensors
        (y_NO,) = grads
        low_grad_NR = (y_NO @ b_OR) * ctx.scale
        x_grad = (y_NO @ weight_OI).addmm_(low_grad_NR, a_RI) if ctx.needs_input_grad[0] else None
        weight_grad = y_NO.T @ x_NI if ctx.needs_input_grad[1] else None
        return x_grad, weight_grad, None, low_grad_NR.T @ x_NI, (y_NO.T @ low_NR) * ctx.scale, None


def low_rank(
    x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, *, scale: float
) -> Tensor:
    """[..., I] → [..., O], in autocast's type where that is on and in the weight's where it is not."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_OI.dtype
    parts = [value if value is None else value.to(dtype) for value in (x.flatten(0, -2), weight_OI, bias_O, a_RI, b_OR)]
    y_NO: Tensor = LowRank.apply(*parts, scale)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return y_NO.view(*x.shape[:-1], -1)
