"""Answers do not depend on neighbours; draws follow the softmax and the seed; an answer ends where it should."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_llava import QUESTION, Files, ask, busy, digest, png

from streamcl.errors import BadSample
from streamcl.serve.engine import Engine, Request
from streamcl.serve.generate import Draw
from streamcl.types import Message, Part


def test_neighbours_do_not_change_an_answer(engine: Engine, versions: Mapping[int, Files]) -> None:
    """Greedy and sampled, with and without images, of many lengths, all in one batch."""
    engine.load(1, digest(1), versions[1])
    requests = [
        ask("a" * 3 * index, images=(png(index),) * (index % 3), max_tokens=3 + index, temperature=index % 2, seed=7)
        for index in range(8)
    ]
    alone = [engine.answer([request])[0] for request in requests]
    with busy(engine):
        futures = [engine.submit(request) for request in requests]
    assert [future.result() for future in futures] == alone


def test_seeds_reproduce_and_differ(engine: Engine) -> None:
    warm = ask("colour?", temperature=1.0, max_tokens=16)
    texts = [engine.answer([replace(warm, seed=seed)])[0].text for seed in (0, 0, 1, 2)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0, 1.0]])
    draw = Draw(ask("x", temperature=0.5, seed=3))
    counts = np.bincount([int(draw.noisy(logits[0]).argmax()) for _ in range(20_000)], minlength=4)
    np.testing.assert_allclose(counts / 20_000, torch.softmax(logits[0] / 0.5, 0).numpy(), atol=0.01)


def test_an_answer_ends_at_its_limit_or_before_its_stop_string(engine: Engine) -> None:
    whole = engine.answer([replace(QUESTION, max_tokens=12)])[0]
    assert (whole.finish_reason, whole.completion_tokens, len(whole.text)) == ("length", 12, 12)
    short = engine.answer([replace(QUESTION, max_tokens=5)])[0]
    assert (short.text, short.finish_reason, short.completion_tokens) == (whole.text[:5], "length", 5)
    word = whole.text[6:8]
    cut = engine.answer([replace(QUESTION, max_tokens=12, stop=("~~~", word))])[0]
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(word)]
    assert cut.prompt_tokens == whole.prompt_tokens
    assert cut.completion_tokens == len(cut.text) + 2


def test_the_end_of_sequence_ends_an_answer(engine: Engine) -> None:
    """A hot sample meets the end token, one of 99, soon; the text does not show it."""
    answers = engine.answer([ask("go", max_tokens=200, temperature=50.0, seed=seed) for seed in range(8)])
    ended = [answer for answer in answers if answer.finish_reason == "stop"]
    assert ended
    assert all(answer.completion_tokens <= 200 and "<" + "end>" not in answer.text for answer in answers)


def test_requests_that_do_not_fit_are_refused_alone(engine: Engine) -> None:
    with pytest.raises(BadSample, match="shorten the messages"):
        engine.submit(ask("x" * 300))
    with pytest.raises(BadSample, match="1 image parts but 0 images"):
        Request((Message("user", (Part("image"),)),))
    with pytest.raises(BadSample, match="max_tokens"):
        ask("x", max_tokens=0)
    assert engine.answer([ask("x")])[0].version == 0
