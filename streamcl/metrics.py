"""What the accuracy matrix says. `a[i, t]` = score on task i after finished task t, 0-based.

Peers use the names differently, so each metric says which definition it is. A task that returns adds a column, not a
row: `learned[i]` is the column after which task i was first known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

DEFINITIONS = {
    "last": "mean over tasks after the last task (Last, MFN)",
    "imd": "mean over tasks right after each was learned (Imd, MFT)",
    "avg": "mean over tasks of the mean from being learned to the end (HiDe, Octopus)",
    "maa": "mean over time of the mean over tasks met so far (MCITlib)",
    "bwt": "mean change since being learned, over all tasks but one learned last (GEM, MCITlib)",
    "bwt_octopus": "last - imd: the same over all T tasks (Octopus)",
    "forgetting": "mean drop from the best score since being learned to the last (Chaudhry)",
    "forgetting_avalanche": "mean drop from the score when learned to the last (Avalanche)",
    "fwt": "mean gain over zero-shot on a task just before it is learned",
}


def summarize(
    a_TC: Matrix, *, learned: Sequence[int] | None = None, zero_shot: Sequence[float] | None = None
) -> dict[str, float]:
    """Every metric of a matrix [tasks, columns]; FWT with `zero_shot` only, BWT once a task has a later column."""
    tasks = len(a_TC)
    learned = learned if learned is not None else range(tasks)
    imd = np.array([a_TC[i, t] for i, t in enumerate(learned)])
    last = a_TC[:, -1]
    later = [a_TC[i, t:] for i, t in enumerate(learned)]
    met = [[i for i in range(tasks) if learned[i] <= t] for t in range(a_TC.shape[1])]
    values = {
        "last": last.mean(),
        "imd": imd.mean(),
        "avg": np.mean([row.mean() for row in later]),
        "maa": np.mean([a_TC[rows, t].mean() for t, rows in enumerate(met) if rows]),
    }
    old = [i for i in range(tasks) if learned[i] < a_TC.shape[1] - 1]
    if tasks > 1 and old:
        values["bwt"] = (last - imd)[old].mean()
        values["bwt_octopus"] = (last - imd).mean()
        values["forgetting"] = np.mean([later[i].max() - last[i] for i in old])
        values["forgetting_avalanche"] = (imd - last)[old].mean()
        if zero_shot is not None:
            values["fwt"] = np.mean([a_TC[i, t - 1] - zero_shot[i] for i, t in enumerate(learned) if t > 0])
    return {name: float(value) for name, value in values.items()}
