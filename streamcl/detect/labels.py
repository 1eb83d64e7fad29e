"""Boundaries that need no statistics: where the label changes, or none at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamcl.detect.base import Boundary, Observations


@dataclass(frozen=True)
class Labels:
    """A task is a run of equal labels. Assumes that whoever wrote the labels was right.

    A sample without a label continues the task; a stream that starts without labels starts with an unnamed task,
    which the first label ends. Interleaved tasks alternate: one boundary for each change of label.
    """

    def build(self) -> LabelDetector:
        return LabelDetector()


class LabelDetector:
    """Mutable: remembers the last label."""

    lag = 0

    def __init__(self) -> None:
        self.label: str | None = None
        self.started = False

    def update(self, seen: Observations) -> Boundary | None:
        for row, label in enumerate(seen.labels):
            if not self.started or label not in (None, self.label):
                self.started, self.label = True, label
                return Boundary(row, row, label)
        return None

    def begin(self, task: str) -> None:
        """Does nothing: the label, not the name it was given, says when the task ends."""

    def snapshot(self) -> dict[str, Any]:
        return {"label": self.label, "started": self.started}

    def restore(self, state: dict[str, Any]) -> None:
        self.label, self.started = state["label"], state["started"]


@dataclass(frozen=True)
class Never:
    """The whole stream is one unnamed task, labels or not."""

    def build(self) -> NeverDetector:
        return NeverDetector()


class NeverDetector:
    """Mutable: remembers whether the stream has begun."""

    lag = 0

    def __init__(self) -> None:
        self.started = False

    def update(self, seen: Observations) -> Boundary | None:
        if self.started or not len(seen):
            return None
        self.started = True
        return Boundary(0, 0, None)

    def begin(self, task: str) -> None:
        """Does nothing: there is one task."""

    def snapshot(self) -> dict[str, Any]:
        return {"started": self.started}

    def restore(self, state: dict[str, Any]) -> None:
        self.started = state["started"]
