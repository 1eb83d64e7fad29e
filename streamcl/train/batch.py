"""Samples as tensors: encoded once, at ingest; collated into batches, in training.

An encoded row holds the token ids of prompt and answer and every other model input (the tower's features in place of
the pixels), so that training, replay and scoring never decode an image again.

Shapes: N samples, L tokens, T image tokens, C feature channels, E embedding width.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jinja2 import TemplateError
from PIL import Image
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from streamcl.detect.embed import Array, channels_of, embed
from streamcl.train.model import Base, CachedTower
from streamcl.train.prompts import prefixed
from streamcl.types import SAMPLE_SCHEMA, Message, Part, Sample, from_batch

ENCODED_SCHEMA = pa.schema(
    [
        *SAMPLE_SCHEMA,
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("answer_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("inputs", pa.binary(), nullable=False),
    ]
)
"""A sample and its model inputs. `inputs`: safetensors of what the processor gave beside the ids, for one sample."""
TRAINED = ["id", "prompt_ids", "answer_ids", "inputs"]
"""The columns that training reads."""

IGNORED = -100
"""Label of a position whose prediction is not scored."""


@dataclass(frozen=True)
class Encoded:
    """Encoded samples and what the detector watches of them."""

    batch: pa.RecordBatch
    """Rows of ENCODED_SCHEMA."""
    embeddings_NE: Array
    """E is the same for every sample of a model, with or without an image. Always finite."""
    refused: tuple[tuple[int, str], ...] = ()
    """Samples that are not in `batch`: their row, and why the model cannot take them."""


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

    def __init__(self, base: Base, *, chunk: int = 16) -> None:
        """`chunk`: samples in one pass of the tower; more are slower on a CPU."""
        self.base, self.chunk = base, chunk
        self.tokenizer = base.processor.tokenizer
        self.table_VE = base.model.get_input_embeddings().weight.detach().float().cpu().numpy()
        self.spread = max(float(self.table_VE.std()), 1e-8)
        tower = getattr(base.model.model, "vision_tower", None)
        self.tower = tower if isinstance(tower, CachedTower) else None

    def encode(self, samples: pa.RecordBatch) -> Encoded:
        """Rows of SAMPLE_SCHEMA as encoded rows, and their embeddings.

        Refused are samples that the processor does not take (a system message that the chat template does not know) and
        those whose features hold NaN or infinity: one of these would cost its whole window.
        """
        parsed = from_batch(samples)
        found: list[tuple[dict[str, Any], Array] | str] = []
        for start in range(0, len(parsed), self.chunk):
            found += self._encoded(parsed[start : start + self.chunk])
        taken = [one for one in found if not isinstance(one, str)]
        extra_schema = pa.schema([*ENCODED_SCHEMA][len(SAMPLE_SCHEMA) :])
        extra = pa.RecordBatch.from_pylist([row for row, _ in taken], schema=extra_schema)
        kept = samples.filter(pa.array([not isinstance(one, str) for one in found], pa.bool_()))
        return Encoded(
            pa.RecordBatch.from_arrays([*kept.columns, *extra.columns], schema=ENCODED_SCHEMA),
            np.stack([embedding for _, embedding in taken]) if taken else np.zeros((0, 0), np.float32),
            tuple((row, one) for row, one in enumerate(found) if isinstance(one, str)),
        )

    def _encoded(self, samples: Sequence[Sample]) -> list[tuple[dict[str, Any], Array] | str]:
        """Of each sample its model inputs and embedding, or why it is refused."""
        inputs = [self._accepted(sample) for sample in samples]
        self._cache_features([one[1] for one in inputs if not isinstance(one, str)])
        found: list[tuple[dict[str, Any], Array] | str] = []
        for sample, one in zip(samples, inputs, strict=True):
            if isinstance(one, str):
                found.append(one)
                continue
            prompt, tensors = one
            features = tensors.get("pixel_values")
            image_C = np.zeros(self.channels, np.float32) if features is None else channels_of(features)
            embedding = embed(image_C, prompt, self.table_VE, spread=self.spread)
            row = {"prompt_ids": prompt, "answer_ids": self._answer(sample), "inputs": save_safetensors(tensors)}
            found.append((row, embedding) if np.isfinite(embedding).all() else "its features hold NaN or infinity")
        return found

    def _accepted(self, sample: Sample) -> tuple[list[int], dict[str, Tensor]] | str:
        """`_inputs`, or why the processor refuses the sample."""
        try:
            return self._inputs(sample)
        except (ValueError, TemplateError) as error:
            return f"the model's processor refuses it: {str(error)[:200]!r}"

    @cached_property
    def channels(self) -> int:
        """Width of an embedding's image half, found on a grey picture; 0 where the processor takes none."""
        picture = io.BytesIO()
        Image.new("RGB", (64, 64), (128, 128, 128)).save(picture, "PNG")
        user, told = Message("user", (Part("image"), Part("text", "?"))), Message("assistant", (Part("text", "!"),))
        probe = self._accepted(Sample("", (user, told), (picture.getvalue(),)))
        if isinstance(probe, str) or "pixel_values" not in probe[1]:
            return 0
        self._cache_features([probe[1]])
        return len(channels_of(probe[1]["pixel_values"]))

    def _inputs(self, sample: Sample) -> tuple[list[int], dict[str, Tensor]]:
        """Prompt ids, and the other model inputs of one sample."""
        text = self.base.processor.apply_chat_template(
            chat(sample.messages[:-1]), add_generation_prompt=True, tokenize=False
        )
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in sample.images]
        output = self.base.processor(text=[text], images=images or None, return_tensors="pt")
        ids = output.pop("input_ids")[0].tolist()
        return ids, {name: value for name, value in output.items() if name != "attention_mask"}

    def _cache_features(self, inputs: list[dict[str, Tensor]]) -> None:
        """Replaces pixels by half-precision tower features, in place, one tower pass for all."""
        with_images = [tensors for tensors in inputs if "pixel_values" in tensors]
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
    ids, prompts, answers, inputs = (table.column(name) for name in TRAINED)
    columns = ids.to_pylist(), _tokens(prompts), _tokens(answers), inputs.to_pylist()
    return [
        Row(id, prompt, answer, load_safetensors(extra)) for id, prompt, answer, extra in zip(*columns, strict=True)
    ]


def _tokens(lists: pa.Array | pa.ChunkedArray) -> list[Tensor]:
    """Each row's token ids, int64."""
    ids = torch.from_numpy(pc.list_flatten(lists).to_numpy().astype(np.int64))
    return list(torch.split(ids, pc.list_value_length(lists).to_pylist()))


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
    inputs = prefixed(model, inputs, labels != IGNORED)
    last = inputs["input_ids"].shape[1] - 1
    at_K = torch.arange(last - labels.shape[1], last, device=labels.device)  # by index: a slice is not contiguous
    logits: Tensor = model(**inputs, logits_to_keep=at_K).logits
    return logits, labels
