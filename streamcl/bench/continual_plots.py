"""The two pictures of the continual-learning bench: accuracy matrices, and Last against the cost of training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from streamcl.bench.report import interval

Result = dict[str, Any]
"""What a cell gives, and its "label". A label with a comma is an ablation's: "hifgo, one stage"."""
COLUMNS = 4
"""Matrices side by side."""


def plots(results: Sequence[Result], folder: Path) -> None:
    """Writes `continual_matrix.png` and `continual_cost.png`."""
    plot_matrices(results, folder / "continual_matrix.png")
    plot_cost(results, folder / "continual_cost.png")


def plot_matrices(results: Sequence[Result], path: Path) -> None:
    """Of each strategy that learns in sequence: accuracy, mean over the seeds of the first result's order."""
    order = results[0]["cell"]["order"]
    shown = [one for one in results if one["cell"]["order"] == order and len(one["matrix"][0]) > 1]
    labels = [label for label in dict.fromkeys(one["label"] for one in shown) if "," not in label]
    rows = math.ceil(len(labels) / COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(3.3 * COLUMNS, 3.1 * rows + 0.6), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for panel, label in zip(axes.flat, labels, strict=False):
        same = [one for one in shown if one["label"] == label]
        image = _matrix(panel, same)
        panel.set_title(f"{label}   Last {100 * interval([one['last'] for one in same])[0]:.1f}", fontsize=10)
    for panel in axes.flat[len(labels) :]:
        panel.set_visible(False)
    figure.supxlabel("tasks learned so far", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.7, label="accuracy, %")
    figure.suptitle(f"Accuracy on each task (rows) as tasks are learned (columns), order {order!r}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _matrix(panel: Any, results: Sequence[Result]) -> Any:
    """Accuracies [tasks, visits] in percent, in colour and in figures; a frame where a task is being learned."""
    tasks, visits = results[0]["tasks"], len(results[0]["matrix"][0])
    mean = 100 * np.mean([np.array(one["matrix"], dtype=np.float64) for one in results], axis=0)  # NaN: not yet met
    image = panel.imshow(mean, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    for task, row in enumerate(mean):
        for visit, value in enumerate(row):
            if math.isfinite(value):
                panel.text(visit, task, f"{value:.0f}", ha="center", va="center", fontsize=7,
                           color="black" if value > 60 else "white")  # fmt: skip
        learned = [task] if task else [0, *range(len(tasks), visits)]  # what comes again is the first task
        for visit in learned:
            panel.add_patch(plt.Rectangle((visit - 0.5, task - 0.5), 1, 1, fill=False, edgecolor="crimson", lw=1.5))
    panel.set_yticks(range(len(tasks)), tasks, fontsize=8)
    panel.set_xticks(range(visits), [str(visit + 1) for visit in range(visits)], fontsize=8)
    return image


def plot_cost(results: Sequence[Result], path: Path) -> None:
    """Last over seconds of training relative to fine-tuning's on the same order and seed, with 95 % intervals."""
    plain = {_place(one): one["train_s"] for one in results if one["label"] == "finetune"}
    points = []
    for label in dict.fromkeys(one["label"] for one in results):
        same = [one for one in results if one["label"] == label and _place(one) in plain]
        cost = interval([one["train_s"] / plain[_place(one)] for one in same])
        points.append((label, cost, interval([100 * one["last"] for one in same])))
    points.sort(key=lambda point: point[2][0])
    figure, axes = plt.subplots(figsize=(8.5, 5.2), layout="constrained")
    heights = _spread([last for _, _, (last, _) in points])
    right = max(cost + half for _, (cost, half), _ in points)
    left = min(cost - half for _, (cost, half), _ in points)
    edge = right + 0.08 * (right - left)
    for number, ((label, cost, last), height) in enumerate(zip(points, heights, strict=True)):
        colour, small = f"C{number % 10}", "," in label
        axes.errorbar(cost[0], last[0], xerr=cost[1], yerr=last[1], fmt="s" if small else "o", color=colour, capsize=2,
                      markersize=4 if small else 7, alpha=0.6 if small else 1.0, lw=1)  # fmt: skip
        axes.plot([cost[0], edge], [last[0], height], color=colour, lw=0.6, alpha=0.5)
        axes.text(edge, height, f" {label}", va="center", fontsize=8 if small else 10, color=colour)
    axes.set_xlim(left - 0.08 * (right - left), right + 0.55 * (right - left))
    axes.set(xlabel="seconds of training, relative to finetune", ylabel="Last, %")
    axes.set_title("What is known at the end, and what it cost (95 % intervals)")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _place(result: Result) -> tuple[str, int]:
    return result["cell"]["order"], result["cell"]["seed"]


def _spread(heights: Sequence[float]) -> list[float]:
    """Rising heights moved apart, so that labels there do not overlap, about where they were."""
    gap = max(2.5, (heights[-1] - heights[0]) / 22)
    apart = list(heights)
    for number in range(1, len(apart)):
        apart[number] = max(apart[number], apart[number - 1] + gap)
    drift = sum(new - old for new, old in zip(apart, heights, strict=True)) / len(apart)
    return [height - drift for height in apart]
