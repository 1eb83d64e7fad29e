"""What of the model and its training is set: sections of a run's configuration. Light: nothing of torch is imported."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from streamcl.errors import ConfigError

PROMPTS_CONFIG = "prompts_config.json"
PROMPTS_WEIGHTS = "prompts.safetensors"
KIND = "streamcl-prompts-1"


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on the frozen base.  Hu et al., arXiv:2106.09685."""

    r: int = 16
    """Rank, at least 1."""
    alpha: int = 32
    """Scale: the update is `alpha / r * B @ A`."""
    targets: str = r"(?!.*vision).*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|linear_1|linear_2)"
    """Regular expression that the whole name of an adapted linear layer matches."""


@dataclass(frozen=True)
class Prompts:
    """A pool of prompts before a frozen model. Sizes and key loss as in PGP (ICLR 2024)."""

    pool: int = 10
    """Prompts, at least 1."""
    length: int = 5
    """Tokens of a prompt, at least 1."""
    top: int = 5
    """Prompts chosen for a sample, from 1 to `pool`."""
    key_loss: float = 0.1
    """Weight, at least 0, of the pull of chosen keys towards the queries that chose them."""

    def __post_init__(self) -> None:
        if not 1 <= self.top <= self.pool or self.length < 1 or self.key_loss < 0:
            raise ConfigError(
                f"prompts: pool {self.pool}, length {self.length}, top {self.top}, key_loss {self.key_loss}: "
                "length is at least 1, top from 1 to pool, key_loss at least 0"
            )

    def files(self, weights: bytes) -> dict[str, bytes]:
        """A pool as a folder: this form as JSON, under a "kind", and the tensors of `parameters`."""
        config = {"kind": KIND, **asdict(self)}
        return {PROMPTS_CONFIG: json.dumps(config, indent=1).encode(), PROMPTS_WEIGHTS: weights}

    @staticmethod
    def read(config: Any) -> Prompts:
        """The form in a folder's configuration, which is JSON's value.  Raises ConfigError."""
        if not isinstance(config, dict) or config.get("kind") != KIND:
            raise ConfigError(f"{PROMPTS_CONFIG} is not of kind {KIND!r}; write it with this version of streamcl")
        known, tree = asdict(Prompts()), {name: value for name, value in config.items() if name != "kind"}
        odd = [name for name, value in tree.items() if not isinstance(value, (int, type(known.get(name))))]
        if odd or tree.keys() - known.keys():
            raise ConfigError(f"{PROMPTS_CONFIG} has {tree}; numbers are wanted for {', '.join(known)}")
        return Prompts(**tree)


@dataclass(frozen=True)
class ModelConfig:
    """Which base model, and what is trained on it."""

    path: str
    """A folder or hub id that transformers' Auto classes load."""
    register: str | None = None
    """A module to import first, if the model has parts that transformers does not know, or None."""
    lora: LoRA = LoRA()
    prompts: Prompts = field(default_factory=Prompts)
    """Trained in place of `lora` where the strategy says so."""
    dtype: str = "float32"
    """Type of the frozen weights: float32, bfloat16 or float16. Adapters are float32."""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"model.dtype {self.dtype!r}: use float32, bfloat16 or float16")


@dataclass(frozen=True)
class TrainConfig:
    """How a window is trained."""

    epochs: int = 2
    """Passes over the window, at least 1."""
    batch_size: int = 16
    """Samples a step, over all workers."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises from 0; then it falls to 0 as a cosine. In [0, 1)."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest gradient norm, > 0."""
    workers: int | tuple[int, int] = 1
    """Ray Train workers, at least 1; they share each batch. [least, most]: as many as the nodes have room for, which is
    counted by what a worker takes alone; give it a GPU or a resource of its own (`placement.trainer`)."""
    use_gpu: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 multiplies matrices under autocast; adapters, their gradients and the optimizer stay float32."""
    micro_batch: int | None = None
    """Rows that a worker passes at once, at least 1; gradients accumulate over its part of the batch. None: all."""
    by_length: bool = False
    """Batches of rows of like length: less padding, another order."""
    checkpointing: bool = False
    """Activations are computed again in the backward pass instead of kept: less memory, about a third more time."""
    shard: bool = False
    """Frozen weights lie in parts over the workers, for a model that fits no single one."""
    compile: bool = False
    """The forward and backward pass through torch.compile; takes a while to begin."""
    probe_rows: int = 256
    """Rows of a window from which strategies take their mean gradients, at least 1."""
    idle_s: float = 300.0
    """Seconds without a window after which the workers are released; they start again on demand."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "micro_batch", "probe_rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"train.{name} {getattr(self, name)}: at least 1")
        least, most = (self.workers, self.workers) if isinstance(self.workers, int) else self.workers
        if not 1 <= least <= most:
            raise ConfigError(f"train.workers {self.workers}: at least 1, or [least, most] with least not above most")
