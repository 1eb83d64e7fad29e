"""The controller by example: what comes late, what time it is, and how many bytes may wait."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from test_controller import (
    Lagging,
    Row,
    arrived,
    built,
    checkpoints,
    controller,
    ended,
    offers,
    play,
    published,
    result,
)

from streamcl import events as e
from streamcl.controller import Controller
from streamcl.detect import Labels
from streamcl.errors import ConfigError
from streamcl.types import Window
from streamcl.window import Watermark, WindowConfig

DAY = 86_400.0


def stream(*times: float, size: int = 1) -> list[Row]:
    return [Row(str(i), "a", i, time=time, size=size) for i, time in enumerate(times, start=1)]


def told(*times: float, rows: int = 5, mark: type[Watermark] = Watermark) -> float | None:
    watermark = mark(rows)
    for time in times:
        watermark.take(time)
    return watermark.value


# -- the watermark -----------------------------------------------------------------------------------------------------


class Newest(Watermark):
    """A broken one: the largest time is the stream's."""

    def take(self, time: float) -> None:
        self.value = time if self.value is None else max(self.value, time)


def test_there_is_no_watermark_before_there_are_enough_samples() -> None:
    assert told(1, 2, 3, 4) is None
    assert told(1, 2, 3, 4, 5) == 3


def test_the_watermark_never_falls_and_does_not_depend_on_the_order_within_reach() -> None:
    assert told(1, 2, 3, 4, 5, *[0] * 20) == 3
    assert told(5, 1, 4, 2, 3) == told(1, 2, 3, 4, 5)


@pytest.mark.parametrize("seed", range(5))
def test_timestamps_of_the_future_cannot_push_the_watermark(seed: int) -> None:
    """Not even where nearly half of any 64 consecutive samples have a wrong clock; the newest time can be pushed."""
    wrong = set(random.Random(seed).sample(range(64), 31))
    times = [4e9 if i % 64 in wrong else 1e9 + i for i in range(1000)]
    found = told(*times, rows=64)
    assert found is not None
    assert 1e9 + 900 <= found < 1e9 + 1000
    assert told(*times, rows=64, mark=Newest) == 4e9


@pytest.mark.parametrize("year", [-1e9, 0.0, 1_767_225_600.0, 4e9])
def test_a_stream_of_any_year_is_accepted_whatever_the_clock_says(year: float) -> None:
    learner = controller(late="drop", late_s=0.0)
    rows = stream(*(year + i for i in range(200)))
    play(learner, arrived(rows, ended=True), ended())
    assert learner.balance()["late"] == 0
    assert learner.watermark.value == year + 199 - 32


# -- late samples ------------------------------------------------------------------------------------------------------

ON_TIME = [DAY + i for i in range(100)]


def test_late_samples_are_learned_unless_told_otherwise() -> None:
    learner = controller()
    play(learner, arrived(stream(*ON_TIME, 0.0), ended=True), ended())
    assert learner.balance() == {"in": 101, "accepted": 101, "dup": 0, "late": 0, "dead": 0, "pending": 0}


def test_a_dropped_late_sample_is_counted_and_read_over() -> None:
    learner = controller(late="drop", late_s=1000.0)
    actions = play(learner, arrived(stream(*ON_TIME, 0.0, DAY - 900, DAY + 100), ended=True), ended())
    assert learner.balance() == {"in": 103, "accepted": 102, "dup": 0, "late": 1, "dead": 0, "pending": 0}
    assert sum((ids for _, ids in offers(actions)), ())[-2:] == ("102", "103")  # 900 s behind the first is not late
    assert checkpoints(actions)[-1].positions == {"p": 103}


def test_one_wrong_clock_makes_no_other_sample_late() -> None:
    learner = controller(late="drop", late_s=10.0)
    rows = stream(*[time for moment in ON_TIME for time in (moment, moment, 4e9)][:-1])
    play(learner, arrived(rows, ended=True), ended())
    assert learner.balance()["late"] == 0
    learner = controller(late="drop", late_s=10.0)  # the broken twin: nearly all are
    learner.watermark = Newest()
    play(learner, arrived(rows, ended=True), ended())
    assert learner.balance()["late"] > 190


def test_a_repeat_that_is_late_is_a_repeat_and_a_late_row_that_is_repeated_is_late_again() -> None:
    learner = controller(late="drop", late_s=10.0)
    rows = [Row("old", "a", 1, time=0.0), *stream(*ON_TIME)]
    late = [Row("old", "a", 0, time=0.0), Row("new", "a", 0, time=0.0), Row("new", "a", 0, time=0.0)]
    numbered = [Row(row.id, row.label, i, time=row.time) for i, row in enumerate([*rows, *late], start=1)]
    play(learner, arrived(numbered, ended=True), ended())
    assert (learner.balance()["dup"], learner.balance()["late"]) == (1, 2)


def test_a_late_row_is_not_shown_to_the_detector() -> None:
    learner = controller(late="drop", late_s=10.0)
    rows = [*stream(*ON_TIME), Row("late", "b", 101, time=0.0), Row("next", "a", 102, time=DAY)]
    actions = play(learner, arrived(rows, ended=True), ended())
    assert {task for task, _ in offers(actions)} == {"a"}


@pytest.mark.parametrize(
    "wrong", [{"samples": 0}, {"max_bytes": 0}, {"age_s": 0.0}, {"late_s": -1.0}], ids=lambda wrong: next(iter(wrong))
)
def test_a_window_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="at least 1 sample and 1 byte"):
        WindowConfig(**wrong)


# -- bytes -------------------------------------------------------------------------------------------------------------


def test_a_window_closes_at_so_many_bytes() -> None:
    rows = [Row(str(i), "a", i, size=size) for i, size in enumerate([4, 4, 4, 20, 1, 1], start=1)]
    actions = play(controller(max_bytes=10), arrived(rows, ended=True), ended())
    assert offers(actions) == [("a", ("1", "2", "3")), ("a", ("4",)), ("a", ("5", "6"))]


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_bytes_close_the_same_windows_however_rows_come_and_with_a_late_detector(batch: int) -> None:
    rows = [Row(str(i), "ab"[i > 20], i, size=1 + i % 4) for i in range(1, 41)]
    parts = [arrived(rows[i : i + batch], key=f"file-{i}") for i in range(0, len(rows), batch)]
    actions = play(controller(max_bytes=9, detector=Lagging().build()), *parts, ended(), ended())
    sizes = [len(ids) for _, ids in offers(actions)]
    assert sizes == [3, 4, 4, 4, 4, 1, 3, 4, 4, 4, 5]  # 2 3 4 | 1 2 3 4 | ... and what the end leaves


def test_bytes_of_rows_are_kept_over_a_restart() -> None:
    before = built(max_bytes=10)
    before.handle(e.Ticked(0.0))
    play(before, arrived(stream(0.0, 0.0, size=4)))
    after = built(max_bytes=10)
    after.restore(json.loads(json.dumps(before.snapshot())), None)
    assert offers(play(after, arrived([Row("3", "a", 3, size=4)]))) == [("a", ("1", "2", "3"))]


class Overload:
    """A source that always has more, and a trainer ten times as slow. Mutable."""

    def __init__(self, learner: Controller, pull: Callable[[], e.Arrival], train: Callable[[Window], object]) -> None:
        self.learner, self.pull, self.train = learner, pull, train
        self.sizes: dict[str, int] = {}
        self.pending = self.peak = 0
        """Bytes that were read, and not trained on yet; at most."""
        self.trained: list[str] = []
        self.asked = 0
        self.training: tuple[Window, int, tuple[str, ...]] | None = None

    def run(self) -> None:
        """Every pull is answered at once; a window trains while ten times its rows could be read."""
        self._do(self.learner.handle(e.Ticked(0.0)))
        while self.asked or self.training:
            read = len(self.sizes)
            if self.asked:
                self._arrive()
            if self.training:
                window, left, ids = self.training
                self.training = (window, left - max(1, len(self.sizes) - read), ids)
                if left <= 0:
                    self.train(window)
                    self.training, self.trained = None, [*self.trained, *ids]
                    self.pending -= sum(self.sizes[id] for id in ids)
                    self._do(self.learner.handle(e.Trained(window, result(window))))

    def _arrive(self) -> None:
        self.asked -= 1
        arrival = self.pull()
        self.sizes |= zip(arrival.ids, arrival.sizes_N.tolist(), strict=True)
        self.pending += int(arrival.sizes_N.sum())
        self.peak = max(self.peak, self.pending)
        self._do(self.learner.handle(e.Arrived(arrival)))

    def _do(self, actions: Sequence[e.Action]) -> None:
        for action in actions:
            match action:
                case e.Pull():
                    self.asked += 1
                case e.Freeze(window, offer):
                    self.training = (window, 10 * len(offer.ids), offer.ids)
                    self._do(self.learner.handle(e.Frozen(window)))
                case e.Publish(window):
                    self._do(self.learner.handle(published(window)))
                case e.Swap(made):
                    self._do(self.learner.handle(e.Swapped(made)))


class Greedy(Controller):
    """A broken twin: it pulls whether or not a window waits."""

    def _pulls(self) -> list[e.Action]:
        wanted = 0 if self.ended else max(0, 2 - self.pulls)
        self.pulls += wanted
        return [e.Pull()] * wanted


@pytest.mark.parametrize(("kind", "bounded"), [(Controller, True), (Greedy, False)])
def test_when_training_is_ten_times_too_slow_pending_bytes_are_bounded_and_nothing_is_lost(
    kind: Callable[..., Controller], bounded: bool
) -> None:
    rows = [Row(str(i), "a", i, size=1000) for i in range(1, 3001)]
    parts = iter([*(rows[i : i + 16] for i in range(0, 3000, 16)), *[[]] * 3])
    learner = kind(Labels().build(), window=WindowConfig(10**6, max_bytes=100_000))

    def pull() -> e.Arrival:
        part = next(parts)
        return arrived(part, key=f"file-{part[0].id if part else ''}", ended=not part).arrival

    overload = Overload(learner, pull, lambda window: None)
    overload.run()
    assert overload.trained == [row.id for row in rows]
    assert learner.balance() == {"in": 3000, "accepted": 3000, "dup": 0, "late": 0, "dead": 0, "pending": 0}
    bound = 2 * 100_000 + 2 * 16_000  # a window in training, one that waits, two arrivals
    assert (overload.peak <= bound) == bounded
