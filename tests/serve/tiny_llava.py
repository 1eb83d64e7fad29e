"""A random LLaVA of some 60,000 weights, requests to it and files of its versions."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from streamcl.serve.engine import Engine, Request
from streamcl.train.model import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from streamcl.train.settings import LoRA
from streamcl.types import Message, Part

Files = Mapping[str, bytes]
"""A version: file name to content."""
LORA = LoRA(r=4, alpha=8, targets=r".*language_model.*\.(q_proj|v_proj|down_proj)")
SPECIAL = ["<pad>", "<end>", "<image>", "<unk>"]
CHAT = (
    "{% for message in messages %}{{ message['role'] }}:"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %};"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def ask(text: str, *, images: tuple[bytes, ...] = (), **settings: object) -> Request:
    """A request of one user message: its images, then its text."""
    parts = (*[Part("image")] * len(images), Part("text", text))
    return Request((Message("user", parts),), images, **settings)  # type: ignore[arg-type]


def png(shade: int, *, side: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 255 - shade, 128)).save(buffer, "PNG")
    return buffer.getvalue()


def processor() -> LlavaProcessor:
    letters = [chr(code) for code in range(32, 127)]
    vocab = {token: index for index, token in enumerate([*SPECIAL, *letters])}
    letter = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    letter.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    letter.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letter, pad_token="<pad>", eos_token="<end>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"}, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    side = {"height": 32, "width": 32}
    images = LlavaImageProcessorPil(size=side, crop_size=side)
    return LlavaProcessor(
        images, tokenizer, patch_size=16, vision_feature_select_strategy="full", num_additional_image_tokens=1,
        chat_template=CHAT,
    )  # fmt: skip


def save_checkpoint(folder: Path) -> None:
    """Writes the random model and its processor."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=len(SPECIAL) + 95, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.5, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=16
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=2, image_seq_length=5, vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor().save_pretrained(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a version folder that the engine reads."""
    return {name: (folder / name).read_bytes() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}


QUESTION = ask("What is this?", images=(png(200),), max_tokens=12)


def digest(number: int) -> str:
    return f"{number:064x}"


@contextmanager
def busy(engine: Engine) -> Iterator[None]:
    """Keeps the compute thread from its next turn."""
    gate, held = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        assert gate.wait(30)

    holder = threading.Thread(target=engine.between_steps, args=(hold,))
    holder.start()
    assert held.wait(30)
    yield
    gate.set()
    holder.join()
