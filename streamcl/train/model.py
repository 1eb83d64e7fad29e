"""The model under the adapters: loading the frozen base, growing LoRA on it, and an adapter as plain files.

The base is any transformers image-text-to-text model. Where its vision tower is frozen and reachable, the tower runs
once per sample, at ingest; afterwards its features stand in for the pixels (`CachedTower`).
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from streamcl.errors import ConfigError, NotFinite
from streamcl.strategies.base import Params
from streamcl.train.lowrank import low_rank
from streamcl.train.prompts import NAME, Pool, attach, fresh_pool, parameters, pool_of, table_of
from streamcl.train.settings import PROMPTS_WEIGHTS, LoRA, ModelConfig, Prompts
from streamcl.train.sharding import part

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class LoRALinear(peft.tuners.lora.Linear):  # type: ignore[misc]  # peft is untyped
    """PEFT's layer, of the same names and values, in fewer operations."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1 or args or kwargs:
            whole: Tensor = super().forward(x, *args, **kwargs)
            return whole
        base, name = self.base_layer, self.active_adapters[0]
        a_RI, b_OR = self.lora_A[name].weight, self.lora_B[name].weight
        return low_rank(x, base.weight, base.bias, a_RI, b_OR, scale=self.scaling[name])


@dataclass
class Base:
    """A loaded base model: frozen, in evaluation mode."""

    model: Any
    processor: Any
    digest: str
    """sha256 over the base's configuration and weights, hex."""

    @property
    def device(self) -> torch.device:
        device: torch.device = next(iter(self.model.parameters())).device
        return device


class CachedTower(nn.Module):
    """A frozen vision tower through which already computed features pass unchanged.

    Pixels are [N, 3, H, W]; features, the chosen hidden layer, are [N, T, C]. The number of dimensions tells which.
    """

    def __init__(self, tower: nn.Module, layer: int) -> None:
        super().__init__()
        self.tower, self.layer = tower, layer

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        weight = next(self.tower.parameters())
        features = pixel_values.to(weight.dtype)
        if pixel_values.dim() == 4:
            with torch.no_grad():
                features = self.tower(features, **kwargs).hidden_states[self.layer]
        return BaseModelOutputWithPooling(last_hidden_state=features, hidden_states=(features,) * (abs(self.layer) + 1))


def load_base(config: ModelConfig, *, device: str = "cpu") -> Base:
    """The base model of `config` on `device`, with its tower cached where it can be.  Raises ConfigError."""
    if config.register:
        importlib.import_module(config.register)
    try:
        processor = AutoProcessor.from_pretrained(config.path)
        model = AutoModelForImageTextToText.from_pretrained(config.path, dtype=getattr(torch, config.dtype))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path {config.path!r} does not load: {error}. Give a folder or a cached hub id"
        ) from error
    model.requires_grad_(False).eval().to(device)
    inner = model.model
    layer = getattr(model.config, "vision_feature_layer", None)
    if isinstance(layer, int) and hasattr(inner, "vision_tower"):
        inner.vision_tower.to(memory_format=torch.channels_last)  # convolutions are twice as fast on a CPU
        inner.vision_tower = CachedTower(inner.vision_tower, layer)
    return Base(model, processor, base_digest(config.path))


def base_digest(path: str) -> str:
    """sha256 over config.json and the weight files of a model folder; of the name itself for a hub id."""
    digest = hashlib.sha256()
    folder = Path(path)
    if not folder.is_dir():
        return hashlib.sha256(path.encode()).hexdigest()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def peft_config(lora: LoRA) -> peft.LoraConfig:
    """The same as PEFT says it."""
    return peft.LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=lora.targets, lora_dropout=0.0)


def grow(base: Base, form: LoRA | Prompts, *, seed: int) -> Any:
    """`base` with fresh trainable parameters: a LoRA named "default", or a pool of prompts. Changes `base.model`."""
    if isinstance(form, Prompts):
        model = base.model
        attach(model, new_pool(model, form))
    else:
        config = peft_config(form)
        config._register_custom_module({nn.Linear: LoRALinear})
        model = peft.get_peft_model(base.model, config).eval()
    write(params_of(model), fresh(params_of(model), seed=seed))
    return model


def new_pool(model: Any, form: Prompts) -> Pool:
    """A pool of zeros that fits `model`.  Raises ConfigError."""
    tower = getattr(model.model, "vision_tower", None)
    if not isinstance(tower, CachedTower):
        raise ConfigError("prompts are chosen by the tower's features, and this model's tower is not within reach")
    config = model.config
    channels = config.vision_config.hidden_size
    return Pool(form, table_of(model), tower, channels=channels, image_id=config.image_token_id)


def fresh(params: Mapping[str, Tensor], *, seed: int) -> Params:
    """New values from `seed`. LoRA: B zero, A uniform in ±1/√d_in (PEFT's default). A pool: standard normal."""
    if all(name.startswith(f"{NAME}.") for name in params):
        return fresh_pool(params, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name in sorted(params):
        shape = params[name].shape
        noise = (torch.rand(shape, generator=generator) * 2 - 1) / shape[-1] ** 0.5
        values[name] = noise if "lora_A" in name else torch.zeros(shape)
    return values


def params_of(model: Any, adapter: str | None = None) -> dict[str, nn.Parameter]:
    """The parameters of one LoRA, under the names that PEFT saves them with; with None those that `grow` grew."""
    pool = None if adapter else pool_of(model)
    if pool is not None:
        return parameters(pool)
    mark = f".{adapter or 'default'}."
    return {
        name.replace(mark, "."): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name and mark in name
    }


def adapted(model: peft.PeftModel) -> dict[str, nn.Parameter]:
    """The frozen weights [O, I] under the adapters, by the name of the layer's A."""
    modules = dict(model.named_modules())
    names = [name for name in params_of(model) if "lora_A" in name]
    return {name: modules[name.removesuffix(".lora_A.weight")].base_layer.weight for name in names}


@contextmanager
def added(model: peft.PeftModel, params: Mapping[str, Tensor]) -> Iterator[None]:
    """`params`, an adapter of any rank, as part of the frozen weights; afterwards they are bit for bit as before.

    Costs a copy of the adapted weights, and nothing in each step.
    """
    if not params:
        yield
        return
    config = model.peft_config["default"]
    parts = {name: part(p.detach(), params[name.replace("lora_A", "lora_B")]) for name, p in adapted(model).items()}
    kept = {name: weight_oI.clone() for name, (weight_oI, _) in parts.items()}
    for name, (weight_oI, b_oR) in parts.items():
        weight_oI.add_(b_oR.to(weight_oI) @ params[name].to(weight_oI), alpha=config.lora_alpha / config.r)
    try:
        yield
    finally:
        for name, (weight_oI, _) in parts.items():
            weight_oI.copy_(kept[name])


def write(params: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copies `values` into `params` in place.  Raises ConfigError when names or shapes differ."""
    if params.keys() != values.keys():
        odd = sorted(params.keys() ^ values.keys())[:3]
        raise ConfigError(f"the adapter does not fit the model: only one has {odd}; check model.lora.targets")
    with torch.no_grad():
        for name, parameter in params.items():
            if parameter.shape != values[name].shape:
                raise ConfigError(
                    f"{name} has shape {tuple(values[name].shape)}, the model wants {tuple(parameter.shape)}; "
                    "check model.lora.r"
                )
            parameter.copy_(values[name])


def to_bytes(params: Mapping[str, Tensor]) -> bytes:
    """Adapter tensors as safetensors, float32.  Raises NotFinite."""
    check_finite(params)
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in params.items()}
    data: bytes = save_safetensors(tensors, metadata={"format": "pt"})
    return data


def to_files(lora: LoRA | Prompts, weights: bytes) -> dict[str, bytes]:
    """Adapter tensors (of `to_bytes`) as a standard PEFT folder, or a pool's: file name to content.

    The rank is the tensors'; the scale alpha / r is that of `lora`.
    """
    if isinstance(lora, Prompts):
        return lora.files(weights)
    rank = next(len(value) for name, value in load_safetensors(weights).items() if "lora_A" in name)
    scale = lora.alpha if rank == lora.r else lora.alpha / lora.r * rank
    config = peft_config(lora).to_dict() | {"r": rank, "lora_alpha": scale, "inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return {ADAPTER_CONFIG: json.dumps(plain, indent=1, sort_keys=True).encode(), ADAPTER_WEIGHTS: weights}


def from_files(files: Mapping[str, bytes]) -> Params:
    """The adapter tensors in a PEFT folder's files, or a pool's in its own.  Raises NotFinite."""
    params: Params = load_safetensors(files[PROMPTS_WEIGHTS if PROMPTS_WEIGHTS in files else ADAPTER_WEIGHTS])
    check_finite(params)
    return params


def check_finite(params: Mapping[str, Tensor]) -> None:
    """Raises NotFinite, naming the first tensor that holds NaN or infinity."""
    for name, value in params.items():
        if not torch.isfinite(value).all():
            raise NotFinite(f"{name} holds NaN or infinity; the adapter is refused")
