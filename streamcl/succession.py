"""Who answers, and what the next window starts from: the gate's decisions and those of people. Pure.

What answers is the base of the next window, whoever made it answer. So a candidate that was refused is nobody's base,
and after a rollback learning goes on from the version that was gone back to, with the task memory that it had left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from streamcl import events as e
from streamcl.train.gate import GateConfig, Verdict, judge
from streamcl.types import Rows, Standing, Window


class Succession:
    """Changes in place."""

    def __init__(self, gate: GateConfig) -> None:
        self.gate, self.standing = gate, Standing()
        self.owed: dict[str, tuple[Rows, ...]] = {}
        """By task, the rows of its last window if that left no live version. Its next window trains on them once more;
        those of a window before that are left to the reservoir, so what is bad in them spoils two windows at most."""

    def judged(self, window: Window, result: e.TrainResult) -> Verdict:
        """Whether the window's candidate may answer. It was compared with its base: that must be what answers still."""
        if window.base != self.standing.number:
            return Verdict(False, f"v{self.standing.number} was made live while it was trained from v{window.base}")
        return judge(result.evidence, self.gate, task=window.task, known=window.task in self.standing.learned)

    def published(self, window: Window, event: e.Published) -> None:
        """The window has its version, live or not."""
        self.standing = event.standing
        if not event.promoted:
            self.owed[window.task] = window.samples

    def snapshot(self) -> dict[str, Any]:
        """The state as JSON values."""
        owed = {task: [asdict(part) for part in rows] for task, rows in self.owed.items()}
        return {"standing": asdict(self.standing), "owed": owed}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Becomes what `snapshot` saw."""
        self.standing = Standing.from_json(state["standing"])
        self.owed = {task: Rows.from_json(rows) for task, rows in state.get("owed", {}).items()}
