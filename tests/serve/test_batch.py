"""The running batch: who joins, leaves or sits beside another version changes nobody's answer; text comes at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest
import torch
from test_pools import pool as pool
from tiny_llava import LORA, QUESTION, Files, ask, busy, digest, png

from streamcl.errors import Busy, NoSuchVersion
from streamcl.serve.engine import Engine
from streamcl.serve.text import Text
from streamcl.train.model import Base


def at_step(base: Base, number: int, call: Callable[[], object]) -> None:
    """Calls `call` on the compute thread during forward pass `number`, counted from now."""
    passes = iter(range(1000))

    def look(*_: object) -> None:
        if next(passes) == number:
            call()

    base.model.register_forward_pre_hook(look)


def test_latecomers_change_no_answer(fresh_base: Callable[[], Base], versions: Mapping[int, Files]) -> None:
    """One request joins at every step of a long one; they leave at different times, the long one too."""
    base = fresh_base()
    engine = Engine(base, LORA, max_batch=4)
    engine.load(1, digest(1), versions[1])
    requests = [
        ask("x" * (1 + 37 * index % 60), images=(png(index),) * (index % 3), max_tokens=1 + 7 * index % 12,
            temperature=(index % 4 == 0) * 1.0, seed=index)
        for index in range(16)
    ]  # fmt: skip
    alone = [engine.answer([request])[0] for request in requests]
    waiting, widths = iter(requests), list[int]()
    futures = []

    def submit_one(*_: object) -> None:
        widths.append(len(engine._batch.rows))
        if request := next(waiting, None):
            futures.append(engine.submit(request))

    handle = base.model.register_forward_pre_hook(submit_one)
    engine.answer([ask("long", max_tokens=40)])
    handle.remove()
    assert [future.result() for future in futures] == alone
    assert max(widths) == 4
    engine.close()


def test_versions_side_by_side_answer_as_alone(
    fresh_base: Callable[[], Base], versions: Mapping[int, Files], pool: Callable[..., Files]
) -> None:
    """Two LoRAs of one form, one of another, a pool of prompts and the bare base, in one batch."""
    engine = Engine(fresh_base(), LORA)
    held = {1: versions[1], 2: versions[2], 3: pool(5)}
    for number, files in held.items():
        engine.load(number, digest(number), files)
    requests = [
        ask(f"question {index}", images=(png(index),) * (index % 2), max_tokens=9, version=index % 4, seed=index,
            temperature=index % 2)
        for index in range(8)
    ]  # fmt: skip
    alone = [engine.answer([request])[0] for request in requests]
    with busy(engine):
        futures = [engine.submit(request) for request in requests]
    together = [future.result() for future in futures]
    assert together == alone
    assert [response.version for response in together] == [0, 1, 2, 3] * 2
    assert len({response.text for response in engine.answer([replace(QUESTION, version=n) for n in range(4)])}) == 4
    engine.close()


def test_a_flip_during_an_answer_changes_only_the_next(
    fresh_base: Callable[[], Base], versions: Mapping[int, Files]
) -> None:
    base = fresh_base()
    engine = Engine(base, LORA)
    for number in (1, 2):
        engine.load(number, digest(number), versions[number], live=False)
    expected = [engine.answer([replace(QUESTION, version=number)])[0] for number in (1, 2)]
    engine.flip(1)
    at_step(base, 4, lambda: (engine.flip(2), later.append(engine.submit(QUESTION))))
    later: list = []
    assert [engine.submit(QUESTION).result(), later[0].result()] == expected
    engine.close()


def test_a_pinned_version_is_fetched_and_the_idle_one_goes(
    fresh_base: Callable[[], Base], versions: Mapping[int, Files]
) -> None:
    fetched = []

    def fetch(number: int) -> tuple[str, Files]:
        if number not in versions:
            raise NoSuchVersion(f"no version {number}")
        fetched.append(number)
        return digest(number), versions[number]

    engine = Engine(fresh_base(), LORA, slots=3, fetch=fetch)
    engine.load(1, digest(1), versions[1])
    for number in (2, 3, 2, 4):
        answer = engine.answer([replace(QUESTION, version=number)])[0]
        assert (answer.version, answer.digest) == (number, digest(number))
    assert fetched == [2, 3, 4]  # 2 was asked for last when 4 came, so 3 went
    assert [label[0] for label in engine.versions] == [1, 2, 4]
    assert engine.version[0] == 1
    for wrong in (lambda: engine.submit(replace(QUESTION, version=9)), lambda: engine.flip(3)):
        with pytest.raises(NoSuchVersion):
            wrong()
    with busy(engine):
        kept = [engine.submit(replace(QUESTION, version=number)) for number in (2, 4)]
        with pytest.raises(Busy, match=r"serve\.slots"):
            engine.submit(replace(QUESTION, version=3))
    assert [future.result().version for future in kept] == [2, 4]
    assert engine.answer([replace(QUESTION, version=3)])[0].version == 3
    engine.close()


def test_a_load_waits_for_a_slot(fresh_base: Callable[[], Base], versions: Mapping[int, Files]) -> None:
    base = fresh_base()
    engine = Engine(base, LORA, slots=2)
    engine.load(1, digest(1), versions[1])
    engine.load(2, digest(2), versions[2], live=False)
    loader = threading.Thread(target=engine.load, args=(3, digest(3), versions[3]))
    with busy(engine):
        pinned = engine.submit(replace(QUESTION, version=2))
        loader.start()
    assert pinned.result().version == 2
    loader.join()
    assert engine.version == (3, digest(3))
    engine.close()


def test_text_comes_piece_by_piece_and_is_the_answer(engine: Engine) -> None:
    whole = engine.answer([QUESTION])[0]
    heard: list[tuple[str, tuple[int, str]]] = []
    word = whole.text[6:9]
    for request, text in ((QUESTION, whole.text), (replace(QUESTION, stop=(word,)), whole.text[:6])):
        heard.clear()
        response = engine.submit(request, lambda piece, label: heard.append((piece, label))).result()
        assert "".join(piece for piece, _ in heard) == response.text == text
        assert {label for _, label in heard} == {engine.version}
        assert len(heard) > 4


def test_a_cancelled_answer_ends_before_its_next_token(fresh_base: Callable[[], Base]) -> None:
    base, passes = fresh_base(), list[None]()
    engine = Engine(base, LORA)
    base.model.register_forward_pre_hook(lambda *_: passes.append(None))
    at_step(base, 3, lambda: answers[0].cancel())
    with busy(engine):
        answers = [engine.submit(ask("long", max_tokens=100)), engine.submit(ask("short", max_tokens=6))]
    assert answers[1].result().completion_tokens == 6
    with pytest.raises(CancelledError):
        answers[0].result()
    assert len(passes) == 6
    assert not engine._loaded.live.requests
    engine.close()


def test_a_failed_step_fails_all_who_shared_it_and_no_other(fresh_base: Callable[[], Base]) -> None:
    base = fresh_base()
    engine = Engine(base, LORA)
    at_step(base, 2, lambda: 1 / 0)
    with busy(engine):
        answers = [engine.submit(ask("a", max_tokens=9)), engine.submit(ask("b", max_tokens=2))]
    with pytest.raises(ZeroDivisionError):
        answers[0].result()
    assert answers[1].result().completion_tokens == 2
    assert engine.answer([QUESTION])[0].completion_tokens == 12
    engine.close()


class Letters:
    """A tokenizer of bytes."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("a fox", (), ["a", " ", "f", "o", "x", ""]),
        ("aé", (), ["a", "", "é", ""]),
        ("xEND", ("END",), ["x", "", "", ""]),
        ("xENd", ("END",), ["x", "", "", "ENd", ""]),
        ("xEN", ("END",), ["x", "", "", "EN"]),
        ("aab", ("ab",), ["", "a", ""]),
        ("a\n\nb", ("\n\n", "b"), ["a", "", ""]),
    ],
)
def test_nothing_is_shown_that_must_be_taken_back(text: str, stop: tuple[str, ...], shown: list[str]) -> None:
    seen = Text(Letters(), stop)
    pieces = []
    for token in text.encode():
        pieces.append(seen.push(token))
        if seen.stopped:
            break
    else:
        pieces.append(seen.end())
    assert pieces == shown
    assert seen.shown == "".join(shown)
    assert seen.stopped == any(word in text for word in stop)


def test_a_version_that_answers_nan_does_not_pass_its_check(
    fresh_base: Callable[[], Base], versions: Mapping[int, Files]
) -> None:
    """The check goes through the version that is named, not through the live one."""
    base = fresh_base()
    engine = Engine(base, LORA)
    engine.load(1, digest(1), versions[1], live=False)
    slot = engine._loaded.find(1).slot  # type: ignore[union-attr]
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            if f"lora_B.{slot}" in name:
                parameter.fill_(float("nan"))
    engine.check()
    with pytest.raises(ArithmeticError):
        engine.check(1)
    with pytest.raises(NoSuchVersion):
        engine.check(7)
    engine.close()
