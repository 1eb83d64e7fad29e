"""What a detector watches: one vector a sample, from the frozen base model itself.

The image half is the tower's features, averaged over tokens; the text half is the mean embedding of the prompt's
tokens. No second model is needed. Each half has about unit variance; of a sample without an image the first is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.float32]]


def embed(image_C: Array, prompt_ids: Sequence[int], table_VE: Array, *, spread: float) -> Array:
    """The embedding [C + E] of one sample, float32.

    `image_C`: of `channels_of`, or zeros for a sample without an image. `table_VE`: the model's token embeddings, whose
    standard deviation is `spread`, > 0.
    """
    text_E = table_VE[np.asarray(prompt_ids)].mean(axis=0) / spread
    return np.concatenate([image_C, text_E]).astype(np.float32)


def channels_of(features: Tensor) -> Array:
    """The mean over everything but the channels, [C]: the last axis of features [images, tokens, C] or patches
    [patches, C], the third from the end of pixels [..., C, H, W].
    """
    channel = features.dim() - 1 if features.dim() <= 3 else features.dim() - 3
    mean_C: Array = features.float().mean(dim=[axis for axis in range(features.dim()) if axis != channel]).numpy()
    return mean_C
