"""A LLaVA of any size with random weights, and real samples encoded for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

import streamcl.zoo.tower  # noqa: F401  # lets transformers load the zoo's processor
from streamcl import zoo
from streamcl.train.batch import Encoder, Row, to_rows
from streamcl.train.model import Base, CachedTower


@dataclass(frozen=True)
class Size:
    """What is measured, and how often."""

    model: dict[str, Any]
    """Fields of LlavaConfig that are not LLaVA-1.5-7B's."""
    batch: int = 8
    rows: int = 64
    """Samples; a turn passes them twice."""
    pairs: int = 24
    """Paired steps of a strategy."""


SEVEN = Size({})
TINY = Size(
    {"text_config": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
                     "num_key_value_heads": 4, "head_dim": 16, "vocab_size": 8192, "model_type": "llama"},
     "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
                       "image_size": 56, "patch_size": 14, "model_type": "clip_vision_model"},
     "image_seq_length": 16}, batch=4, rows=24, pairs=3,
)  # fmt: skip


def gpu_name() -> str | None:
    """The first GPU's name, None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def random_base(size: Size, device: str) -> Base:
    """A LLaVA with random weights and the zoo's tokenizer."""
    small = AutoProcessor.from_pretrained(zoo.resolve("zoo:small"))
    config = LlavaConfig(**size.model, image_token_index=small.image_token_id)
    config.text_config.pad_token_id = small.tokenizer.pad_token_id
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlavaForConditionalGeneration(config).requires_grad_(False).eval()
    torch.set_default_dtype(before)
    model.model.vision_tower = CachedTower(model.model.vision_tower, config.vision_feature_layer)
    side = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    processor = LlavaProcessor(
        LlavaImageProcessorPil(size=side, crop_size=side), small.tokenizer, patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=small.chat_template,
    )  # fmt: skip
    return Base(model, processor, "random")


def rows_of(base: Base, count: int, *, features: bool = True, task: str = "animals") -> list[Row]:
    """Real pictures and questions, with the tower's features or with pixels."""
    encoder = Encoder(base)
    if not features:
        encoder.tower = None
    samples = zoo.load_task(task, "train").slice(0, count).combine_chunks().to_batches()[0]
    return to_rows(encoder.encode(samples).batch)
