"""The contract of a detector: embeddings, labels and losses of arriving samples go in, task boundaries come out.

Shapes: N samples, D features. The caller's loop, the same for every kind:

    while len(seen):
        boundary = detector.update(seen)
        if boundary is None:
            break
        detector.begin(boundary.task or a_new_name)      # before the next update
        seen = seen.from_row(boundary.at + 1)

The prequential loss is no feature of the learner's own detectors: its trainer meets a sample only in a window, and
windows are cut by the boundaries that are sought here. A caller who scores samples as they arrive may give losses.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Observations:
    """What a detector sees of consecutive samples, in order of arrival."""

    embeddings_ND: np.ndarray
    """float32. Zero columns where nothing embeds, for the kinds that do not look."""
    labels: tuple[str | None, ...]
    losses_N: np.ndarray | None = None
    """The loss of each sample before it was trained on, where the caller has it; the learner has not."""

    def __len__(self) -> int:
        return len(self.labels)

    def from_row(self, start: int) -> Observations:
        """The rows from `start` on."""
        losses_N = None if self.losses_N is None else self.losses_N[start:]
        return Observations(self.embeddings_ND[start:], self.labels[start:], losses_N)


@dataclass(frozen=True)
class Boundary:
    """A new task begins, or an old one returns. Rows count from the first row of the observations given to `update`."""

    at: int
    """The row whose arrival raised the alarm."""
    starts: int
    """The row where the task begins: at most `lag` rows before `at`; negative in rows given earlier."""
    task: str | None
    """The task's name: its label, or that of a task which returns. None: new, to be named by the caller."""


class Detector(Protocol):
    """Watches one stream. Mutable, deterministic, never blocks; how rows are batched changes no decision.

    The very first row of a stream is a boundary (0, 0, label or None): the first task needs no special case.
    """

    @property
    def lag(self) -> int:
        """How far `starts` may lie before `at`; the caller keeps so many samples out of closed windows."""

    def update(self, seen: Observations) -> Boundary | None:
        """Takes rows up to and including the first boundary's `at`, and returns it; or takes all, and returns None."""

    def begin(self, task: str) -> None:
        """Names the task that the last boundary began; what its rows teach, from `starts` on, is filed under `task`."""

    def snapshot(self) -> dict[str, Any]:
        """The whole state as JSON values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Makes this detector, built from the same settings, decide as the one that gave `state` would have."""


class DetectorKind(Protocol):
    """Settings of a detector: a frozen dataclass, which is also its YAML section."""

    def build(self) -> Detector:
        """A detector that has seen nothing."""


def pack(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON values, every bit kept."""
    raw = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"dtype": array.dtype.str, "shape": list(array.shape), "base64": raw}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """The array that `pack` was given, writable."""
    raw = base64.b64decode(packed["base64"])
    return np.frombuffer(raw, dtype=np.dtype(packed["dtype"])).reshape(packed["shape"]).copy()
