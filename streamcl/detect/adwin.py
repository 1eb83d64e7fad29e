"""Boundaries where the mean of one scalar rises: River's ADWIN on the loss, or on the distance from its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from streamcl.detect.base import Boundary, Observations, pack, unpack
from streamcl.errors import ConfigError

LONGEST = 65_536
"""After so many scalars without a change ADWIN is begun anew, so that a snapshot, which is the scalars, is bounded."""


@dataclass(frozen=True)
class Adwin:
    """Adaptive windowing.  Bifet and Gavaldà, SDM 2007.  Needs the extra `adwin` (river).

    Assumes that a new task shows as a rise of the scalar: a loss that falls while the task is learned is no boundary.
    Does not recognise tasks that return. Interleaved producers are one task if they
    alternate faster than ADWIN's window.
    """

    watch: Literal["distance", "loss"] = "distance"
    """"distance": of the embedding from the mean of the task's first `warm_up`. "loss": before it is trained on,
    for callers who give it (the learner cannot: see `base.py`)."""
    delta: float = 0.002
    """ADWIN's confidence. Not a false-alarm rate of the stream: see `mmd` for one."""
    warm_up: int = 64
    """Samples at the start of a task that only set the mean."""
    lag: int = 192
    """How far back the beginning of the task may lie."""

    def __post_init__(self) -> None:
        if self.watch not in ("distance", "loss") or not 0 < self.delta < 1 or self.warm_up < 2 or self.lag < 0:
            raise ConfigError(f"{self}: needs watch distance or loss, 0 < delta < 1, warm_up >= 2 and lag >= 0")

    def build(self) -> AdwinDetector:
        return AdwinDetector(self)


class AdwinDetector:
    """Mutable: ADWIN, the scalars it has seen, and the mean that distances are taken from."""

    def __init__(self, settings: Adwin) -> None:
        self.settings = settings
        self.lag = settings.lag
        self.started = False
        self.mean_D: np.ndarray | None = None
        self._begin_task()

    def update(self, seen: Observations) -> Boundary | None:
        if self.settings.watch == "loss" and seen.losses_N is None:
            raise ConfigError("adwin watches the loss, but these samples come without losses: set watch to distance")
        for row in range(len(seen)):
            if not self.started:
                self.started = True
                self._scalar(seen, row)
                return Boundary(0, 0, None)
            scalar = self._scalar(seen, row)
            if scalar is not None and self._rises(scalar):
                starts = row - min(int(self.adwin.width) - 1, self.lag)
                self._begin_task()
                return Boundary(row, starts, None)
        return None

    def begin(self, task: str) -> None:
        """Does nothing: every boundary is to a new task, and nothing is filed."""

    def snapshot(self) -> dict[str, Any]:
        mean = None if self.mean_D is None else pack(self.mean_D)
        return {"started": self.started, "count": self.count, "mean_D": mean, "scalars": pack(np.array(self.scalars))}

    def restore(self, state: dict[str, Any]) -> None:
        self._begin_task()
        self.started, self.count = state["started"], state["count"]
        self.mean_D = None if state["mean_D"] is None else unpack(state["mean_D"])
        for scalar in unpack(state["scalars"]):
            self._rises(float(scalar))  # ADWIN cannot be written down, but it can be led there again

    def _begin_task(self) -> None:
        self.adwin = _river_adwin(self.settings.delta)
        self.scalars: list[float] = []
        self.mean_D = None
        self.count = 0

    def _scalar(self, seen: Observations, row: int) -> float | None:
        """The row's scalar; None while the task is warming up, and the row is taken into its mean."""
        self.count += 1
        if self.settings.watch == "loss":
            assert seen.losses_N is not None
            return float(seen.losses_N[row]) if self.count > self.settings.warm_up else None
        x_D = seen.embeddings_ND[row].astype(np.float64)
        if self.mean_D is None:
            self.mean_D = np.zeros_like(x_D)
        if self.count <= self.settings.warm_up:
            self.mean_D += (x_D - self.mean_D) / self.count
            return None
        return float(np.linalg.norm(x_D - self.mean_D))

    def _rises(self, scalar: float) -> bool:
        """Takes the scalar in; whether ADWIN has dropped older ones because the mean has risen."""
        if len(self.scalars) == LONGEST:
            self.adwin, self.scalars = _river_adwin(self.settings.delta), []
        self.scalars.append(scalar)
        before = self.adwin.estimation
        self.adwin.update(scalar)
        return bool(self.adwin.drift_detected and self.adwin.estimation > before)


def _river_adwin(delta: float) -> Any:
    try:
        from river.drift import ADWIN
    except ImportError as error:
        raise ConfigError("detector kind adwin needs river: pip install 'streamcl[adwin]'") from error
    return ADWIN(delta=delta)
