"""Samples on their way through the encoder: one width for all, and what the model cannot take is a dead letter."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from streamcl import zoo
from streamcl.cluster.ingest import sizes, with_refused
from streamcl.stream.base import Polled
from streamcl.train.batch import Encoder, collate, to_rows
from streamcl.train.model import Base, load_base
from streamcl.train.settings import ModelConfig
from streamcl.types import DeadLetter, Message, Part, Sample, from_batch, to_batch

torch.set_num_threads(1)
TALK = (Message("user", (Part("text", "What?"),)), Message("assistant", (Part("text", "That."),)))


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(ModelConfig(zoo.resolve("zoo:small"), register="streamcl.zoo.tower"))


@pytest.fixture(scope="module")
def pictures() -> list[Sample]:
    return from_batch(zoo.load_task("animals", "train").slice(0, 4))


def text(name: str, **fields: Any) -> Sample:
    return Sample(name, fields.pop("messages", TALK), (), source="s", partition="p", **fields)


class Pixels(Encoder):
    """An encoder of a model whose tower is out of reach: it keeps the pixels."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self.tower = None


@pytest.mark.parametrize(("kind", "channels"), [(Encoder, 320), (Pixels, 3)])
def test_samples_with_and_without_an_image_have_embeddings_of_one_width(
    base: Base, pictures: list[Sample], kind: type[Encoder], channels: int
) -> None:
    mixed = kind(base).encode(to_batch([text("a"), pictures[0], text("b"), pictures[1]]))
    alone = kind(base).encode(to_batch([text("a")]))  # no picture was ever seen
    seen = kind(base).encode(to_batch(pictures[:2]))
    assert mixed.embeddings_NE.shape == (4, channels + 576)
    assert (mixed.embeddings_NE[::2, :channels] == 0).all()
    assert np.array_equal(alone.embeddings_NE[0], mixed.embeddings_NE[0])
    assert np.allclose(seen.embeddings_NE, mixed.embeddings_NE[1::2], atol=1e-3)
    assert mixed.refused == ()


def test_a_mixed_batch_is_collated(base: Base, pictures: list[Sample]) -> None:
    rows = to_rows(Encoder(base).encode(to_batch([text("a"), pictures[0]])).batch)
    batch = collate(rows, pad_id=0)
    assert (len(batch["input_ids"]), len(batch["pixel_values"])) == (2, 1)


class BrokenTower(Encoder):
    """Its tower gives NaN for one picture, as an overflow in half precision does. Mutable."""

    def _cache_features(self, inputs: list[Any]) -> None:
        super()._cache_features(inputs)
        with_images = [tensors for tensors in inputs if "pixel_values" in tensors]
        for tensors in with_images[1:2]:
            tensors["pixel_values"][0, 0, 0] = torch.inf


def test_what_the_model_cannot_take_is_refused_with_a_reason_and_the_others_stay(
    base: Base, pictures: list[Sample]
) -> None:
    samples = [text("a"), *pictures[:3], text("b")]
    encoded = BrokenTower(base).encode(to_batch(samples))
    assert encoded.batch["id"].to_pylist() == ["a", pictures[0].id, pictures[2].id, "b"]
    assert encoded.refused == ((2, "its features hold NaN or infinity"),)
    assert np.isfinite(encoded.embeddings_NE).all()
    assert len(encoded.embeddings_NE) == 4


def test_a_chat_template_that_refuses_a_sample_does_not_end_the_run(base: Base) -> None:
    template = "{{ raise_exception('no system role') if messages[0].role == 'system' else 'USER:' }}"
    encoder = Encoder(base)
    told = base.processor.apply_chat_template

    def apply(messages: Any, **options: Any) -> Any:
        return told(messages, chat_template=template, **options)

    call = SimpleNamespace(apply_chat_template=apply, tokenizer=encoder.tokenizer)
    processor = type("Strict", (), {"__call__": lambda self, **given: base.processor(**given), **vars(call)})()
    processor.apply_chat_template = apply
    encoder.base = replace(base, processor=processor)
    strict = text("strict", messages=(Message("system", (Part("text", "Be."),)), *TALK))
    encoded = encoder.encode(to_batch([text("a"), strict, text("b")]))
    assert encoded.batch["id"].to_pylist() == ["a", "b"]
    ((row, why),) = encoded.refused
    assert row == 1
    assert "no system role" in why


def test_refused_rows_become_dead_letters_between_those_of_the_reader() -> None:
    rows = [replace(text(name), position=position) for name, position in (("a", 1), ("b", 3), ("c", 5))]
    dead = (DeadLetter("schema: x", "x", "s", "p", 2), DeadLetter("schema: y", "y", "s", "p", 4))
    letters = with_refused(Polled(to_batch(rows), dead), [(1, "its features hold NaN or infinity")])
    assert [(letter.id, letter.position) for letter in letters] == [("x", 2), ("b", 3), ("y", 4)]
    assert letters[1].reason == "encode: its features hold NaN or infinity"
    assert "What?" in letters[1].payload


def test_the_size_of_a_row_is_what_its_parts_weigh(base: Base, pictures: list[Sample]) -> None:
    encoded = Encoder(base).encode(to_batch([text("a"), *pictures[:2], text("b")])).batch
    weighed = [
        sum(map(len, row["images"])) + len(row["inputs"]) + 4 * (len(row["prompt_ids"]) + len(row["answer_ids"]))
        for row in encoded.to_pylist()
    ]
    assert sizes(encoded).tolist() == weighed
    assert sizes(encoded.slice(1, 2)).tolist() == weighed[1:3]
    assert sizes(encoded.slice(0, 0)).tolist() == []
