"""A model that does not fit: its frozen weights in parts over the workers (FSDP2), its activations computed twice.

Only the frozen layers are sharded. The adapter is small, and stays whole on every worker: so strategies see the same
tensors whether the model is sharded or not, and what they do is exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from streamcl.errors import ConfigError


def layers(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers can checkpoint: those that repeat, and hold nearly all of the weights."""
    return [module for module in model.modules() if hasattr(module, "gradient_checkpointing") and _repeats(module)]


def _repeats(module: nn.Module) -> bool:
    return not any(hasattr(inner, "gradient_checkpointing") for inner in [*module.modules()][1:])


def sharded(model: Any, *, device: str, size: int) -> None:
    """Leaves of each frozen layer weight one part to each of `size` workers, and moves `model` to `device`; in place.

    Layers go one by one: never is more than one of them, and what is not sharded, whole on the device.  Raises
    ConfigError when transformers says of no part of the model that it is a layer.
    """
    found = layers(model)
    if not found:
        raise ConfigError("train.shard: this model has no layers; one that transformers can checkpoint has")
    mesh = init_device_mesh(torch.device(device).type, (size,))
    for layer in found:
        fully_shard(layer, mesh=mesh, ignored_params={p for p in layer.parameters() if p.requires_grad})
    rest = {parameter for parameter in model.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(model, mesh=mesh, ignored_params=rest)  # manages no weights: it lets the layers fetch ahead
    model.to(device)


def checkpointed(model: Any) -> None:
    """Has the activations of each layer computed again in the backward pass, instead of kept; in place."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers(model):
        layer.training = True  # what transformers asks for it; the parts inside, dropout among them, stay in evaluation


def part(weight: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """This worker's part of a weight, and the same rows of `whole`: both as they are where nothing is sharded."""
    if not isinstance(weight, DTensor):
        return weight, whole
    mesh = weight.device_mesh
    rows, rank = whole.chunk(mesh.size()), mesh.get_local_rank()
    return weight.to_local(), rows[rank] if rank < len(rows) else whole[:0]
