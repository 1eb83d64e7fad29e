"""LoRA slots on one model, or pools of prompts before it: some versions answer, the next is written beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import peft
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor

from streamcl.errors import ConfigError, Corrupt
from streamcl.train.model import ADAPTER_CONFIG, ADAPTER_WEIGHTS, from_files, new_pool, params_of, write
from streamcl.train.prompts import Pool, attach, detach, parameters
from streamcl.train.settings import PROMPTS_CONFIG, PROMPTS_WEIGHTS, Prompts

Place = str | Pool | None
"""What a version's forward passes go through: the slot of that name, a pool of prompts, or the bare base."""
SHAPE = (
    "r", "lora_alpha", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "use_rslora",
    "layers_to_transform", "layers_pattern", "fan_in_fan_out",
)  # fmt: skip
"""What makes two adapters differ in form: a slot is reused only between adapters that agree on all of these."""
SILENT = (
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "auto_mapping",
    "init_lora_weights", "peft_version",
)  # fmt: skip
"""What does not change a finished adapter's answers. `init_lora_weights` is never taken over: some change the base."""


@dataclass(frozen=True)
class Adapter:
    """A published adapter, read and checked."""

    shape: Mapping[str, Any] | Prompts
    """The SHAPE fields of its configuration, or the form of its pool of prompts."""
    params: Mapping[str, Tensor]


def read_adapter(files: Mapping[str, bytes]) -> Adapter:
    """The adapter in a PEFT folder's files, or the pool in its own.  Raises Corrupt, ConfigError or NotFinite."""
    prompts = bool({PROMPTS_CONFIG, PROMPTS_WEIGHTS} & files.keys())
    missing = ({PROMPTS_CONFIG, PROMPTS_WEIGHTS} if prompts else {ADAPTER_CONFIG, ADAPTER_WEIGHTS}) - files.keys()
    if missing:
        raise Corrupt(f"the version has no {sorted(missing)}; it has {sorted(files)}")
    try:
        config = json.loads(files[PROMPTS_CONFIG if prompts else ADAPTER_CONFIG])
        params = from_files(files)
    except (ValueError, SafetensorError) as error:
        raise Corrupt(f"the version's files cannot be parsed: {error}") from error
    if prompts:
        return Adapter(Prompts.read(config), params)
    if config.get("peft_type") != "LORA":
        raise ConfigError(f"the adapter's peft_type is {config.get('peft_type')!r}; this engine serves LORA")
    default = peft.LoraConfig().to_dict()
    set_apart = {name: value for name, value in config.items() if value and value != default.get(name)}
    odd = sorted(set_apart.keys() - {*SHAPE, *SILENT})
    if odd:
        raise ConfigError(f"the adapter uses {odd}, which this engine does not serve; export it as plain LoRA")
    return Adapter(_shape(peft.LoraConfig(**{name: config[name] for name in SHAPE if name in config})), params)


def _shape(config: peft.LoraConfig) -> dict[str, Any]:
    """The SHAPE fields, copied: PEFT rewrites a configuration when it is applied."""
    return {name: getattr(config, name) for name in SHAPE}


class Slots:
    """A PEFT model with several slots for adapters. Mutates the model, which is the bare base until the first `use`.

    `write` is safe while the model runs, as long as nothing runs on that slot. `rebuild` and `use` change what a
    forward pass walks through: call them where no forward pass runs.
    """

    def __init__(self, model: Any, config: peft.LoraConfig, *, count: int) -> None:
        self.names = tuple(f"slot-{index}" for index in range(count))
        shape = _shape(config)
        self.model = peft.get_peft_model(model, peft.LoraConfig(**shape), adapter_name=self.names[0])
        for name in self.names[1:]:
            self.model.add_adapter(name, peft.LoraConfig(**shape))
        self.model.eval()
        self._shapes: dict[str, Mapping[str, Any]] = dict.fromkeys(self.names, shape)
        self._base = model
        self._layers = self._found()
        self._used: Place = self.names[0]
        self.use(None)

    def fits(self, slot: str, adapter: Adapter) -> bool:
        """Whether `slot` has the form of `adapter`."""
        return self._shapes.get(slot) == adapter.shape

    def rebuild(self, slot: str, adapter: Adapter) -> None:
        """Gives `slot` the form of `adapter`.  Raises ConfigError when the base has no such layers."""
        assert not isinstance(adapter.shape, Prompts), "a pool needs no slot"
        self.use(next(name for name in self.names if name != slot))
        if self._shapes.pop(slot, None) is not None:
            self.model.delete_adapter(slot)
        try:
            self.model.add_adapter(slot, peft.LoraConfig(**adapter.shape))
            self._shapes[slot] = adapter.shape
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the adapter does not fit the base model: {error}") from error
        finally:  # layers that were added go through the new slot, whatever the others do
            self.model.eval()
            self._layers, self._used = self._found(), slot
            self.use(None)

    def write(self, slot: str, adapter: Adapter) -> None:
        """Copies `adapter` into `slot`.  Raises ConfigError when names or shapes differ."""
        write(params_of(self.model, slot), adapter.params)

    def pool(self, adapter: Adapter) -> Pool:
        """The pool of prompts that `adapter` describes.  Raises ConfigError."""
        assert isinstance(adapter.shape, Prompts), "a LoRA lies in a slot"
        pool = new_pool(self._base, adapter.shape)
        write(parameters(pool), adapter.params)
        return pool

    def use(self, place: Place) -> None:
        """Forward passes go through `place` from now on."""
        if place is self._used:
            return
        detach(self._base)
        for layer in self._layers:
            layer.enable_adapters(isinstance(place, str))
            if isinstance(place, str):
                layer.set_adapter(place, inference_mode=True)
        if isinstance(place, Pool):
            attach(self._base, place)
        self._used = place

    def rows(self, slots: Sequence[str | None]) -> dict[str, Any]:
        """Has each row of the next forward pass go through its own slot, or the bare base; what to call it with.

        For one new token a row: the layers before the language model do not see rows, but images.
        """
        if len(set(slots)) == 1:
            self.use(slots[0])
            return {}
        self.use(next(slot for slot in slots if slot))
        return {"adapter_names": [slot or "__base__" for slot in slots]}

    def _found(self) -> list[BaseTunerLayer]:
        """The adapted layers. Kept, for to look for them takes as long as a step of a small model."""
        return [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
