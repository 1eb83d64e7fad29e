"""Boundaries from the embeddings alone: a two-sample test whose one knob is how often it may be wrong.

Shapes: N rows given, B rows of a block, D embedding width, F frequencies.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from streamcl.detect.base import Boundary, Observations, pack, unpack
from streamcl.detect.evidence import CHANNELS, Evidence, change_point, threshold
from streamcl.detect.reference import Reference
from streamcl.errors import ConfigError

BLOCK = 32
"""Rows are compared in blocks that begin at multiples of this, always computed whole: batching changes no bit."""
GUARD = 64
"""Rows that must follow a row before it joins the reference."""
LOT = 128
"""Rows join the reference when the row count is a multiple of this: each time, all its features are computed anew."""


@dataclass(frozen=True)
class Mmd:
    """Online kernel two-sample test between recent samples and the current task's reference, calibrated by ranks.

    Random Fourier features as in NEWMA (Keriven et al., arXiv:1805.08061), windows of several lengths as in online
    kernel CUSUM (Wei and Xie, arXiv:2211.15070), threshold as in `evidence.py`. Assumes that samples of one task arrive
    shuffled.

    A change is one boundary, at the sample where the statistic places it. A gradual change is as a rule one boundary
    too, inside the transition: what is found within `shortest` samples of a boundary, and is no known task, is the same
    change still going on, and only renews the reference. Producers that are interleaved finely (at random, or in turns
    of a few samples) form one task, the mixture; turns longer than about `cool_down` + `confirm` samples are
    boundaries, recognised as returns. When one of two finely mixed producers stops, that is a boundary.

    The knob counts alarms, and an alarm becomes a boundary only if the next samples alone raise it again: a false one
    does so once in about false_alarm_every / `confirm` times. A wrong boundary costs a task for ever, a late look costs
    `confirm` samples at most. Whoever wants every alarm to be a boundary sets `second_look` to false.
    """

    false_alarm_every: int = 10_000
    """Samples between false alarms, on average, while one task goes on; boundaries are rarer (see `second_look`)."""
    warm_up: int = 128
    """Samples at the start of a new task that only teach what it looks like; a change among them is not seen."""
    cool_down: int = 32
    """Samples after a boundary during which no alarm is raised."""
    shortest: int = 256
    """Shortest new task: sooner after a boundary than this, no other new one begins; a known task may return. So a
    shorter new task and the next new one become one task. Less (`warm_up` at least makes sense) keeps them apart, at
    the price that a change over hundreds of samples is cut more than once."""
    confirm: int = 64
    """Samples of the new task on which it must be rejected as every stored one, or else is taken for the nearest."""
    second_look: bool = True
    """An alarm is a boundary only if it is raised again by the next `confirm` samples alone; else each alarm is one."""
    lag: int = 192
    """How far back the beginning of the task may lie."""
    frequencies: int = 128
    reference: int = 512
    """Samples kept of each task: 0.22 MB in a snapshot."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.false_alarm_every >= 2 * self.shortest > 0 and self.warm_up >= 64 and self.cool_down >= 0):
            raise ConfigError(f"{self}: needs false_alarm_every >= 2 shortest > 0, warm_up >= 64 and cool_down >= 0")
        if not (1 <= self.confirm < self.lag and self.reference >= 2 * self.warm_up and self.frequencies >= 8):
            raise ConfigError(f"{self}: needs 1 <= confirm < lag, reference >= 2 warm_up and frequencies >= 8")

    def build(self) -> MmdDetector:
        return MmdDetector(self)


class MmdDetector:
    """Mutable: the current task's reference and evidence, the references of earlier tasks, and the latest rows."""

    def __init__(self, settings: Mmd) -> None:
        self.settings = settings
        self.lag = settings.lag
        self.keep = max(settings.lag, settings.warm_up, LOT + GUARD) + 2 * BLOCK
        """Rows before the newest block whose projections are kept."""
        self.limit = threshold(settings.false_alarm_every, silent=settings.shortest)
        self.frequencies_DF: np.ndarray | None = None
        self.recent_BF = np.zeros((0, settings.frequencies), np.float32)
        """Projections of the rows before `row`, the latest last."""
        self.row = 0
        """Rows seen of the stream."""
        self.checked = 0
        """Where the rows begin that `evidence` does not hold yet."""
        self.absorbed = 0
        """Where the rows begin that the reference was not offered."""
        self.task: str | None = None
        self.began = 0
        """Where the current task began, or its reference was begun anew."""
        self.quiet_until = 0
        self.renew_until = settings.shortest
        self.current: Reference | None = None
        self.evidence = Evidence(2 * settings.frequencies)
        self.alarm: tuple[int, int] | None = None
        """Row of an alarm whose task is not identified yet, and where the change lies."""
        self.tasks: dict[str, Reference] = {}

    def update(self, seen: Observations) -> Boundary | None:
        first_row, offset = self.row, 0
        while offset < len(seen):
            room = 1 if self.row == 0 else BLOCK - self.row % BLOCK
            self._append(seen.embeddings_ND[offset : offset + room])
            found = Boundary(0, 0, None) if self.row == 1 else self._decide()
            if found is not None:
                return Boundary(found.at - first_row, found.starts - first_row, found.task)
            offset = self.row - first_row
        return None

    def begin(self, task: str) -> None:
        self.task = task

    def snapshot(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "settings": asdict(self.settings),
            "width": None if self.frequencies_DF is None else len(self.frequencies_DF),
            "recent_BF": pack(self.recent_BF),
            "evidence": self.evidence.snapshot(),
            "current": None if self.current is None else self.current.snapshot(),
            "tasks": {name: reference.snapshot() for name, reference in self.tasks.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        if state["settings"] != asdict(self.settings):
            raise ConfigError(f"a detector with {state['settings']} cannot go on with {asdict(self.settings)}")
        for name in _PLAIN:
            setattr(self, name, state[name])
        self.alarm = None if state["alarm"] is None else (state["alarm"][0], state["alarm"][1])
        self.frequencies_DF = None if state["width"] is None else self._draw_frequencies(state["width"])
        self.recent_BF = unpack(state["recent_BF"])
        self.evidence = Evidence.restored(state["evidence"])
        self.current = None if state["current"] is None else Reference.restored(state["current"])
        self.tasks = {name: Reference.restored(reference) for name, reference in state["tasks"].items()}

    def _draw_frequencies(self, width: int) -> np.ndarray:
        random = np.random.default_rng(self.settings.seed)
        scale = np.float32(self.settings.frequencies**-0.5)
        return random.standard_normal((width, self.settings.frequencies), dtype=np.float32) * scale

    def _append(self, embeddings_BD: np.ndarray) -> None:
        """Projects rows at their places in a whole block, so that no sum depends on the batch they came in."""
        if self.frequencies_DF is None:
            self.frequencies_DF = self._draw_frequencies(embeddings_BD.shape[1])
        place = self.row % BLOCK
        block_BD = np.zeros((BLOCK, embeddings_BD.shape[1]), np.float32)
        block_BD[place : place + len(embeddings_BD)] = embeddings_BD
        projected_BF = (block_BD @ self.frequencies_DF)[place : place + len(embeddings_BD)]
        self.recent_BF = np.concatenate([self.recent_BF[-self.keep :], projected_BF])
        self.row += len(embeddings_BD)

    def _rows(self, start: int, stop: int) -> np.ndarray:
        """Projections of the stream's rows from `start` to before `stop`."""
        before = self.row - len(self.recent_BF)
        assert start >= before
        return self.recent_BF[start - before : stop - before]

    def _score(self, evidence: Evidence, reference: Reference, start: int, stop: int, size: int) -> np.ndarray:
        """z of the rows [start, stop), computed as `size` rows: [stop - start, C]."""
        padded_BF = np.zeros((size, self.settings.frequencies), np.float32)
        padded_BF[: stop - start] = self._rows(start, stop)
        blocks = range(start // BLOCK, (start + size - 1) // BLOCK + 1)
        draws = [np.random.default_rng((self.settings.seed, block)).random((BLOCK, CHANNELS)) for block in blocks]
        uniforms_BC = np.concatenate(draws)[start % BLOCK :][:size]
        return evidence.score(reference, reference.features(padded_BF), uniforms_BC)[: stop - start]

    def _again(self, evidence: Evidence, reference: Reference, start: int, stop: int) -> np.ndarray:
        """The statistic after each of at most `confirm` rows [start, stop), by evidence of their own."""
        z_BC = self._score(evidence, reference, start, stop, self.settings.confirm)
        statistic_B: np.ndarray = evidence.weigh(reference, z_BC).mean(axis=(1, 2))
        return statistic_B

    def _decide(self) -> Boundary | None:
        """The boundary that the newest rows, at most to the end of a block, establish."""
        whole = self.row % BLOCK == 0
        while self.current is not None:
            if self.alarm is None:
                self._watch(whole)
            if self.alarm is None:
                return None
            found = self._identify()
            if found is not None or self.alarm is not None:
                return found
        if whole and self.row - self.began >= self.settings.warm_up:
            self._open_reference()
        return None

    def _open_reference(self) -> None:
        middle = self.began + self.settings.warm_up // 2
        metric_BF, opening_BF = self._rows(self.began, middle), self._rows(middle, self.row)
        self.current = Reference(metric_BF, opening_BF, first_row=middle, channels=CHANNELS)
        self.evidence = Evidence(2 * self.settings.frequencies)
        self.checked = self.absorbed = self.row

    def _watch(self, whole: bool) -> None:
        """Weighs the rows since `checked`; sets `alarm`, or at the end of a block takes them into account."""
        assert self.current is not None
        z_BC = self._score(self.evidence, self.current, self.checked, self.row, BLOCK)
        ratios_BCT = self.evidence.weigh(self.current, z_BC)
        raised_B = ratios_BCT.mean(axis=(1, 2)) >= self.limit
        raised_B &= np.arange(self.checked, self.row) >= self.quiet_until
        if raised_B.any():
            at = self.checked + int(np.argmax(raised_B))
            start = max(at + self.settings.confirm - self.settings.lag, self.began)
            split = change_point(self.current, self.current.features(self._rows(start, at + 1)))
            self.alarm = (at, start + split)
        elif whole and self.row > self.checked:
            self.evidence.keep(self.current.features(self._rows(self.checked, self.row)), ratios_BCT[-1])
            self.current.learn(z_BC)
            self.checked = self.row
            if self.row % LOT == 0:
                self._absorb(self.row - GUARD)

    def _absorb(self, ready: int) -> None:
        """Offers the reference the rows from `absorbed` to before `ready`, as far as they are still there."""
        assert self.current is not None
        first = max(self.absorbed, self.row - self.keep)
        if ready > first:
            random = np.random.default_rng((self.settings.seed, 1, ready))
            rows_BF = self._rows(first, ready)
            self.current.absorb(rows_BF, first_row=first, capacity=self.settings.reference, random=random)
            self.absorbed = ready

    def _identify(self) -> Boundary | None:
        """The boundary that an alarm leads to. None: open, dismissed (alarm gone), or renewed (reference gone)."""
        assert self.alarm is not None
        at, starts = self.alarm
        left = self._left()
        if left is None:
            if self.row > at + self.settings.confirm:
                self.alarm, self.evidence = None, Evidence(2 * self.settings.frequencies)
                self.checked = at + 1 + self.settings.confirm
            return None
        confirm = self.settings.confirm
        first = max(starts, at + 1 - confirm)
        stop = min(self.row, first + confirm)
        worst = {}  # each stored task's largest statistic up to each row
        for name, reference in self.tasks.items():
            evidence = Evidence(2 * self.settings.frequencies)
            worst[name] = np.maximum.accumulate(self._again(evidence, reference, first, stop))
        alike_B = sum((worst_B < self.limit for worst_B in worst.values()), np.zeros(stop - first, bool))
        if not alike_B.all():
            return self._turn(max(first + int(np.argmin(alike_B)), left), starts, None)
        if stop < first + confirm:
            return None
        return self._turn(max(stop - 1, left), starts, min(worst, key=lambda name: float(worst[name][-1])))

    def _left(self) -> int | None:
        """The row at which the second look settled that the samples since the alarm are not the current task's."""
        assert self.alarm is not None
        assert self.current is not None
        at, starts = self.alarm
        if not self.settings.second_look:
            return at
        evidence = Evidence(2 * self.settings.frequencies)
        evidence.window_JM[:] = self.current.features(self._rows(starts, at + 1)).mean(axis=0)
        stop = min(self.row, at + 1 + self.settings.confirm)
        again_B = self._again(evidence, self.current, at + 1, stop) >= self.limit
        return at + 1 + int(np.argmax(again_B)) if again_B.any() else None

    def _turn(self, at: int, starts: int, task: str | None) -> Boundary | None:
        """Leaves the current task at `starts` for `task`, a new one, or, too soon after a boundary, for itself anew."""
        assert self.current is not None
        renewed = task is None and starts < self.renew_until
        self.alarm, self.quiet_until = None, at + 1 + self.settings.cool_down
        if not renewed:
            self.renew_until = starts + self.settings.shortest
            assert self.task is not None, "begin() names each task before the next update()"
            self.current.forget(from_row=starts)
            if len(self.current) >= self.settings.warm_up // 2:  # else too little was seen of it to know it again
                self.tasks[self.task] = self.current
            self.recent_BF = self._rows(self.row - len(self.recent_BF), at + 1)
            self.row = at + 1
        self.current = None if task is None else self.tasks.pop(task)
        self.began, self.evidence = starts, Evidence(2 * self.settings.frequencies)
        self.checked = self.absorbed = self.row
        return None if renewed else Boundary(at, starts, task)


_PLAIN = ("row", "checked", "absorbed", "task", "began", "quiet_until", "renew_until", "alarm")
