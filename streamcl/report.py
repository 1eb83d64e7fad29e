"""What a run has learned and kept, read from its log: the accuracy matrix, its metrics, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from streamcl import metrics
from streamcl.registry.log import Log


@dataclass(frozen=True)
class Matrix:
    """Scores of every task after each finished one."""

    tasks: tuple[str, ...]
    """Rows: tasks in the order in which they were first finished; or what is scored, where that has other names."""
    columns: tuple[str, ...]
    """The finished tasks in order; one that returned is there again."""
    a_TC: metrics.Matrix
    zero_shot: tuple[float, ...] | None
    """Scores of the bare base model, where all tasks could be scored before the first window."""

    @property
    def named(self) -> bool:
        """Whether rows and columns have the same names. Not so without labels: tasks are then task-1, task-2, …"""
        return set(self.tasks) <= set(self.columns)

    @property
    def learned(self) -> list[int]:
        """For each row, the column after which it was first known; without names, the one with the largest gain."""
        if self.named:
            return [self.columns.index(task) for task in self.tasks]
        before = np.zeros(len(self.tasks)) if self.zero_shot is None else np.array(self.zero_shot)
        gains = np.diff(self.a_TC, axis=1, prepend=before[:, None])
        return [int(column) for column in gains.argmax(axis=1)]

    def sorted(self) -> Matrix:
        """The same with the rows in the order in which they were learned."""
        order = sorted(range(len(self.tasks)), key=self.learned.__getitem__)
        zero_shot = self.zero_shot and tuple(self.zero_shot[row] for row in order)
        return Matrix(tuple(self.tasks[row] for row in order), self.columns, self.a_TC[order], zero_shot)

    def metrics(self) -> dict[str, float]:
        """Every metric of `metrics.DEFINITIONS` that the matrix has numbers for."""
        return metrics.summarize(self.a_TC, learned=self.learned, zero_shot=self.zero_shot)


def versions_of(log: Log) -> Sequence[Mapping[str, Any]]:
    """The version part of every commit that still holds, oldest first."""
    return [record.version for record in log.lineage() if record.version][::-1]


def passed(version: Mapping[str, Any]) -> bool:
    """Whether the gate let the version answer; so it was before there was one."""
    found: bool = version["extra"].get("gate", {}).get("passed", True)
    return found


def matrix(versions: Sequence[Mapping[str, Any]]) -> Matrix | None:
    """The accuracy matrix; None while no task is finished. A score that was not taken is NaN.

    What the gate refused has no column, though an operator may have made it live later.
    """
    closing = [version for version in versions if version["extra"]["closes_task"] and passed(version)]
    if not closing:
        return None
    columns = tuple(version["task"] for version in closing)
    scored = closing[-1]["scores"]
    tasks = tuple(dict.fromkeys(columns)) if set(columns) <= set(scored) else tuple(scored)
    rows = [[version["scores"].get(task, np.nan) for version in closing] for task in tasks]
    before = versions[0]["extra"]["before"]
    zero_shot = tuple(before[task] for task in tasks) if all(task in before for task in tasks) else None
    return Matrix(tasks, columns, np.array(rows, np.float64), zero_shot).sorted()


def draw(result: Matrix, path: Path | IO[bytes], *, title: str) -> None:
    """The matrix as a picture: tasks down, time across, each cell a score in percent."""
    from matplotlib.figure import Figure

    tasks, columns = len(result.tasks), len(result.columns)
    zero = [] if result.zero_shot is None else [("zero-shot", np.array(result.zero_shot))]
    shown = [*zero, *((name, result.a_TC[:, t]) for t, name in enumerate(result.columns))]
    values = np.stack([column for _, column in shown], axis=1) * 100
    figure = Figure(figsize=(1.6 + 1.0 * len(shown), 1.8 + 0.62 * tasks), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(values, cmap="YlGn", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        known = column - len(zero) >= result.learned[row]
        colour = "white" if value > 65 else "black"
        axes.text(
            column, row, f"{value:.0f}", ha="center", va="center", color=colour, weight="bold" if known else "normal"
        )
    axes.set_xticks(range(len(shown)), [name for name, _ in shown], rotation=30, ha="right")
    axes.set_yticks(range(tasks), result.tasks)
    axes.set_xlabel(f"after learning … ({columns} finished tasks)")
    axes.set_ylabel("score on")
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=150)


def summary(log: Log, *, seconds: Mapping[str, float], requests: Mapping[str, int]) -> dict[str, Any]:
    """Everything a script wants to know of a run, as JSON values."""
    versions = versions_of(log)
    result = matrix(versions)
    head = log.head()
    stages: dict[str, float] = {}
    for version in versions:
        for stage, spent in version["extra"]["seconds"].items():
            stages[stage] = stages.get(stage, 0.0) + spent
    described: dict[str, Any] = {"matrix": None}
    if result is not None:
        table = [[None if np.isnan(value) else float(value) for value in row] for row in result.a_TC]
        described = {"matrix": {"tasks": result.tasks, "after": result.columns, "scores": table}}
        named = {name: None if np.isnan(value) else value for name, value in result.metrics().items()}
        described |= {"zero_shot": result.zero_shot, **named}
    return {
        **described,
        "windows": sum(1 for record in log.lineage() if record.kind == "window"),
        "versions": [{name: v[name] for name in ("number", "digest", "task", "window", "scores")} for v in versions],
        "requests": dict(requests),
        "counters": head.state.get("counters") if head else None,
        "seconds": {**stages, **seconds},
    }
