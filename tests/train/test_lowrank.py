"""The adapted layer as one operation: the values and the gradients of PEFT's own, in every precision we train in."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from streamcl.train.lowrank import LowRank
from streamcl.train.model import LoRALinear


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(*, bias: bool, dtype: torch.dtype = torch.float64) -> LoRALinear:
    base = nn.Linear(7, 5, bias=bias, dtype=dtype)
    base.requires_grad_(False)
    made = LoRALinear(base, "default", r=3, lora_alpha=6, config=peft.LoraConfig(r=3, lora_alpha=6))
    with torch.no_grad():
        made.lora_B["default"].weight.copy_(numbers(5, 3, seed=1))  # PEFT's is zero at first
    return made


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_finite_differences(bias: bool) -> None:
    parts = [numbers(*shape, seed=i).requires_grad_() for i, shape in enumerate([(4, 7), (5, 7), (3, 7), (5, 3)])]
    x, weight, a, b = parts
    constant = numbers(5, seed=9) if bias else None
    assert torch.autograd.gradcheck(lambda x, w, a, b: LowRank.apply(x, w, constant, a, b, 2.0), (x, weight, a, b))


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_peft(bias: bool) -> None:
    ours, x = layer(bias=bias), numbers(2, 4, 7, seed=2).requires_grad_()
    wanted = [x, ours.lora_A["default"].weight, ours.lora_B["default"].weight]
    outs = [ours(x), peft.tuners.lora.Linear.forward(ours, x)]
    grads = [torch.autograd.grad(out.square().sum(), wanted) for out in outs]
    assert torch.allclose(*outs, rtol=1e-12)
    assert all(torch.allclose(one, other, rtol=1e-10) for one, other in zip(*grads, strict=True))


def test_without_its_adapter_the_layer_is_the_base() -> None:
    ours, x = layer(bias=True), numbers(4, 7, seed=3)
    assert not torch.allclose(ours(x), ours.base_layer(x))
    ours.enable_adapters(False)
    assert torch.equal(ours(x), ours.base_layer(x))


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
def test_under_autocast_only_products_are_rounded(weight: torch.dtype) -> None:
    ours, x = layer(bias=True, dtype=weight), numbers(4, 7, seed=4).float()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = ours(x)
    rounded.float().sum().backward()
    exact = peft.tuners.lora.Linear.forward(ours.float(), x)
    assert rounded.dtype == torch.bfloat16
    assert torch.allclose(rounded.float(), exact, rtol=0.05, atol=0.05)
    assert ours.lora_A["default"].weight.grad is not None
