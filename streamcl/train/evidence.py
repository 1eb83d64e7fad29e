"""What a training job measures for the gate: how far an adapter goes, and how far it has moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from streamcl.strategies.base import Params
from streamcl.train.model import adapted, params_of
from streamcl.train.prompts import pool_of


def reach(model: Any) -> float:
    """What an adapter's size is measured by: the norm of the weights that LoRA adds to, over its scale; for a pool of
    prompts, that of a standard normal draw. A sharded model takes all ranks.
    """
    if pool_of(model) is not None:
        return float(sum(value.numel() for value in params_of(model).values()) ** 0.5)
    config = model.peft_config["default"]
    whole = (weight.full_tensor() if isinstance(weight, DTensor) else weight for weight in adapted(model).values())
    squares = sum(float(torch.linalg.vector_norm(weight.detach().double())) ** 2 for weight in whole)
    return float(squares**0.5 / (config.lora_alpha / config.r))


def change(model: Any, before: Params | None, after: Params, *, reach: float) -> tuple[float, float]:
    """Norms of the update of `after`, and of its difference to that of `before` (None: no update at all), over `reach`.

    The ranks of the two may differ.
    """
    if pool_of(model) is not None:
        rest = after if before is None else {name: value - before[name] for name, value in after.items()}
        return _norm(after) / reach, _norm(rest) / reach
    names = [name for name in after if "lora_A" in name]
    size = sum(_squared([_pair(after, name)]) for name in names) ** 0.5
    old = {} if before is None else before
    parts = [[_pair(after, name), *([_pair(old, name, sign=-1.0)] if old else [])] for name in names]
    return size / reach, max(0.0, sum(map(_squared, parts))) ** 0.5 / reach


def distances(before: Params, after: Params, *, scales: tuple[float, float]) -> dict[str, float]:
    """By layer, ‖ΔW₂ − ΔW₁‖ / ‖ΔW₁‖ of two LoRAs with these scales alpha / r; infinite where the first does nothing."""
    found = {}
    for name in (name for name in before if "lora_A" in name):
        (a_RI, b_OR), (c_RI, d_OR) = _pair(before, name), _pair(after, name)
        old, moved = _squared([(scales[0] * a_RI, b_OR)]), [(scales[1] * c_RI, d_OR), (-scales[0] * a_RI, b_OR)]
        distance = max(0.0, _squared(moved)) ** 0.5
        found[name.removesuffix(".lora_A.weight")] = distance / old**0.5 if old else float("inf") if distance else 0.0
    return found


def _pair(params: Params, name: str, *, sign: float = 1.0) -> tuple[Tensor, Tensor]:
    """A layer's A and B in float64; the update is sign · B A."""
    return params[name].double().cpu(), sign * params[name.replace("lora_A", "lora_B")].double().cpu()


def _squared(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """‖Σ B A‖², from the small Gram matrices of the stacked factors."""
    a_RI, b_OR = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], 1)
    return float(((b_OR.T @ b_OR) * (a_RI @ a_RI.T)).sum())


def _norm(values: Mapping[str, Tensor]) -> float:
    return float(sum(value.double().square().sum() for value in values.values()) ** 0.5)
