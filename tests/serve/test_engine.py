"""The engine's promises: labels are true while versions change, a failure is its request's alone, an end is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

import pytest
import torch
from tiny_llava import LORA, QUESTION, Files, ask, busy, digest, png

from streamcl.errors import NotFinite, StreamclError
from streamcl.serve.engine import Engine, Request, Response
from streamcl.serve.slots import Adapter, Slots
from streamcl.train.model import Base

Answered = tuple[Request, Response]


@pytest.fixture
def mismatches(fresh_base: Callable[[], Base], versions: Mapping[int, Files]) -> Callable[[Sequence[Answered]], int]:
    """The check: every answer is made again, alone, by an engine that only ever had the version it names."""

    def count(answered: Sequence[Answered]) -> int:
        wrong = 0
        for number in {response.version for _, response in answered}:
            engine = Engine(fresh_base(), LORA, max_batch=1)
            engine.load(number, digest(number), versions[number])
            mine = [(request, response) for request, response in answered if response.version == number]
            replayed = engine.answer([request for request, _ in mine])
            wrong += sum(old != new for (_, old), new in zip(mine, replayed, strict=True))
            engine.close()
        return wrong

    return count


def test_answers_name_the_version_that_made_them(
    engine: Engine, versions: Mapping[int, Files], mismatches: Callable[[Sequence[Answered]], int]
) -> None:
    """100 requests from 4 threads during 20 loads. Five requests are let go before each load; none lags two behind."""
    engine.load(4, digest(4), versions[4])
    may_ask, answered = threading.Semaphore(0), threading.Semaphore(0)

    def client(index: int) -> Answered:
        may_ask.acquire()
        warm = {"temperature": 1.0, "seed": index} if index % 3 == 0 else {}
        images = (png(index),) if index % 2 else ()
        request = ask(f"question {index}", images=images, max_tokens=4 + index % 7, **warm)
        response = engine.submit(request).result()
        answered.release()
        return request, response

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(client, index) for index in range(100)]
        for turn in range(20):
            may_ask.release(5)
            engine.load(turn % 4 + 1, digest(turn % 4 + 1), versions[turn % 4 + 1])
            for _ in range(5 if turn else 0):
                answered.acquire()
        done = [future.result() for future in futures]
    assert len({response.version for _, response in done}) >= 2
    assert all(response.digest == digest(response.version) for _, response in done)
    assert mismatches(done) == 0


def watched(midway: threading.Event) -> type[Engine]:
    """The engine itself; `midway` is set once the new adapter lies in its slot."""

    class WatchedSlots(Slots):
        def write(self, slot: str, adapter: Adapter) -> None:
            super().write(slot, adapter)
            midway.set()

    class Watched(Engine):
        slots = WatchedSlots

    return Watched


def sound(base: Base, midway: threading.Event) -> Engine:
    return watched(midway)(base, LORA)


def copies_into_the_slot_in_use(base: Base, midway: threading.Event) -> Engine:
    class Overwritten(Slots):
        def write(self, slot: str, adapter: Adapter) -> None:
            super().write(slot, adapter)
            super().write(self.names[-1], adapter)  # where the first version went
            midway.set()

    class Broken(Engine):
        slots = Overwritten

    return Broken(base, LORA)


def flips_what_is_under_way(base: Base, midway: threading.Event) -> Engine:
    class Broken(Engine):
        def flip(self, number: int) -> None:
            super().flip(number)
            self._slots.use(self._loaded.live.place)
            midway.set()

    return Broken(base, LORA)


def labels_outside_the_compute_call(base: Base, midway: threading.Event) -> Engine:
    class Broken(watched(midway)):  # type: ignore[misc]
        def submit(self, request: Request) -> Future[Response]:
            engine, future = self, super().submit(request)

            class Relabelled(Future):
                def result(self, timeout: float | None = None) -> Response:
                    number, digest = engine.version
                    return replace(super().result(timeout), version=number, digest=digest)

            relabelled: Future[Response] = Relabelled()
            future.add_done_callback(lambda done: relabelled.set_result(done.result()))
            return relabelled

    return Broken(base, LORA)


def answer_while_loading(
    engine: Engine, base: Base, midway: threading.Event, versions: Mapping[int, Files]
) -> Answered:
    """One answer by version 1, during whose third token version 2 is loaded from another thread as far as it gets."""
    engine.load(1, digest(1), versions[1])
    midway.clear()
    loader = threading.Thread(target=engine.load, args=(2, digest(2), versions[2]))
    steps = iter(range(100))

    def load_at_the_third(*_: object) -> None:
        if next(steps) == 2:
            loader.start()
            assert midway.wait(30)

    handle = base.model.register_forward_pre_hook(load_at_the_third)
    future = engine.submit(QUESTION)
    wait([future])
    handle.remove()
    loader.join()
    assert engine.version == (2, digest(2))
    return QUESTION, future.result()


@pytest.mark.parametrize(
    ("build", "wrong"),
    [
        (sound, 0),
        (copies_into_the_slot_in_use, 1),
        (flips_what_is_under_way, 1),
        (labels_outside_the_compute_call, 1),
    ],
)
def test_the_check_passes_the_engine_and_catches_its_broken_twins(
    build: Callable[[Base, threading.Event], Engine],
    wrong: int,
    fresh_base: Callable[[], Base],
    versions: Mapping[int, Files],
    mismatches: Callable[[Sequence[Answered]], int],
) -> None:
    base, midway = fresh_base(), threading.Event()
    engine = build(base, midway)
    answered = answer_while_loading(engine, base, midway, versions)
    engine.close()
    assert mismatches([answered]) == wrong


def test_a_request_after_load_is_answered_by_that_version(engine: Engine, versions: Mapping[int, Files]) -> None:
    before = engine.answer([QUESTION])[0]
    assert (before.version, before.digest) == (0, engine.version[1])
    texts = {before.text}
    for number in versions:
        engine.load(number, digest(number), versions[number])
        response = engine.answer([QUESTION])[0]
        assert (response.version, response.digest) == engine.version == (number, digest(number))
        texts.add(response.text)
    assert len(texts) == 5
    engine.load(0, before.digest, {})
    assert engine.answer([QUESTION])[0] == before


def test_loading_the_live_version_again_reads_nothing(engine: Engine, versions: Mapping[int, Files]) -> None:
    engine.load(1, digest(1), versions[1])
    engine.load(1, digest(1), {})
    assert engine.version == (1, digest(1))


def test_check_notices_a_busy_thread_and_a_broken_model(fresh_base: Callable[[], Base]) -> None:
    base = fresh_base()
    engine = Engine(base, LORA)
    engine.check()
    with busy(engine), pytest.raises(TimeoutError):
        engine.check(timeout_s=0.01)
    with torch.no_grad():
        base.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(NotFinite):
        engine.check()
    engine.close()


def test_one_batch_that_fails_leaves_the_engine_alive(fresh_base: Callable[[], Base]) -> None:
    base = fresh_base()
    engine = Engine(base, LORA)
    handle = base.model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.submit(QUESTION).result()
    handle.remove()
    assert engine.answer([QUESTION])[0].version == 0
    engine.close()


def test_close_tells_those_who_wait(fresh_base: Callable[[], Base]) -> None:
    engine = Engine(fresh_base(), LORA)
    closer = threading.Thread(target=engine.close)
    with busy(engine):
        left, cancelled = engine.submit(QUESTION), engine.submit(QUESTION)
        assert cancelled.cancel()
        closer.start()
        while not refuses(engine):
            pass
    closer.join()
    with pytest.raises(StreamclError, match="send the request again"):
        left.result()
    engine.close()


def refuses(engine: Engine) -> bool:
    try:
        engine.submit(QUESTION)
    except StreamclError as error:
        return "is closed" in str(error)
    return False


def test_a_cancelled_request_costs_no_compute(fresh_base: Callable[[], Base]) -> None:
    base, passes = fresh_base(), list[None]()
    engine = Engine(base, LORA)
    base.model.register_forward_pre_hook(lambda *_: passes.append(None))
    with busy(engine):
        left, other = engine.submit(ask("long", max_tokens=100)), engine.submit(ask("short", max_tokens=3))
        assert left.cancel()
    assert other.result().completion_tokens == 3
    engine.close()
    assert len(passes) == 3
