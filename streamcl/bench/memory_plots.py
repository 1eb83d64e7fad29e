"""The two pictures of the memory bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Row = dict[str, Any]


def plot_rss(curve: Sequence[Row], path: Path) -> None:
    """Resident memory over offered samples."""
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot([row["offered"] / 1e6 for row in curve], [row["rss_mb"] for row in curve], marker=".")
    axes.set(xlabel="samples offered, millions", ylabel="resident memory, MB", ylim=(0, None))
    axes.set_title("Reservoir: memory while samples stream through")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_tasks(budgeted: Sequence[Row], unbudgeted: Sequence[Row], path: Path) -> None:
    """Store size, snapshot and read seconds over tasks, with and without a rank budget."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    panels = [("mb", "store on disk, MB"), ("snapshot_s", "snapshot, s"), ("read_s", "read for a window, s")]
    for panel, (name, label) in zip(axes, panels, strict=True):
        for rows, legend, style in [(unbudgeted, "no budget", "C1--"), (budgeted, "rank budget", "C0-")]:
            shown = [row for row in rows if name in row]
            panel.plot([row["task"] for row in shown], [row[name] for row in shown], style, label=legend)
        panel.set(xlabel="tasks learned", ylabel=label, xscale="log", ylim=(0, None))
        panel.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle("Task memory with the layer shapes of a 7B model, on disk")
    figure.savefig(path, dpi=120)
    plt.close(figure)
