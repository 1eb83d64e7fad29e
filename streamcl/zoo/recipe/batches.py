"""Rows, cached features of the frozen tower, and a forward pass that computes logits only where an answer is predicted.

Shapes: N images, B rows of a batch, T tokens, L = 16 image tokens, C = 320 channels, A answer tokens of a whole batch,
V vocabulary, D width of the language model.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random

import torch
from PIL import Image
from rich.progress import track
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaProcessor

NOISE = 0.15
"""Deviation of the noise on the standardised features: a picture is never seen twice alike."""


@dataclass(frozen=True)
class Row:
    """One example as tokens: a prompt with its image tokens, then the answer and the end of the turn."""

    tokens: tuple[int, ...]
    answer: int
    """How many of the last tokens are to be predicted."""
    picture: int
    """Which of the cached features it looks at."""


def encode(processor: LlavaProcessor, question: str, answer: str, picture: int) -> Row:
    """The row that the processor's chat template makes of a question about an image."""
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    told = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    prompt = processor.apply_chat_template([asked], add_generation_prompt=True)
    whole = processor.apply_chat_template([asked, told])
    assert whole.startswith(prompt)
    places = processor.image_token * 16
    before, after = (
        [*processor.tokenizer(text.replace(processor.image_token, places))["input_ids"]] for text in (prompt, whole)
    )
    return Row(tuple(after), len(after) - len(before), picture)


@torch.inference_mode()
def features(model: LlavaForConditionalGeneration, processor: LlavaProcessor, images: Sequence[bytes]) -> torch.Tensor:
    """What the tower sees in each image, as `[N, L, C]` in half precision, where the tower is."""
    tower = model.model.vision_tower.to(memory_format=torch.channels_last)
    threads = torch.get_num_threads()

    def pixels(start: int) -> torch.Tensor:
        pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in images[start : start + 32]]
        chunk: torch.Tensor = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        return chunk.contiguous(memory_format=torch.channels_last)

    starts, seen = range(0, len(images), 32), []
    with ThreadPoolExecutor(threads) as pool:
        for at in track(range(0, len(starts), threads), "looking at images"):
            for chunk in pool.map(pixels, starts[at : at + threads]):
                seen.append(tower(chunk.to(tower.device)).last_hidden_state.half())
    return torch.cat(seen)


def shuffled(rows: Sequence[Row], size: int, random: Random) -> Iterator[list[Row]]:
    """Every row once, in batches of rows of nearly one length, so that little is padded."""
    order = random.sample(rows, len(rows))
    pools = [
        sorted(order[at : at + 32 * size], key=lambda row: len(row.tokens)) for at in range(0, len(order), 32 * size)
    ]
    batches = [pool[at : at + size] for pool in pools for at in range(0, len(pool), size)]
    yield from random.sample(batches, len(batches))


def answer_logits(
    model: LlavaForConditionalGeneration, rows: Sequence[Row], features_NLC: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits `[A, V]` of every answer token given those before it, the tokens themselves, and the row of each."""
    width, device = max(len(row.tokens) for row in rows), features_NLC.device
    tokens_BT = torch.tensor([[*row.tokens, *[0] * (width - len(row.tokens))] for row in rows], device=device)
    mask_BT = torch.tensor([[1] * len(row.tokens) + [0] * (width - len(row.tokens)) for row in rows], device=device)
    hidden_BTD = hidden(model, tokens_BT, mask_BT, features_NLC)
    where = [(b, t) for b, row in enumerate(rows) for t in range(len(row.tokens) - row.answer, len(row.tokens))]
    row_A, at_A = torch.tensor(where, device=device).unbind(dim=1)
    return model.lm_head(hidden_BTD[row_A, at_A - 1]), tokens_BT[row_A, at_A], row_A


def hidden(
    model: LlavaForConditionalGeneration,
    tokens_BT: torch.Tensor,
    mask_BT: torch.Tensor | None,
    features_NLC: torch.Tensor,
) -> torch.Tensor:
    """What the language model makes of tokens and features, as `[B, T, D]`. No mask: padding is on the right."""
    embedded = model.get_input_embeddings()(tokens_BT)
    image = model.model.multi_modal_projector(features_NLC)
    places = (tokens_BT == model.config.image_token_id).unsqueeze(-1)
    embedded = embedded.masked_scatter(places, image.to(embedded.dtype))
    language = model.model.language_model
    hidden_BTD: torch.Tensor = language(
        inputs_embeds=embedded, attention_mask=mask_BT, use_cache=False
    ).last_hidden_state
    return hidden_BTD


def loss(model: LlavaForConditionalGeneration, rows: Sequence[Row], features_NLC: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens."""
    logits_AV, tokens_A, _ = answer_logits(model, rows, features_NLC)
    return functional.cross_entropy(logits_AV.float(), tokens_A)


@torch.inference_mode()
def exact_match(model: LlavaForConditionalGeneration, rows: Sequence[Row], features_NLC: torch.Tensor) -> float:
    """Share of rows whose greedy answer equals the label: each token is the likeliest after the right ones."""
    right = 0
    for start in range(0, len(rows), 100):
        batch = rows[start : start + 100]
        looked = features_NLC[[row.picture for row in batch]].float()
        logits_AV, tokens_A, row_A = answer_logits(model, batch, looked)
        wrong = set(row_A[logits_AV.argmax(dim=-1) != tokens_A].tolist())
        right += len(batch) - len(wrong)
    return right / len(rows)
