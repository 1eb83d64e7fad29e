"""The controller against crashes: whatever dies and whatever comes twice, the same windows are trained.

One run has many lives. A life ends in a crash before any action or event, or at a stop; the next one begins at the
disk: the last checkpoint, the window in training, and a source read on from the checkpoint's positions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from test_controller import Lagging, Row, arrived, result

from streamcl import events as e
from streamcl.controller import PREFETCH, Controller, WindowConfig
from streamcl.detect import DetectorKind, Labels, Never
from streamcl.train.gate import Evidence, Pairs
from streamcl.types import Standing, Version, Window
from streamcl.window import Watermark

CRASH, STOP, TWICE, TICK = 0, 1, 2, 3
"""What a number of the schedule, below 20, means where it can mean that; else it is a size, or who is next."""
CALM = 19
"""What follows when the schedule is used up: nothing goes wrong."""


@dataclass
class Disk:
    """What outlives a crash. Changes in place."""

    records: list[dict[str, Any]] = field(default_factory=list)
    windows: dict[int, str] = field(default_factory=dict)
    """Frozen windows as JSON."""
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    versions: dict[int, Version] = field(default_factory=dict)
    standing: Standing = field(default_factory=Standing)
    verdicts: dict[int, bool] = field(default_factory=dict)
    """By window, whether its version was made live."""
    abandoned: set[int] = field(default_factory=set)
    offers: set[tuple[str, str]] = field(default_factory=set)
    ended: bool = False

    def commit(self, checkpoint: e.Checkpoint, window: Window | None) -> None:
        assert window is None or window.id not in self.windows, "a window is committed once"
        if window is not None:
            self.windows[window.id] = json.dumps(asdict(window))
        training = window.id if window else checkpoint.training
        record = {**asdict(replace(checkpoint, training=training, dead=())), "dead": checkpoint.dead}
        self.records.append({**record, "state": json.dumps(checkpoint.state)})

    def window(self, number: int) -> Window:
        return Window.from_json(json.loads(self.windows[number]))


class Life:
    """A runtime from start to crash. Mutable."""

    def __init__(self, disk: Disk, stream: Sequence[Row], case: Case, schedule: Iterator[int]) -> None:
        self.disk, self.fails, self.refused, self.schedule = disk, case.fails, case.refused, schedule
        positions = disk.records[-1]["positions"] if disk.records else {}
        self.unread = [row for row in stream if row.position > positions.get(row.partition, 0)]
        self.pulls = 0
        self.inbox: list[e.Event] = []

    def live(self, learner: Controller) -> None:
        if (disk := self.disk).records:
            head = self.disk.records[-1]
            training = None if head["training"] is None else self.disk.window(head["training"])
            state = {**json.loads(head["state"]), "standing": json.loads(json.dumps(asdict(disk.standing)))}
            actions = learner.restore(state, training)
        else:
            actions = learner.handle(e.Ticked(0.0))
        while True:
            check_bounds(learner)
            for action in actions:
                if self.next() == CRASH:
                    return
                self.execute(action)
            if any(isinstance(action, e.Finish) for action in actions) or (event := self.event()) is None:
                return
            actions = learner.handle(event)

    def next(self) -> int:
        return next(self.schedule, CALM)

    def event(self) -> e.Event | None:
        """What happens next; None is a crash."""
        choice = self.next()
        if choice == CRASH:
            return None
        if choice == STOP:
            return e.Stopping()
        if choice == TICK or not (self.pulls or self.inbox):
            return e.Ticked(1.0)
        if self.pulls and (choice % 2 or not self.inbox):
            return self.arrival(self.next() % 9)
        event = self.inbox.pop(0)
        if choice == TWICE and isinstance(event, e.Trained | e.Failed | e.Swapped):
            self.inbox.append(event)
        return event

    def arrival(self, size: int) -> e.Arrived:
        self.pulls -= 1
        rows, self.unread = self.unread[:size], self.unread[size:]
        key = f"file-{len(self.disk.files)}"
        self.disk.files[key] = tuple(row.id for row in rows if not row.dead)
        return arrived(rows, key=key, ended=not (rows or self.unread))

    def execute(self, action: e.Action) -> None:
        disk = self.disk
        match action:
            case e.Pull():
                self.pulls += 1
            case e.Freeze(window, offer):
                disk.commit(action.checkpoint, window)
                disk.offers |= {(offer.task, id) for id in offer.ids}
                self.inbox.append(e.Frozen(window))
            case e.Train(window) if window.id in disk.versions:
                self.inbox.append(e.Published(disk.versions[window.id], disk.standing))
            case e.Train(window) if window.id in self.fails:
                self.inbox.append(e.Failed(window, "NaN"))
            case e.Train(window):
                worse = {"past": Pairs(lost=50)} if window.id in self.refused else {}
                self.inbox.append(e.Trained(window, replace(result(window), evidence=Evidence(worse))))
            case e.Publish(window, given_result, verdict):
                if window.id not in disk.versions:
                    number = len(disk.versions) + 1
                    disk.versions[window.id] = Version(number, "digest", "path", window.id, window.task, "base")
                    disk.verdicts[window.id] = verdict.passed
                    if verdict.passed:
                        disk.standing = Standing(number, given_result.memory, (window.task,))
                self.inbox.append(e.Published(disk.versions[window.id], disk.standing))
            case e.Abandon(window):
                disk.abandoned.add(window.id)
            case e.Swap(version):
                self.inbox.append(e.Swapped(version))
            case e.Commit(checkpoint):
                disk.commit(checkpoint, None)
            case e.Finish(ended):
                disk.ended = ended


@dataclass(frozen=True)
class Case:
    """A stream, how it is cut into windows, and what befalls the run."""

    words: tuple[tuple[int, int, int, int], ...]
    """A sample each: change of task, partition, kind (one in eight each held out, dead, late, ahead of its time),
    further deliveries."""
    samples: int
    max_bytes: int
    """Rows have 1 to 4 bytes."""
    late: Literal["accept", "drop"]
    detector: DetectorKind
    fails: frozenset[int]
    refused: frozenset[int]
    """Windows whose candidates make an old task worse."""
    schedule: tuple[int, ...]
    """Numbers below 20, used one after another wherever something may happen."""

    def stream(self, *, repeats: Literal["none", "near", "far"]) -> list[Row]:
        """The rows in order, and repeats of them later: near ones before the next task begins, far ones at any time."""
        rows: list[Row] = []
        again: list[Row] = []
        label = "a"
        for number, (step, partition, kind, copies) in enumerate(self.words):
            if step < 3 and "abc"[step] != label:
                label = "abc"[step]
                if repeats == "near":
                    rows, again = rows + again, []
            time = 10.0 * number - 500.0 * (kind == 3) + 1e6 * (kind == 4)
            rows.append(Row(f"id-{number}", label, 0, f"p{partition}", kind == 1, kind == 2, time, 1 + copies))
            if repeats != "none" and kind != 2:
                again += [rows[-1]] * copies
            if again and number % 3 == 0:
                rows.append(again.pop())
        return numbered(rows + again)


def numbered(rows: Sequence[Row]) -> list[Row]:
    """The rows with positions that count up in each partition."""
    read: Counter[str] = Counter()
    found = []
    for row in rows:
        read[row.partition] += 1
        found.append(replace(row, position=read[row.partition]))
    return found


def lived(case: Case, stream: Sequence[Row], schedule: Sequence[int], kind: type[Controller] = Controller) -> Disk:
    """The disk after as many lives as it takes to reach the end of the stream."""
    disk, numbers = Disk(), iter(schedule)
    window = WindowConfig(case.samples, case.max_bytes, age_s=1e9, late=case.late, late_s=20.0)
    while not disk.ended:
        learner = kind(case.detector.build(), window=window, seed=3)
        learner.watermark = Watermark(rows=5)
        Life(disk, stream, case, numbers).live(learner)
    return disk


def trained(disk: Disk) -> list[tuple[Any, ...]]:
    """Every window: what it is, and the ids it trains on in order."""
    windows = [disk.window(number) for number in sorted(disk.windows)]
    return [
        (
            *(w.id, w.task, w.closes_task, w.known, w.index, w.base, w.seed, w.memory),
            [disk.files[part.key][row] for part in w.samples for row in part.rows],
            [disk.files[part.key][row] for part in w.again for row in part.rows],
        )
        for w in windows
    ]


def check(case: Case, kind: type[Controller] = Controller, *, repeats: Literal["near", "far"] = "near") -> None:
    """The disturbed run, with repeats, against the undisturbed one without."""
    stream = case.stream(repeats=repeats)
    calm = lived(case, case.stream(repeats="none"), ())
    rough = lived(case, stream, case.schedule, kind)
    assert trained(rough) == trained(calm)
    assert rough.offers == calm.offers
    assert (rough.verdicts, rough.abandoned) == (calm.verdicts, calm.abandoned)
    assert {window for window, passed in calm.verdicts.items() if not passed} == case.refused & calm.versions.keys()
    check_counters(rough, stream)
    again = len(stream) - len(case.words)
    expected, found = dict(calm.records[-1]["counters"]), dict(rough.records[-1]["counters"])
    assert found.pop("in") == expected.pop("in") + again
    assert found.pop("dup") + found.pop("late") == expected.pop("dup") + expected.pop("late") + again
    assert found == expected  # a repeat of a dropped row is dropped again: late once more, and no repeat
    assert rough.records[-1]["watermark"] == calm.records[-1]["watermark"]


def check_bounds(learner: Controller) -> None:
    """What waits is bounded in bytes: but for its last row, and for rows that could have moved to the next task."""
    for draft in (learner.waiting, learner.open):
        rows = draft.rows if draft else []
        certain = rows[: max(0, len(rows) - 1 - learner.detector.lag)]
        assert sum(row.size for row in certain) < learner.config.max_bytes
    assert len(learner.backlog) + learner.pulls <= PREFETCH


def check_counters(disk: Disk, stream: Sequence[Row]) -> None:
    """At every commit each row behind the positions is counted once, and told once if it is dead."""
    told: Counter[tuple[str, int]] = Counter()
    for record in disk.records:
        counted = dict(record["counters"])
        behind = [row for row in stream if row.position <= record["positions"].get(row.partition, 0)]
        assert counted.pop("in") == sum(counted.values()) == len(behind)
        told.update((letter.partition, letter.position) for letter in record["dead"])
        assert told == Counter((row.partition, row.position) for row in behind if row.dead)


def any_case(*detectors: DetectorKind) -> st.SearchStrategy[Case]:
    word = st.tuples(st.integers(0, 9), st.integers(0, 1), st.integers(0, 7), st.integers(0, 3))
    return st.builds(
        Case,
        words=st.lists(word, min_size=4, max_size=24).map(tuple),
        samples=st.integers(1, 7),
        max_bytes=st.integers(1, 20),
        late=st.sampled_from(["accept", "drop"]),
        detector=st.sampled_from(detectors),
        fails=st.frozensets(st.integers(1, 6), max_size=2),
        refused=st.frozensets(st.integers(1, 6), max_size=2),
        schedule=st.binary(min_size=40, max_size=150).map(lambda drawn: tuple(byte % 20 for byte in drawn)),
    )


SWIFT: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=400, **SWIFT)
@given(any_case(Labels(), Never()))
def test_crashes_repeats_and_batching_change_no_window(case: Case) -> None:
    check(case)


@settings(max_examples=200, **SWIFT)
@given(any_case(Lagging()))
def test_crashes_and_batching_change_no_window_of_a_late_detector(case: Case) -> None:
    check(replace(case, words=tuple((*word[:3], 0) for word in case.words)))


@settings(max_examples=200, **SWIFT)
@given(any_case(Labels(), Never(), Lagging()))
def test_repeats_after_their_task_has_ended_change_no_window(case: Case) -> None:
    check(case, repeats="far")


def test_a_crash_at_any_point_of_two_lives_changes_no_window() -> None:
    words = tuple((step, 0, 0, 2) for step in (9, 9, 0, 9, 1, 9, 2, 9, 9, 0, 9))
    case = Case(words, 2, 100, "drop", Labels(), frozenset({2}), frozenset({3}), ())
    for point in range(60):
        check(replace(case, schedule=((CALM,) * point + (CRASH,)) * 2))


# -- broken twins ------------------------------------------------------------------------------------------------------


class ForgetsRecent(Controller):
    """Restores everything but the ids seen lately."""

    def restore(self, state: Any, training: Window | None) -> list[e.Action]:
        return super().restore({**state, "recent": ""}, training)


class DropsOpenRows(Controller):
    """Its checkpoints lack the rows that wait for their window."""

    def snapshot(self) -> dict[str, Any]:
        state = super().snapshot()
        return {**state, "open": state["open"] and {**state["open"], "rows": []}}


class RunsAhead(Controller):
    """Its checkpoints say that the backlog has been taken."""

    def _checkpoint(self) -> e.Checkpoint:
        checkpoint = super()._checkpoint()
        ahead = {name: position for arrival, _ in self.backlog for name, position in arrival.resume.items()}
        return replace(checkpoint, positions={**checkpoint.positions, **ahead})


class LosesTheWaitingWindow(Controller):
    """Its checkpoints lack the window that has closed and waits for the trainer."""

    def snapshot(self) -> dict[str, Any]:
        return {**super().snapshot(), "waiting": None}


class ForgetsThatATaskGoesOn(Controller):
    """Does not remember that the open task had a window already."""

    def restore(self, state: Any, training: Window | None) -> list[e.Action]:
        return super().restore({**state, "continues": False}, training)


class TrainsAgainFromTheBase(Controller):
    """Forgets which version is live."""

    def restore(self, state: Any, training: Window | None) -> list[e.Action]:
        return super().restore({**state, "standing": asdict(Standing())}, training)


class ForgetsWhatItOwes(Controller):
    """Does not remember that a window's rows are to be trained on once more."""

    def restore(self, state: Any, training: Window | None) -> list[e.Action]:
        return super().restore({**state, "owed": {}}, training)


class BuildsOnTheRefused(Controller):
    """Trains the next window from a candidate that the gate refused."""

    def handle(self, event: e.Event) -> list[e.Action]:
        actions = super().handle(event)
        if isinstance(event, e.Published):
            self.succession.standing = replace(event.standing, number=event.version.number)
        return actions


class ForgetsTheTime(Controller):
    """Does not remember how far the stream had come."""

    def restore(self, state: Any, training: Window | None) -> list[e.Action]:
        return super().restore({**state, "watermark": [None]}, training)


class ForgetsSizes(Controller):
    """Restored rows weigh nothing."""

    def restore(self, state: Any, training: Window | None) -> list[e.Action]:
        opened = state["open"] and {**state["open"], "rows": [[*row[:-1], 0] for row in state["open"]["rows"]]}
        return super().restore({**state, "open": opened}, training)


class CountsRepeatsAsTime(Controller):
    """A repeated sample moves the watermark."""

    def _pass(self, arrival: e.Arrival, row: int) -> None:
        super()._pass(arrival, row)
        if int(arrival.hashes_N[row]) in self.recent:
            self.watermark.take(float(arrival.times_N[row]))


TWINS = [
    ForgetsRecent, DropsOpenRows, RunsAhead, LosesTheWaitingWindow, ForgetsThatATaskGoesOn, TrainsAgainFromTheBase,
    ForgetsTheTime, ForgetsSizes, CountsRepeatsAsTime, ForgetsWhatItOwes, BuildsOnTheRefused,
]  # fmt: skip


@pytest.mark.parametrize("twin", TWINS)
def test_a_controller_that_forgets_is_caught(twin: type[Controller]) -> None:
    def breaks(case: Case) -> bool:
        try:
            check(case, twin)
        except (AssertionError, IndexError):
            return True
        return False

    thorough = settings(max_examples=1000, derandomize=True, phases=[Phase.generate], **SWIFT)
    try:
        find(any_case(Labels(), Never()), breaks, settings=thorough)
    except NoSuchExample:
        pytest.fail(f"{twin.__name__} passes the check")
