"""A candidate on trial: who is answered by it, and what is found out about it where nobody sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import pytest
from tiny_llava import LORA, Files, ask, digest

from streamcl.errors import ConfigError
from streamcl.sections import ServeConfig
from streamcl.serve.engine import Engine
from streamcl.serve.trial import Trial, place
from streamcl.train.model import Base

LIVE, CANDIDATE = 1, 2


@contextmanager
def trying(base: Base, versions: Mapping[int, Files], twin: int = CANDIDATE, **shares: float) -> Iterator[Trial]:
    """Version 1 live, and a candidate that has the weights of version `twin`; `fetch` knows nobody."""
    engine = Engine(base, LORA)
    engine.load(CANDIDATE, digest(CANDIDATE), versions[twin])
    engine.load(LIVE, digest(LIVE), versions[LIVE])
    trial = Trial(engine, **shares)  # type: ignore[arg-type]
    trial.put(CANDIDATE)
    trial.admit(CANDIDATE)
    yield trial
    if trial.shadow:
        trial.shadow.close()
    engine.close()


def who(trial: Trial, caller: str = "", version: int | None = None) -> int:
    return trial.submit(ask("hi", max_tokens=1, caller=caller, version=version)).result().version


def test_the_share_is_kept_and_a_caller_stays_on_its_side() -> None:
    callers = [f"user-{number}" for number in range(20_000)]
    chosen = {caller for caller in callers if place(caller, CANDIDATE) < 0.05}
    assert abs(len(chosen) - 1000) < 5 * (20_000 * 0.05 * 0.95) ** 0.5
    others = {caller for caller in callers if place(caller, CANDIDATE + 1) < 0.05}
    assert len(chosen & others) < 100, "another trial, other callers"


def test_callers_of_the_share_are_answered_by_the_candidate_and_pins_are_kept(
    fresh_base: Callable[[], Base], versions: Mapping[int, Files]
) -> None:
    with trying(fresh_base(), versions, canary=0.5) as trial:
        for caller in (f"user-{number}" for number in range(12)):
            expected = CANDIDATE if place(caller, CANDIDATE) < 0.5 else LIVE
            assert [who(trial, caller) for _ in range(2)] == [expected] * 2
            assert who(trial, caller, version=LIVE) == LIVE
        assert {who(trial) for _ in range(40)} == {LIVE, CANDIDATE}, "without a name each request is a caller"
        trial.put(None)
        assert {who(trial, f"user-{number}") for number in range(12)} == {LIVE}


def test_a_candidate_that_is_not_loaded_is_counted_and_the_live_version_answers(
    fresh_base: Callable[[], Base], versions: Mapping[int, Files]
) -> None:
    with trying(fresh_base(), versions, canary=0.999_999) as trial:
        trial.put(9)
        assert who(trial, "me") == LIVE, "not yet admitted"
        trial.admit(9)
        assert who(trial, "me") == LIVE, "nobody knows where to find it"
        assert trial.counts()["canary_total"] == {'result="sent"': 0, 'result="unavailable"': 2}


@pytest.mark.parametrize(("twin", "expected"), [(LIVE, "same"), (CANDIDATE, "different")])
def test_a_shadow_says_whether_the_answers_are_alike(
    fresh_base: Callable[[], Base], versions: Mapping[int, Files], twin: int, expected: str
) -> None:
    with trying(fresh_base(), versions, twin, shadow=0.5) as trial:
        for number in range(6):
            request = ask(f"question {number}", max_tokens=6)
            assert trial.submit(request).result() == trial.engine.submit(replace(request, version=LIVE)).result()
            settled(trial, (number + 1) // 2)
        assert trial.shadow is not None
        assert trial.shadow.results == {expected: 3}
        assert trial.counts()["canary_total"] == {'result="sent"': 0, 'result="unavailable"': 0}


def settled(trial: Trial, count: int) -> None:
    assert trial.shadow is not None
    due = time.monotonic() + 20
    while trial.shadow.results.total() < count:
        assert time.monotonic() < due, trial.shadow.results
        time.sleep(0.01)


def test_a_shadow_gives_way(fresh_base: Callable[[], Base], versions: Mapping[int, Files]) -> None:
    """Every request is answered by the live version, and each shadow ends in one result; where no place is to spare it
    is not even begun.
    """
    with trying(fresh_base(), versions, shadow=1.0, spare=0) as trial:
        answers = [trial.submit(ask(f"question {number}", max_tokens=24)) for number in range(24)]
        assert {answer.result().version for answer in answers} == {LIVE}
        settled(trial, 24)
        assert trial.shadow is not None
        assert trial.shadow.results["dropped"] > 0
        assert trial.shadow.results["failed"] == 0


@pytest.mark.parametrize("wrong", [{"canary": 1.0}, {"canary": -0.1}, {"shadow": 1.1}, {"canary": 0.1, "slots": 2}])
def test_shares_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"shares|slots"):
        ServeConfig(**wrong)  # type: ignore[arg-type]
