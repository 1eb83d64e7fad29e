"""What a detector watches: one vector a sample, from the frozen base model itself.

The image half is the tower's features, averaged over tokens; the text half is the mean embedding of the prompt's
tokens. No second model is needed. Each half has about unit variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.float32]]


def embed(features: Tensor | None, prompt_ids: Sequence[int], table_VE: Array) -> Array:
    """The embedding [C + E] of one sample, float32.

    `features`: [images, T, C] of the tower (or pixels [images, 3, H, W], which are averaged per channel), or None for a
    sample without an image. `table_VE`: the model's token embeddings.
    """
    text_E = table_VE[np.asarray(prompt_ids)].mean(axis=0) / max(float(table_VE.std()), 1e-8)
    if features is None:
        return np.asarray(text_E, np.float32)
    axes = (0, 1) if features.dim() == 3 else (0, 2, 3)
    image_C = features.float().mean(dim=axes).numpy()
    return np.concatenate([image_C, text_E]).astype(np.float32)
