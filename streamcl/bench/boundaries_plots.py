"""The plot of `bench/boundaries.py`: delay against the average run length to a false alarm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

MARKS = "osv^<>DPX*hd"


def plot_curves(parts: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """One panel for each part; a line for each detector, through its thresholds."""
    figure, axes = plt.subplots(1, len(parts), figsize=(5.2 * len(parts), 4.4), squeeze=False)
    for axis, (title, rows) in zip(axes[0], parts.items(), strict=True):
        _panel(axis, title, rows)
    axes[0][0].set_ylabel("mean delay, samples of the new task")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panel(axis: Axes, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    for index, name in enumerate(dict.fromkeys(row["detector"] for row in rows)):
        named = [row for row in rows if row["detector"] == name and row["delay_mean"] is not None]
        points = sorted((row["arl0"], row["delay_mean"]) for row in named)
        bold = name == "mmd"
        axis.plot(
            [arl0 for arl0, _ in points], [delay for _, delay in points], label=name, zorder=3 if bold else 2,
            color="black" if bold else f"C{index % 10}", linewidth=2.5 if bold else 1,
            marker=MARKS[index % len(MARKS)], markersize=4,
        )  # fmt: skip
    axis.set(title=title, xlabel="samples to a false alarm (ARL0)", xscale="log", yscale="log")
    axis.grid(alpha=0.3)
