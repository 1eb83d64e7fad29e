"""The learner's whole life as a pure function: events in, actions out. No clock, no I/O, no Ray.

    Arrived ─▶ detector ─▶ open draft ─▶ waiting draft ─Freeze─▶ Frozen ─Train─▶ Trained ─Publish─▶ Published ─Swap─▶
                           (rows of the next window gather while this one trains)

A window closes at a boundary, at a count, at so many bytes, or at an age. One is in training at most; when the next has
closed too, rows stay in the backlog and nothing more is pulled: that is the back-pressure. Checkpoints lie between two
rows, so that reading goes on exactly where they end.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from itertools import count
from typing import Any

from streamcl import events as e
from streamcl.detect.base import Boundary, Detector
from streamcl.succession import Succession
from streamcl.train.gate import GateConfig
from streamcl.types import Window
from streamcl.window import Books, Draft, Taken, WindowConfig

PREFETCH = 2
"""Arrivals that may be asked for or lie in the backlog, with one encoder: one in hand, one on its way."""
PLAIN = ("seen", "windows", "closed", "continues")
"""Attributes that a snapshot takes over as they are."""


class Controller(Books):
    """Decides. `handle` changes the controller and returns what is to be done, in order."""

    def __init__(
        self, detector: Detector, *, window: WindowConfig, gate: GateConfig | None = None, replay_rows: int = 0,
        seed: int = 0, horizon: int = 65_536, prefetch: int = PREFETCH,
    ) -> None:  # fmt: skip
        """`replay_rows`: how many each window draws. `horizon`: how many ids back a repeated sample is noticed.
        `prefetch`: arrivals that may be asked for or lie in the backlog, at least 1.
        """
        super().__init__(horizon)
        self.detector, self.config, self.replay_rows, self.seed = detector, window, replay_rows, seed
        self.prefetch, self.succession = prefetch, Succession(gate or GateConfig())
        self.seen = self.windows = self.closed = 0
        self.tasks: list[str] = []
        self.open: Draft | None = None
        self.continues = False  # whether the open task had a window already
        self.waiting: Draft | None = None
        self.training: Window | None = None
        self.backlog: deque[tuple[e.Arrival, int]] = deque()
        self.pulls = 0
        self.ended = self.freezing = self.swapping = self.stopping = self.finished = False
        self.now: float | None = None

    def handle(self, event: e.Event) -> list[e.Action]:
        """What to do after `event`, in order."""
        actions: list[e.Action] = []
        match event:
            case e.Arrived(arrival):
                self.pulls -= 1
                self.ended = arrival.ended
                self.backlog.append((arrival, 0))
            case e.Frozen(window) if self.freezing and window.id == self.windows:
                self.freezing, self.training = False, window
                actions = [e.Train(window)]
            case e.Trained(window, result) if window == self.training:
                actions = [e.Publish(window, result, self.succession.judged(window, result))]
            case e.Failed(window, reason) if window == self.training:
                self.training = None
                actions = [e.Abandon(window, reason)]
            case e.Published(version) if self.training and self.training.id == version.window:
                self.succession.published(self.training, event)
                self.training, self.swapping = None, event.promoted
                actions = [e.Swap(version)] if event.promoted else []
            case e.Requested(request) if not self.finished:
                actions = [e.Obey(request)]
            case e.Moved(version, standing):
                self.succession.standing, self.swapping = standing, True
                actions = [e.Swap(version)]
            case e.Purged():
                self.succession.owed.clear()  # some of these rows may be of that source
            case e.Ticked(now):
                self.now = now
            case e.Stopping():
                self.stopping = True
            case e.Swapped(version) if version.number == self.succession.standing.number:
                self.swapping = False
            case _:  # answers that come again or too late change nothing
                pass
        return actions + self._next()

    def _next(self) -> list[e.Action]:
        """Everything that can be done now."""
        if self.finished or self.freezing:
            return []
        if self.stopping:
            self.finished = True
            return [e.Commit(self._checkpoint()), e.Finish(ended=False)]
        self._drain()
        if self.waiting and self.training is None:
            return [self._freeze(self.waiting), *self._pulls()]
        open_rows = self.open and self.open.rows
        if self.ended and not any((self.pulls, self.backlog, open_rows, self.waiting, self.training, self.swapping)):
            self.finished = True
            return [e.Commit(self._checkpoint()), e.Finish()]
        return self._pulls()

    def _pulls(self) -> list[e.Action]:
        wanted = 0 if self.ended or self.waiting else self.prefetch - self.pulls - len(self.backlog)
        self.pulls += max(0, wanted)
        return [e.Pull()] * wanted

    def _drain(self) -> None:
        """Takes rows from the backlog until a window waits for the trainer."""
        while self.backlog and not self.waiting:
            arrival, start = self.backlog.popleft()
            stop = self._take(arrival, start)
            if stop < len(arrival):
                self.backlog.appendleft((arrival, stop))
            else:
                self._bury(arrival)
        if self.waiting or self.open is None:
            return
        if size := self._full():
            self._close_counted(size)
        elif self.ended and not self.backlog and not self.pulls:
            if self.open.rows or self.continues:
                self._close(self.open, closes_task=True)
            self.open, self.continues = Draft(self.open.task), False  # should the source go on, so does its task
        elif self.open.rows and self.now is not None:
            self.open.since = self.now if self.open.since is None else self.open.since
            if self.now - self.open.since >= self.config.age_s:
                self._close_counted(len(self.open.rows) - self.detector.lag)

    def _full(self) -> int:
        """How many of the open rows make a full window; 0 while it is not full, or its last rows may yet move."""
        full = self.open.full(self.config) if self.open else None
        return full if full and self.open and len(self.open.rows) >= full + self.detector.lag else 0

    def _take(self, arrival: e.Arrival, start: int) -> int:
        """Takes rows from `start` on until a window closes; the first row not taken."""
        while start < len(arrival) and not self.waiting:
            if size := self._full():
                self._close_counted(size)
                continue
            last = self._run(arrival, start)
            if last == start:  # a repeated or late sample: the detector must not see it
                self._pass(arrival, start)
                repeated = int(arrival.hashes_N[start]) in self.recent
                self.counters.dup += repeated
                self.counters.late += not repeated
                start += 1
                continue
            boundary = self.detector.update(arrival.observations(start, last))
            stop = last if boundary is None else start + boundary.at
            self._gather(arrival, start, stop)
            if boundary is not None:
                self._begin(boundary)
                self._gather(arrival, stop, stop + 1)
                stop += 1
            start = stop
        return start

    def _run(self, arrival: e.Arrival, start: int) -> int:
        """Where the run of rows to be taken, from `start` on, ends: at a repeat, a late row, or the end of a window."""
        draft, config, watermark = self.open or Draft(""), self.config, self.watermark.copy()
        rows, room = config.samples - len(draft.rows), config.max_bytes - sum(row.size for row in draft.rows)
        if (full := draft.full(config)) is not None:
            rows, room = full + self.detector.lag - len(draft.rows), sys.maxsize
        run: set[int] = set()
        for row in range(start, len(arrival)):
            id_hash, time = int(arrival.hashes_N[row]), float(arrival.times_N[row])
            if len(run) == rows or room <= 0 or id_hash in self.recent or id_hash in run:
                return row
            if watermark.drops(time, config):
                return row
            run.add(id_hash)
            watermark.take(time)
            room -= int(arrival.sizes_N[row])
        return len(arrival)

    def _gather(self, arrival: e.Arrival, start: int, stop: int) -> None:
        """New rows, seen by the detector: into the open draft."""
        for row in range(start, stop):
            self._pass(arrival, row)
            self.seen += 1
            self.recent.add(int(arrival.hashes_N[row]))
            self.watermark.take(float(arrival.times_N[row]))
            assert self.open is not None, "a detector opens the first task with its first row"
            place = (arrival.key, row, arrival.ids[row], arrival.sources[row])
            self.open.rows.append(Taken(self.seen, *place, bool(arrival.heldout_N[row]), int(arrival.sizes_N[row])))

    # -- windows -------------------------------------------------------------------------------------------------------

    def _begin(self, boundary: Boundary) -> None:
        """Ends the open task before the boundary and opens the one that begins there."""
        first = self.seen + 1 - (boundary.at - boundary.starts)
        unused = (f"task-{n}" for n in count(1) if f"task-{n}" not in self.tasks)
        task = boundary.task or next(unused)
        moved: list[Taken] = []
        if self.open is not None:
            moved = [row for row in self.open.rows if row.number >= first]
            self.open.rows = self.open.rows[: len(self.open.rows) - len(moved)]
            if self.open.rows or self.continues:
                self._close(self.open, closes_task=True)
        if task not in self.tasks:
            self.tasks.append(task)
        self.detector.begin(task)
        self.open, self.continues = Draft(task, moved), False

    def _close_counted(self, size: int) -> None:
        """Closes a window of the first `size` rows; its task goes on."""
        assert self.open is not None, "only an open draft closes"
        if size < 1:
            return
        rest = Draft(self.open.task, self.open.rows[size:])
        self.open.rows = self.open.rows[:size]
        self._close(self.open, closes_task=False)
        self.open, self.continues = rest, True

    def _close(self, draft: Draft, *, closes_task: bool) -> None:
        draft.closes_task, draft.known = closes_task, tuple(self.tasks)
        self.waiting = draft

    def _freeze(self, draft: Draft) -> e.Freeze:
        """The waiting draft as a window, with the checkpoint that its record makes visible."""
        self.waiting, self.freezing = None, True
        self.windows += 1
        self.counters.accepted += len(draft.rows)
        window = Window(
            id=self.windows,
            task=draft.task,
            samples=draft.trained_on(),
            replay=(),
            seed=self.seed * 1_000_003 + self.windows,
            base=self.succession.standing.number,
            index=self.closed,
            closes_task=draft.closes_task,
            memory=self.succession.standing.memory,
            again=self.succession.owed.pop(draft.task, ()),
            known=draft.known,
        )
        self.closed += draft.closes_task
        columns = tuple(zip(*((r.id, r.key, r.row, r.source) for r in draft.rows), strict=True)) or ((), (), (), ())
        return e.Freeze(window, e.Offer(draft.task, *columns), self.replay_rows, self._checkpoint())

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def balance(self) -> dict[str, int]:
        """Counters as a record holds them: `in = accepted + dup + late + dead + pending`."""
        pending = sum(len(draft.rows) for draft in (self.open, self.waiting) if draft)
        values = asdict(self.counters) | {"pending": pending}
        return values | {"in": sum(values.values())}

    def _checkpoint(self) -> e.Checkpoint:
        dead, self.dead = tuple(self.dead), []
        training = self.training.id if self.training else None
        time = self.watermark.value
        return e.Checkpoint(self.snapshot(), dict(self.positions), self.balance(), time, training, dead)

    def snapshot(self) -> dict[str, Any]:
        """The state between two rows, as JSON values. The window in training is in the log, not here."""
        return {
            **{name: getattr(self, name) for name in PLAIN},
            **self.books(),
            "tasks": list(self.tasks),
            **self.succession.snapshot(),
            "detector": self.detector.snapshot(),
            "open": self.open.snapshot() if self.open else None,
            "waiting": self.waiting.snapshot() if self.waiting else None,
        }

    def restore(self, state: Mapping[str, Any], training: Window | None) -> list[e.Action]:
        """Becomes what `snapshot` saw, with `training` under way, and returns what is to be done first."""
        for name in PLAIN:
            setattr(self, name, state[name])
        self.reopen(state)
        self.tasks = list(state["tasks"])
        self.succession.restore(state)
        self.detector.restore(state["detector"])
        self.open, self.waiting = (Draft.restored(state[name]) for name in ("open", "waiting"))
        self.training = training
        return [*([e.Train(training)] if training else []), *self._next()]
