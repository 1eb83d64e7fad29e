"""EfficientNet-Lite0 as a vision tower for transformers: importing this registers it with AutoConfig and AutoModel.

Tan and Le, arXiv:1905.11946, in the Lite form (no squeeze-excitation, ReLU6). Batch norms are folded into the
convolutions when the weights are converted, so the tower has none and means the same in training and evaluation.
Shapes: N images, L = 16 places of the 4x4 grid, C = 320 channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Each stage's (blocks, kernel, stride of its first block, expansion, channels)."""


class EfficientNetLite0Config(PretrainedConfig):  # type: ignore[misc]
    """Shape of the tower; every number is fixed by the published weights but the image size."""

    model_type = "streamcl_efficientnet_lite0"

    def __init__(self, image_size: int = 128, hidden_size: int = 320, patch_size: int = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.image_size = image_size
        self.hidden_size = hidden_size
        self.patch_size = patch_size


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME" pads even inputs: at stride 2 right and bottom get one pixel more."""

    def __init__(self, width_in: int, width_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(width_in, width_out, kernel, stride=stride, groups=groups)
        self.before, self.after = (kernel - stride) // 2, (kernel - stride + 1) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(x, (self.before, self.after, self.before, self.after))
        filtered: torch.Tensor = super().forward(padded)
        return filtered


class Block(nn.Module):
    """Inverted residual: expand, filter each channel, project."""

    def __init__(self, width_in: int, width_out: int, kernel: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        width = width_in * expansion
        self.expand = SameConv(width_in, width, 1) if expansion > 1 else None
        self.depthwise = SameConv(width, width, kernel, stride=stride, groups=width)
        self.project = SameConv(width, width_out, 1)
        self.residual = stride == 1 and width_in == width_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else functional.relu6(self.expand(x))
        y = functional.relu6(self.depthwise(y))
        projected: torch.Tensor = self.project(y)
        return x + projected if self.residual else projected


class EfficientNetLite0Model(PreTrainedModel):  # type: ignore[misc]
    """Images to 16 feature vectors each, standardised per channel by the pre-training images' mean and deviation."""

    config_class = EfficientNetLite0Config
    base_model_prefix = "tower"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: EfficientNetLite0Config) -> None:
        super().__init__(config)
        self.stem = SameConv(3, 32, 3, stride=2)
        blocks, width = [], 32
        for count, kernel, stride, expansion, width_out in STAGES:
            for index in range(count):
                blocks.append(Block(width, width_out, kernel, stride=stride if index == 0 else 1, expansion=expansion))
                width = width_out
        self.blocks = nn.ModuleList(blocks)
        self.register_buffer("mean", torch.zeros(config.hidden_size))
        self.register_buffer("std", torch.ones(config.hidden_size))
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        x = functional.relu6(self.stem(pixel_values.to(self.stem.weight.dtype)))
        for block in self.blocks:
            x = block(x)
        features_NLC = (x.flatten(2).transpose(1, 2) - self.mean) / self.std
        return BaseModelOutput(last_hidden_state=features_NLC, hidden_states=(features_NLC,))


AutoConfig.register(EfficientNetLite0Config.model_type, EfficientNetLite0Config, exist_ok=True)
AutoModel.register(EfficientNetLite0Config, EfficientNetLite0Model, exist_ok=True)
