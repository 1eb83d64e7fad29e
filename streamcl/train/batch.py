"""Samples as tensors: encoded once, at ingest; collated into batches, in training.

An encoded row holds the token ids of prompt and answer and every other model input (the tower's features in place of
the pixels), so that training, replay and scoring never decode an image again.

Shapes: N samples, L tokens, T image tokens, C feature channels, E embedding width.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from streamcl.detect.embed import embed
from streamcl.train.model import Base, CachedTower
from streamcl.types import SAMPLE_SCHEMA, Message, Sample, from_batch

ENCODED_SCHEMA = pa.schema(
    [
        *SAMPLE_SCHEMA,
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("answer_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("inputs", pa.binary(), nullable=False),
    ]
)
"""A sample and its model inputs. `inputs`: safetensors of what the processor gave beside the ids, for one sample."""

IGNORED = -100
"""Label of a position whose prediction is not scored."""


@dataclass(frozen=True)
class Encoded:
    """Encoded samples and what the detector watches of them."""

    batch: pa.RecordBatch
    """Rows of ENCODED_SCHEMA."""
    embeddings_NE: np.ndarray[Any, np.dtype[np.float32]]


def chat(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages in the form that transformers' chat templates read."""
    return [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text} if part.type == "text" else {"type": "image"}
                for part in message.content
            ],
        }
        for message in messages
    ]


class Encoder:
    """Turns samples into encoded rows with the base's processor and frozen tower."""

    def __init__(self, base: Base, *, chunk: int = 64) -> None:
        self.base, self.chunk = base, chunk
        self.tokenizer = base.processor.tokenizer
        self.table_VE = base.model.get_input_embeddings().weight.detach().float().cpu().numpy()
        tower = getattr(base.model.model, "vision_tower", None)
        self.tower = tower if isinstance(tower, CachedTower) else None

    def encode(self, samples: pa.RecordBatch) -> Encoded:
        """Rows of SAMPLE_SCHEMA as encoded rows, and their embeddings."""
        rows, embeddings = [], []
        parsed = from_batch(samples)
        for start in range(0, len(parsed), self.chunk):
            part = parsed[start : start + self.chunk]
            inputs = [self._inputs(sample) for sample in part]
            self._cache_features(inputs)
            for sample, (prompt, tensors) in zip(part, inputs, strict=True):
                embeddings.append(embed(tensors.get("pixel_values"), prompt, self.table_VE))
                answer, inputs_bytes = self._answer(sample), save_safetensors(tensors)
                rows.append({"prompt_ids": prompt, "answer_ids": answer, "inputs": inputs_bytes})
        extra = pa.RecordBatch.from_pylist(rows, schema=pa.schema([*ENCODED_SCHEMA][len(SAMPLE_SCHEMA) :]))
        batch = pa.RecordBatch.from_arrays([*samples.columns, *extra.columns], schema=ENCODED_SCHEMA)
        return Encoded(batch, np.stack(embeddings) if embeddings else np.zeros((0, 0), np.float32))

    def _inputs(self, sample: Sample) -> tuple[list[int], dict[str, Tensor]]:
        """Prompt ids, and the other model inputs of one sample."""
        text = self.base.processor.apply_chat_template(
            chat(sample.messages[:-1]), add_generation_prompt=True, tokenize=False
        )
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in sample.images]
        output = self.base.processor(text=[text], images=images or None, return_tensors="pt")
        ids = output.pop("input_ids")[0].tolist()
        return ids, {name: value for name, value in output.items() if name != "attention_mask"}

    def _cache_features(self, inputs: list[tuple[list[int], dict[str, Tensor]]]) -> None:
        """Replaces pixels by half-precision tower features, in place, one tower pass for all."""
        with_images = [tensors for _, tensors in inputs if "pixel_values" in tensors]
        if self.tower is None or not with_images:
            return
        counts = [len(tensors["pixel_values"]) for tensors in with_images]
        pixels = torch.cat([tensors["pixel_values"] for tensors in with_images]).to(self.base.device)
        features = self.tower(pixels, output_hidden_states=self.tower.layer, return_dict=True).last_hidden_state
        for tensors, part in zip(with_images, features.half().cpu().split(counts), strict=True):
            tensors["pixel_values"] = part.clone(memory_format=torch.contiguous_format)

    def _answer(self, sample: Sample) -> list[int]:
        ids: list[int] = self.tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]


@dataclass(frozen=True)
class Row:
    """One encoded sample in memory."""

    id: str
    prompt_ids: Tensor
    answer_ids: Tensor
    inputs: dict[str, Tensor]


def to_rows(table: pa.RecordBatch | pa.Table) -> list[Row]:
    """Encoded Arrow rows as tensors."""
    columns = [table.column(name).to_pylist() for name in ("id", "prompt_ids", "answer_ids", "inputs")]
    return [
        Row(id, torch.tensor(prompt), torch.tensor(answer), load_safetensors(inputs))
        for id, prompt, answer, inputs in zip(*columns, strict=True)
    ]


def collate(rows: Sequence[Row], *, pad_id: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Rows as one batch: input_ids and attention_mask [N, L], labels [N, K], and the other inputs.

    Padding is on the left, so that the answers end together: the last K tokens hold every answer, and `labels` is
    theirs, IGNORED before an answer that is shorter than K.
    """
    ids = [torch.cat([row.prompt_ids, row.answer_ids]).long() for row in rows]
    input_ids = pad_sequence(ids, batch_first=True, padding_value=pad_id, padding_side="left")
    lengths = torch.tensor([len(row) for row in ids])
    longest = input_ids.shape[1]
    answers = [row.answer_ids.long() for row in rows]
    batch = {
        "input_ids": input_ids,
        "attention_mask": (torch.arange(longest)[None] >= longest - lengths[:, None]).long(),
        "labels": pad_sequence(answers, batch_first=True, padding_value=IGNORED, padding_side="left"),
    }
    names = {name for row in rows for name in row.inputs}
    batch |= {name: torch.cat([row.inputs[name] for row in rows if name in row.inputs]) for name in sorted(names)}
    return {name: value.to(device) for name, value in batch.items()}


def answer_logits(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The logits [N, K, V] that predict `labels` [N, K], and those labels; only the last positions are computed."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"]
    logits: Tensor = model(**inputs, logits_to_keep=labels.shape[1] + 1).logits
    return logits[:, -labels.shape[1] - 1 : -1], labels
