"""The controller by example: what closes a window, what is counted, and what repeated or failed answers do."""

from __future__ import annotations

import json
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from streamcl import events as e
from streamcl.controller import PREFETCH, Controller, WindowConfig
from streamcl.detect import Boundary, Detector, Labels, Observations
from streamcl.registry.requests import Request
from streamcl.train.gate import Evidence, Pairs
from streamcl.types import DeadLetter, Refs, Rows, Standing, Version, Window


@dataclass(frozen=True)
class Row:
    """What a source would give, as far as the controller looks."""

    id: str
    label: str | None
    position: int
    partition: str = "p"
    heldout: bool = False
    dead: bool = False
    time: float = 0.0
    size: int = 1


def rows(text: str, *, start: int = 1) -> list[Row]:
    """A row a word: its label, or "-" for none; "a*" is held out, "a=3" repeats the id of row 3, "!" is dead."""
    found = []
    for position, word in enumerate(text.split(), start=start):
        label, _, id = word.rstrip("*").partition("=")
        found.append(Row(id or str(position), None if label == "-" else label, position,
                         heldout=word.endswith("*"), dead=word == "!"))  # fmt: skip
    return found


def arrived(given: str | Sequence[Row], *, key: str = "file", ended: bool = False, start: int = 1) -> e.Arrived:
    """The rows as one Arrival; a detector sees the first character of each label as the embedding."""
    every = rows(given, start=start) if isinstance(given, str) else list(given)
    good = [row for row in every if not row.dead]
    return e.Arrived(
        e.Arrival(
            key=key,
            ids=tuple(row.id for row in good),
            hashes_N=np.array([zlib.crc32(row.id.encode()) for row in good], np.uint64),
            heldout_N=np.array([row.heldout for row in good], np.bool_),
            labels=tuple(row.label for row in good),
            times_N=np.array([row.time for row in good]),
            sources=("s",) * len(good),
            partitions=tuple(row.partition for row in good),
            positions_N=np.array([row.position for row in good], np.int64),
            embeddings_NE=np.array([[ord((row.label or "-")[0])] for row in good], np.float32).reshape(len(good), 1),
            sizes_N=np.array([row.size for row in good], np.int64),
            resume={row.partition: row.position for row in every},
            dead=tuple(DeadLetter("fields: x", row.id, "s", row.partition, row.position) for row in every if row.dead),
            ended=ended,
        )
    )


@dataclass(frozen=True)
class Lagging:
    """Says two rows late that a task began: a value must come three times in a row to be believed. Sees no labels."""

    def build(self) -> LaggingDetector:
        return LaggingDetector()


class LaggingDetector:
    """Mutable: the value that is believed, the one that may follow, and the names of both."""

    lag = 2

    def __init__(self) -> None:
        self.value: float | None = None
        self.streak: list[float] = []
        self.names: dict[str, str] = {}

    def update(self, seen: Observations) -> Boundary | None:
        for row, value in enumerate(map(float, seen.embeddings_ND[:, 0])):
            if self.value is None:
                self.value = value
                return Boundary(row, row, None)
            self.streak = [] if value == self.value else [*(v for v in self.streak if v == value), value]
            if len(self.streak) > self.lag:
                self.value, self.streak = value, []
                return Boundary(row, row - self.lag, self.names.get(str(value)))
        return None

    def begin(self, task: str) -> None:
        self.names[str(self.value)] = task

    def snapshot(self) -> dict[str, Any]:
        return {"value": self.value, "streak": self.streak, "names": dict(self.names)}

    def restore(self, state: dict[str, Any]) -> None:
        self.value, self.streak, self.names = state["value"], list(state["streak"]), dict(state["names"])


def built(*, samples: int = 100, detector: Detector | None = None, **window: Any) -> Controller:
    """A controller that has not begun. `window`: more of its settings."""
    return Controller(detector or Labels().build(), window=WindowConfig(samples, **window), replay_rows=7, seed=1)


def controller(*, samples: int = 100, detector: Detector | None = None, **window: Any) -> Controller:
    """A controller that waits for its first arrivals."""
    learner = built(samples=samples, detector=detector, **window)
    assert learner.handle(e.Ticked(0.0)) == [e.Pull()] * PREFETCH
    return learner


def result(window: Window) -> e.TrainResult:
    memory = {"key": f"memory/{window.id}", "sha256": ""}
    return e.TrainResult({"key": f"adapter/{window.id}", "sha256": ""}, memory, {}, {}, 0.0, 1, {})


def version(window: Window) -> Version:
    return Version(window.id * 10, "digest", "path", window.id, window.task, "base")


def published(window: Window, memory: Refs | None = None) -> e.Published:
    """The window's version was made live."""
    made = version(window)
    return e.Published(made, Standing(made.number, memory, (window.task,)))


def answer(action: e.Action, *, fails: Iterable[int] = ()) -> list[e.Event]:
    """What a runtime says when it has done `action`. Training the windows in `fails` does not succeed."""
    match action:
        case e.Freeze(window):
            return [e.Frozen(window)]
        case e.Train(window):
            return [e.Failed(window, "NaN") if window.id in fails else e.Trained(window, result(window))]
        case e.Publish(window, given):
            return [published(window, given.memory)]
        case e.Swap(swapped):
            return [e.Swapped(swapped)]
    return []


def play(learner: Controller, *events: e.Event, fails: Iterable[int] = ()) -> list[e.Action]:
    """Each event, and all that follows from it, in turn; every action that was asked for."""
    done: list[e.Action] = []
    for event in events:
        ahead = deque([event])
        while ahead:
            actions = learner.handle(ahead.popleft())
            done += actions
            ahead += [said for action in actions for said in answer(action, fails=fails)]
    return done


def of(kind: type[Any], actions: Iterable[e.Action]) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def windows(actions: Iterable[e.Action]) -> list[tuple[str, list[int], bool]]:
    """Of each frozen window: its task, the file rows it trains on, and whether it closes the task."""
    frozen = [freeze.window for freeze in of(e.Freeze, actions)]
    return [(w.task, [row for part in w.samples for row in part.rows], w.closes_task) for w in frozen]


def offers(actions: Iterable[e.Action]) -> list[tuple[str, tuple[str, ...]]]:
    return [(freeze.offer.task, freeze.offer.ids) for freeze in of(e.Freeze, actions)]


# -- what closes a window ----------------------------------------------------------------------------------------------


def test_a_new_label_closes_the_old_task() -> None:
    learner = controller()
    assert windows(play(learner, arrived("a a b"))) == [("a", [0, 1], True)]
    assert learner.balance()["pending"] == 1


def test_a_row_without_a_label_continues_the_task() -> None:
    assert windows(play(controller(), arrived("a - a", ended=True), ended())) == [("a", [0, 1, 2], True)]


def test_a_count_closes_a_window_and_leaves_its_task_open() -> None:
    actions = play(controller(samples=2), arrived("a a a a a"))
    assert windows(actions) == [("a", [0, 1], False), ("a", [2, 3], False)]


def test_a_task_that_ended_exactly_at_a_count_is_closed_by_an_empty_window() -> None:
    actions = play(controller(samples=2), arrived("a a b"))
    assert windows(actions) == [("a", [0, 1], False), ("a", [], True)]
    assert offers(actions) == [("a", ("1", "2")), ("a", ())]


def test_windows_of_a_single_row_close_their_tasks_too() -> None:
    found = windows(play(controller(samples=1), arrived("a b b", ended=True), ended()))
    assert [(task, row) for task, given, _ in found for row in given] == [("a", 0), ("b", 1), ("b", 2)]
    assert [task for task, _, closes in found if closes] == ["a", "b"]


def ended() -> e.Arrived:
    """The answer to the other Pull: the stream has ended there, too."""
    return arrived("", key="", ended=True)


def test_the_end_of_the_stream_closes_the_task_and_finishes() -> None:
    learner = controller()
    actions = play(learner, arrived("a a"), ended(), ended())
    assert windows(actions) == [("a", [0, 1], True)]
    commit, finish = actions[-2:]
    assert isinstance(commit, e.Commit)
    assert commit.checkpoint.counters == {"in": 2, "accepted": 2, "dup": 0, "late": 0, "dead": 0, "pending": 0}
    assert (commit.checkpoint.positions, commit.checkpoint.training) == ({"p": 2}, None)
    assert finish == e.Finish(ended=True)
    assert learner.handle(e.Ticked(1e9)) == []


@pytest.mark.parametrize("samples", [2, 100])
def test_a_source_that_goes_on_after_its_end_goes_on_with_its_task(samples: int) -> None:
    learner = controller(samples=samples)
    play(learner, arrived("a a"), ended(), ended())
    again = built(samples=samples)
    actions = again.restore(json.loads(json.dumps(learner.snapshot())), None)
    assert actions == [e.Pull()] * PREFETCH
    actions = play(again, arrived("a", start=3), arrived("b", start=4), ended(), ended())
    assert windows(actions) == [("a", [0], True), ("b", [0], True)]
    assert actions[-1] == e.Finish(ended=True)


def test_the_end_waits_for_the_other_pull_and_for_the_trainer() -> None:
    learner = controller()
    assert learner.handle(arrived("a", ended=True)) == []  # one more arrival is on its way
    (freeze,) = learner.handle(ended())
    (train,) = learner.handle(e.Frozen(freeze.window))
    assert learner.handle(e.Ticked(1.0)) == []
    assert of(e.Finish, play(learner, *answer(train)))


def test_an_empty_stream_trains_nothing_and_finishes() -> None:
    actions = play(controller(), ended(), ended())
    assert not windows(actions)
    assert actions[-1] == e.Finish(ended=True)


def test_age_closes_a_window_and_leaves_its_task_open() -> None:
    learner = controller(age_s=10.0)
    learner.handle(e.Ticked(100.0))
    assert not windows(play(learner, arrived("a a"), e.Ticked(109.9)))
    assert windows(play(learner, e.Ticked(110.0))) == [("a", [0, 1], False)]
    assert not windows(play(learner, e.Ticked(500.0)))  # nothing waits
    assert not windows(play(learner, arrived("a", start=3), e.Ticked(509.0)))
    assert windows(play(learner, e.Ticked(511.0))) == [("a", [0], False)]


def test_rows_age_after_a_restart_whatever_the_new_clock_says() -> None:
    before = controller(age_s=10.0)
    play(before, e.Ticked(1e6), arrived("a a"))
    after = built(age_s=10.0)
    after.restore(json.loads(json.dumps(before.snapshot())), None)
    assert windows(play(after, e.Ticked(5.0), e.Ticked(20.0))) == [("a", [0, 1], False)]


# -- back-pressure -----------------------------------------------------------------------------------------------------


def test_nothing_is_pulled_while_a_window_waits_for_the_trainer() -> None:
    learner = controller(samples=2)
    freeze, *_ = learner.handle(arrived("a a"))
    learner.handle(e.Frozen(freeze.window))
    assert not of(e.Pull, learner.handle(arrived("a a", start=3)))  # a second window has closed, and waits
    for now in range(3):
        assert learner.handle(e.Ticked(now)) == []
    actions = play(learner, e.Trained(freeze.window, result(freeze.window)))
    assert windows(actions) == [("a", [0, 1], False)]
    assert of(e.Pull, actions)


def test_what_was_asked_for_or_waits_is_bounded_when_training_never_ends() -> None:
    learner = controller(samples=1)
    asked, position = PREFETCH, 1
    while asked:  # answer every Pull, and nothing else
        asked += len(of(e.Pull, learner.handle(arrived("a a", start=position)))) - 1
        position += 2
        assert position < 20
    assert len(learner.backlog) <= PREFETCH


def test_one_window_is_in_training_at_most() -> None:
    learner = controller(samples=1)
    first, *_ = learner.handle(arrived("a a a a"))
    assert of(e.Freeze, learner.handle(e.Ticked(1.0))) == []  # the first is still being frozen
    (train, *_) = learner.handle(e.Frozen(first.window))
    assert train == e.Train(first.window)
    assert of(e.Freeze, learner.handle(e.Ticked(2.0))) == []
    learner.handle(e.Trained(first.window, result(first.window)))
    assert of(e.Freeze, learner.handle(e.Ticked(3.0))) == []  # not published yet
    second = of(e.Freeze, learner.handle(published(first.window)))
    assert [freeze.window.id for freeze in second] == [2]


# -- a window's inputs -------------------------------------------------------------------------------------------------


def test_a_window_starts_from_the_last_version_and_memory() -> None:
    actions = play(controller(samples=2), arrived("a a b b b"))
    frozen = [freeze.window for freeze in of(e.Freeze, actions)]
    assert [(w.id, w.base, w.index) for w in frozen] == [(1, 0, 0), (2, 10, 0), (3, 20, 1)]
    assert [w.memory and w.memory["key"] for w in frozen] == [None, "memory/1", "memory/2"]
    assert len({w.seed for w in frozen}) == 3
    assert {freeze.replay_rows for freeze in of(e.Freeze, actions)} == {7}


def test_rows_of_a_window_are_grouped_by_file() -> None:
    actions = play(controller(samples=3), arrived("a a", key="one"), arrived("a a", key="two", start=3))
    (freeze,) = of(e.Freeze, actions)
    assert freeze.window.samples == (Rows("one", (0, 1)), Rows("two", (0,)))
    assert (freeze.offer.keys, freeze.offer.rows, freeze.offer.sources) == (
        ("one", "one", "two"),
        (0, 1, 0),
        ("s",) * 3,
    )


def test_heldout_rows_are_offered_but_not_trained_on() -> None:
    actions = play(controller(samples=4), arrived("a a* a* a"))
    assert windows(actions) == [("a", [0, 3], False)]
    assert offers(actions) == [("a", ("1", "2", "3", "4"))]


def test_a_returning_task_keeps_its_name_and_known_lists_every_task_met() -> None:
    actions = play(controller(), arrived("a b a c", ended=True), ended())
    frozen = [freeze.window for freeze in of(e.Freeze, actions)]
    assert [(w.task, w.known, w.index) for w in frozen] == [
        ("a", ("a",), 0),
        ("b", ("a", "b"), 1),
        ("a", ("a", "b"), 2),
        ("c", ("a", "b", "c"), 3),
    ]


def test_a_stream_without_labels_is_one_numbered_task() -> None:
    assert windows(play(controller(), arrived("- -", ended=True), ended())) == [("task-1", [0, 1], True)]


# -- a detector that notices late --------------------------------------------------------------------------------------


def test_rows_before_a_late_alarm_move_to_the_task_that_they_began() -> None:
    actions = play(controller(detector=Lagging().build()), arrived("a a a b b b", ended=True), ended())
    assert windows(actions) == [("task-1", [0, 1, 2], True), ("task-2", [3, 4, 5], True)]
    assert offers(actions) == [("task-1", ("1", "2", "3")), ("task-2", ("4", "5", "6"))]


def test_rows_move_out_of_an_arrival_that_came_earlier() -> None:
    parts = [arrived(word, key=f"file-{n}", start=n) for n, word in enumerate("aabbb", start=1)]
    actions = play(controller(detector=Lagging().build()), *parts, ended())
    assert offers(actions)[0] == ("task-1", ("1", "2"))


def test_a_counted_window_never_takes_rows_that_may_yet_move() -> None:
    learner = controller(samples=2, detector=Lagging().build())
    actions = play(learner, arrived("a a b b b b", ended=True), ended())
    assert offers(actions) == [("task-1", ("1", "2")), ("task-1", ()), ("task-2", ("3", "4")), ("task-2", ("5", "6"))]


def test_an_aged_window_never_takes_rows_that_may_yet_move() -> None:
    learner = controller(detector=Lagging().build(), age_s=10.0)
    actions = play(learner, arrived("a a b b"), e.Ticked(11.0), arrived("b", start=5), ended(), ended())
    assert offers(actions) == [("task-1", ("1", "2")), ("task-1", ()), ("task-2", ("3", "4", "5"))]


def test_a_task_that_a_detector_knows_again_keeps_its_name() -> None:
    actions = play(controller(detector=Lagging().build()), arrived("a a a b b b a a a", ended=True), ended())
    assert [task for task, *_ in windows(actions)] == ["task-1", "task-2", "task-1"]


# -- what is counted ---------------------------------------------------------------------------------------------------


def test_a_repeated_row_is_counted_and_not_taken() -> None:
    learner = controller()
    actions = play(learner, arrived("a a=1 a a=3 a=1"), arrived("a=1", start=6), ended(), ended())
    assert offers(actions) == [("a", ("1", "3"))]
    assert learner.balance() == {"in": 6, "accepted": 2, "dup": 4, "late": 0, "dead": 0, "pending": 0}


def test_a_late_repeat_of_an_earlier_task_ends_no_window() -> None:
    actions = play(controller(), arrived("a a b a=1 b", ended=True), ended())
    assert windows(actions) == [("a", [0, 1], True), ("b", [2, 4], True)]


def test_a_repeat_that_ends_the_stream_opens_no_task() -> None:
    actions = play(controller(), arrived("a b b a=1", ended=True), ended())
    assert windows(actions) == [("a", [0], True), ("b", [1, 2], True)]


def test_dead_letters_are_counted_once_and_in_order() -> None:
    learner = controller()
    actions = play(learner, arrived("! a ! b ! !"), arrived("!", start=7), ended(), ended())
    told = [letter.position for checkpoint in checkpoints(actions) for letter in checkpoint.dead]
    assert told == [1, 3, 5, 6, 7]
    assert learner.balance()["dead"] == 5


def test_a_checkpoint_tells_only_the_dead_letters_behind_its_positions() -> None:
    actions = play(controller(), arrived("a ! b ! ! c"), ended(), ended())
    told = [[letter.position for letter in checkpoint.dead] for checkpoint in checkpoints(actions)]
    assert told == [[2], [4, 5], [], []]
    assert [checkpoint.positions["p"] for checkpoint in checkpoints(actions)] == [3, 6, 6, 6]


def test_dead_letters_of_one_partition_do_not_move_the_other() -> None:
    mixed = [
        Row("1", "a", 1, "p"),
        Row("x", None, 1, "q", dead=True),
        Row("2", "b", 2, "p"),
        Row("3", "b", 2, "q"),
        Row("y", None, 3, "p", dead=True),
    ]
    actions = play(controller(), arrived(mixed), ended(), ended())
    first, *_, last = checkpoints(actions)
    assert (first.positions, first.dead) == ({"p": 2}, ())
    assert (last.positions, last.counters["dead"], last.counters["in"]) == ({"p": 3, "q": 2}, 2, 5)


def checkpoints(actions: Iterable[e.Action]) -> list[e.Checkpoint]:
    return [action.checkpoint for action in actions if isinstance(action, e.Freeze | e.Commit)]


@pytest.mark.parametrize("samples", [1, 2, 3, 100])
def test_the_counters_add_up_at_every_checkpoint(samples: int) -> None:
    actions = play(controller(samples=samples), arrived("! a a=2 a* b ! b b=2 -"), arrived("c ! !", start=10), ended())
    for checkpoint in checkpoints(actions):
        counted = dict(checkpoint.counters)
        assert counted.pop("in") == sum(counted.values()) == checkpoint.positions["p"]
    assert checkpoints(actions)


# -- answers that are repeated, failed, or cut short -------------------------------------------------------------------


def in_training(learner: Controller, given: str) -> Window:
    """The window in training once `given` has arrived."""
    (freeze,) = of(e.Freeze, learner.handle(arrived(given)))
    learner.handle(e.Frozen(freeze.window))
    window: Window = freeze.window
    return window


def test_a_repeated_answer_changes_nothing() -> None:
    learner = controller()
    window = in_training(learner, "a b")
    trained, answered = e.Trained(window, result(window)), published(window)
    assert of(e.Publish, learner.handle(trained))
    assert of(e.Swap, learner.handle(answered))
    before = json.dumps(learner.snapshot())
    for repeated in (trained, answered, e.Swapped(version(window)), e.Failed(window, "NaN")):
        assert learner.handle(repeated) == []
    assert json.dumps(learner.snapshot()) == before


@pytest.mark.parametrize("repeated", [e.Trained, e.Published, e.Swapped, e.Failed, e.Frozen])
def test_an_answer_repeated_while_the_next_window_trains_changes_nothing(repeated: type) -> None:
    learner = controller(samples=1)
    first = in_training(learner, "a a a")
    learner.handle(e.Trained(first, result(first)))
    (freeze,) = of(e.Freeze, learner.handle(published(first)))
    learner.handle(e.Frozen(freeze.window))
    answers = {
        e.Trained: e.Trained(first, result(first)),
        e.Published: published(first),
        e.Swapped: e.Swapped(version(first)),
        e.Failed: e.Failed(first, "NaN"),
        e.Frozen: e.Frozen(first),
    }
    assert learner.handle(answers[repeated]) == []
    assert learner.training == freeze.window
    assert of(e.Publish, learner.handle(e.Trained(freeze.window, result(freeze.window))))


def test_a_failed_window_is_abandoned_and_the_learner_goes_on() -> None:
    learner = controller()
    actions = play(learner, arrived("a b c"), ended(), ended(), fails={2})
    assert [(abandon.window.id, abandon.reason) for abandon in of(e.Abandon, actions)] == [(2, "NaN")]
    assert [publish.window.id for publish in of(e.Publish, actions)] == [1, 3]
    assert [freeze.window.base for freeze in of(e.Freeze, actions)] == [0, 10, 10]
    assert actions[-1] == e.Finish(ended=True)


def test_a_window_that_a_version_answers_already_is_not_published_again() -> None:
    learner = controller()
    window = in_training(learner, "a b")
    assert of(e.Swap, learner.handle(published(window)))
    assert not of(e.Publish, learner.handle(e.Trained(window, result(window))))


def test_stopping_commits_what_is_pending_and_finishes() -> None:
    learner = controller(samples=2)
    window = in_training(learner, "a a a a a")
    commit, finish = learner.handle(e.Stopping())
    assert finish == e.Finish(ended=False)
    assert commit.checkpoint.counters == {"in": 4, "accepted": 2, "dup": 0, "late": 0, "dead": 0, "pending": 2}
    assert commit.checkpoint.training == window.id
    assert commit.checkpoint.positions == {"p": 4}  # the fifth row lies in the backlog: it is read again
    assert learner.handle(e.Stopping()) == []


def test_stopping_waits_until_a_window_is_in_the_log() -> None:
    learner = controller()
    (freeze,) = of(e.Freeze, learner.handle(arrived("a b")))
    assert learner.handle(e.Stopping()) == []
    train, commit, finish = learner.handle(e.Frozen(freeze.window))
    assert (train, finish) == (e.Train(freeze.window), e.Finish(ended=False))
    assert commit.checkpoint.training == freeze.window.id


def test_a_restored_learner_trains_the_window_again_and_goes_on_with_the_rest() -> None:
    stopped = controller(samples=2)
    window = in_training(stopped, "a a a a a")
    commit, _ = stopped.handle(e.Stopping())
    learner = built(samples=2)
    first, *pulls = learner.restore(json.loads(json.dumps(commit.checkpoint.state)), window)
    assert (first, pulls) == (e.Train(window), [])  # the second window waits: nothing is pulled
    actions = play(learner, *answer(first), arrived("b", start=5), ended(), ended())
    assert offers(actions) == [("a", ("3", "4")), ("a", ()), ("b", ("5",))]


def test_a_checkpoint_does_not_change_afterwards() -> None:
    learner = controller()
    (freeze,) = of(e.Freeze, learner.handle(arrived("a b")))
    before = json.dumps(freeze.checkpoint.state)
    play(learner, e.Frozen(freeze.window), arrived("b c c", start=3))
    assert json.dumps(freeze.checkpoint.state) == before


def test_with_more_encoders_more_is_asked_for() -> None:
    learner = Controller(Labels().build(), window=WindowConfig(), prefetch=5)
    assert learner.handle(e.Ticked(0.0)) == [e.Pull()] * 5


# -- the gate and the operator -----------------------------------------------------------------------------------------

WORSE = Evidence({"past": Pairs(lost=50)})


def refused(window: Window, standing: Standing) -> e.Published:
    return e.Published(version(window), standing, "it fell")


def test_a_refused_candidate_is_nobodys_base_and_its_rows_are_trained_on_once_more() -> None:
    learner = controller(samples=2)
    first = in_training(learner, "a a a a a a")
    (publish,) = of(e.Publish, learner.handle(e.Trained(first, replace(result(first), evidence=WORSE))))
    assert (publish.verdict.passed, publish.verdict.why) == (False, "past -100.0% of 50 rows: a fall, 100.0% sure")
    actions = learner.handle(refused(first, Standing()))
    assert not of(e.Swap, actions)
    (freeze,) = of(e.Freeze, actions)
    assert (freeze.window.base, freeze.window.memory) == (0, None)
    assert freeze.window.again == first.samples
    learner.handle(e.Frozen(freeze.window))
    learner.handle(e.Trained(freeze.window, replace(result(freeze.window), evidence=WORSE)))
    (third,) = of(e.Freeze, learner.handle(refused(freeze.window, Standing())))
    assert third.window.again == freeze.window.samples  # its own rows, not those that it was given once more


def test_what_a_task_is_owed_waits_until_the_task_returns() -> None:
    learner = controller()
    first = in_training(learner, "a a b b a a c")
    learner.handle(e.Trained(first, replace(result(first), evidence=WORSE)))
    windows = of(e.Freeze, play(learner, refused(first, Standing())))
    assert [(freeze.window.task, freeze.window.again) for freeze in windows] == [("b", ()), ("a", first.samples)]


def test_after_a_rollback_learning_goes_on_from_the_version_gone_back_to() -> None:
    learner = controller(samples=2)
    play(learner, arrived("a a a a"))
    assert learner.succession.standing.number == 20
    back = Standing(10, ({"key": "memory/1", "sha256": ""},), ("a",))
    actions = play(learner, e.Moved(version(Window(1, "a", (), (), 0, 0, 0, False)), back), arrived("a a", start=5))
    assert next(swap.version.number for swap in of(e.Swap, actions)) == 10
    (freeze,) = of(e.Freeze, actions)
    assert (freeze.window.base, freeze.window.memory) == (10, back.memory)


def test_a_candidate_whose_base_was_left_meanwhile_is_held() -> None:
    learner = controller(samples=2)
    play(learner, arrived("a a"))
    window = in_training(learner, "a=3 a=4")
    assert window.base == 10
    learner.handle(e.Moved(version(window), Standing(7)))
    (publish,) = of(e.Publish, learner.handle(e.Trained(window, result(window))))
    assert not publish.verdict.passed
    assert publish.verdict.why == "v7 was made live while it was trained from v10"


def test_a_request_is_obeyed_until_the_run_has_finished() -> None:
    learner, request = controller(), Request("move", number=1)
    assert of(e.Obey, learner.handle(e.Requested(request))) == [e.Obey(request)]
    play(learner, ended(), ended())
    assert learner.handle(e.Requested(request)) == []


def test_a_purge_forgets_what_is_owed() -> None:
    learner = controller()
    first = in_training(learner, "a a b")
    learner.handle(e.Trained(first, replace(result(first), evidence=WORSE)))
    learner.handle(refused(first, Standing()))
    assert learner.succession.owed
    learner.handle(e.Purged("s"))
    assert not learner.succession.owed
