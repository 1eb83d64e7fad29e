"""Two LoRA slots on one model, or a pool of prompts before it: one version answers, the next is written beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import peft
from safetensors import SafetensorError
from torch import Tensor

from streamcl.errors import ConfigError, Corrupt
from streamcl.train.model import ADAPTER_CONFIG, ADAPTER_WEIGHTS, from_files, new_pool, params_of, write
from streamcl.train.prompts import PROMPTS_CONFIG, PROMPTS_WEIGHTS, Pool, Prompts, attach, detach, parameters, pool_of

NAMES = ("left", "right")
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
    """A PEFT model with two slots. Mutates the model; `model` is the bare base until the first flip.

    `write` is safe while the model answers, for it touches the idle slot only. `rebuild`, `flip` and `bare` change what
    a forward pass walks through: call them where no forward pass runs. A pool of prompts is small, so a new one is made
    in `write`; while it answers, no slot does.
    """

    def __init__(self, model: Any, config: peft.LoraConfig) -> None:
        shape = _shape(config)
        self.model = peft.get_peft_model(model, peft.LoraConfig(**shape), adapter_name=NAMES[0])
        self.model.add_adapter(NAMES[1], peft.LoraConfig(**shape))
        self.model.eval()
        self._shapes: dict[str, Mapping[str, Any]] = dict.fromkeys(NAMES, shape)
        self.active = NAMES[0]
        self._base = model
        self._pool: Pool | None = None
        self.bare()

    @property
    def idle(self) -> str:
        return NAMES[1 - NAMES.index(self.active)]

    @property
    def reserved(self) -> int:
        """Tokens of the context that stand before a request's own."""
        pool = pool_of(self._base)
        return pool.tokens if pool else 0

    def fits(self, adapter: Adapter) -> bool:
        """Whether the idle slot has the form of `adapter`; a pool needs none."""
        return isinstance(adapter.shape, Prompts) or self._shapes.get(self.idle) == adapter.shape

    def rebuild(self, adapter: Adapter) -> None:
        """Gives the idle slot the form of `adapter`.  Raises ConfigError when the base has no such layers."""
        assert not isinstance(adapter.shape, Prompts), "a pool fits as it is"
        slot = self.idle
        if self._shapes.pop(slot, None) is not None:
            self.model.delete_adapter(slot)
        try:
            self.model.add_adapter(slot, peft.LoraConfig(**adapter.shape))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the adapter does not fit the base model: {error}") from error
        self.model.eval()
        self._shapes[slot] = adapter.shape

    def write(self, adapter: Adapter) -> None:
        """Copies `adapter` into the idle slot.  Raises ConfigError when names or shapes differ."""
        if isinstance(adapter.shape, Prompts):
            pool = new_pool(self._base, adapter.shape)
            write(parameters(pool), adapter.params)
            self._pool = pool
            return
        write(params_of(self.model, self.idle), adapter.params)
        self._pool = None

    def flip(self) -> None:
        """What was written last answers from now on."""
        if self._pool is not None:
            self.bare()
            attach(self._base, self._pool)
            return
        detach(self._base)
        self.active = self.idle
        self.model.base_model.enable_adapter_layers()
        self.model.set_adapter(self.active, inference_mode=True)

    def bare(self) -> None:
        """The base model answers from now on, without adapters."""
        detach(self._base)
        self.model.base_model.disable_adapter_layers()
