"""Why HiFGO's directions gain what they gain: whether the new data's gradient at an old model is like the old data's.

    python -m streamcl.bench.continual_premise

HiFGO keeps a new adapter orthogonal to the gradient of the new task's loss at each old model, in place of the old
task's, whose data are gone. After each task of the validation order both are taken, and the harm that was done is
measured.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamcl.bench.continual_cell import Cell, model_of, strategy_of, stream_of
from streamcl.bench.report import Claim, as_json
from streamcl.store.budget import pairs_of
from streamcl.store.memory import TaskMemory
from streamcl.strategies import Params
from streamcl.strategies.stacked import adapters, stacked
from streamcl.train.batch import Row
from streamcl.train.loop import Learning
from streamcl.train.probe import WindowProbe
from streamcl.types import Window

COMMAND = "python -m streamcl.bench.continual_premise"
ROWS = 64
"""Samples of which a gradient is the mean."""


def pairs(cell: Cell, cache: Path) -> Iterator[dict[str, Any]]:
    """Of each task and each before it: both gradients at the old model, the new adapter along them, and the harm."""
    strategy = strategy_of(cell)
    learning, data = model_of(cell, strategy, cache)
    parts, memory, served = stream_of(cell, data)[0][:-1], TaskMemory(), None  # the last visit is a return
    for visit, (task, rows) in enumerate(parts):
        window = Window(visit, task, (), (), seed=visit, base=0, index=visit, closes_task=True)
        learning.start(served, strategy=strategy, memory=memory, seed=cell.seed + visit)
        trained = learning.train(window, rows, [], strategy=strategy, memory=memory)
        old = [dict(memory.group(group)) for group in adapters(memory)]
        for j, (known, theirs) in enumerate(parts[:visit]):
            found = compared(learning, old, j, new=trained.params, rows=rows, theirs=theirs)
            yield {"premise": f"{known} → {task}", **found}
        memory, served = trained.memory, trained.served


def compared(
    learning: Learning, old: Sequence[Params], j: int, *, new: Params, rows: Sequence[Row], theirs: Sequence[Row]
) -> dict[str, float]:
    """Cosines, and the rise of the old task's loss, for one old task."""
    at, moved = stacked(list(old[: j + 1])), {name: b_OR @ a_RI for name, (a_RI, b_OR) in pairs_of(new).items()}
    ours, ours_again, own, own_again = (
        _probe(learning, part[start : start + ROWS]).weight_gradient(at)
        for part in (rows, theirs)
        for start in (0, ROWS)
    )
    with torch.no_grad():
        before, after = (_loss(learning, stacked([*old, *more]), theirs[:ROWS]) for more in ((), (new,)))
    return {
        "cosine": _cosine(ours, own), "new": _cosine(ours, ours_again), "old": _cosine(own, own_again),
        "along_new": abs(_cosine(ours, moved)), "along_old": _cosine(own, moved), "harm": after - before,
    }  # fmt: skip


def _probe(learning: Learning, rows: Sequence[Row]) -> WindowProbe:
    return WindowProbe(learning.model, learning.params, rows, [], pad_id=learning.pad_id, size=8, bfloat16=True)


def _loss(learning: Learning, served: Params, rows: Sequence[Row]) -> float:
    with learning.serving(served):
        parts = [float(learning.mean_loss(rows[start : start + 8])) for start in range(0, len(rows), 8)]
    return sum(parts) / len(parts)


def _cosine(one: Params, other: Params) -> float:
    dot, a, b = (sum(float((x[n] * y[n]).sum()) for n in one) for x, y in ((one, other), (one, one), (other, other)))
    return float(dot / (a * b) ** 0.5)


def ranked(found: Sequence[dict[str, Any]], name: str) -> float:
    """Spearman's rank correlation of a figure with the harm."""
    ranks = [np.argsort(np.argsort([pair[key] for pair in found])) for key in (name, "harm")]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def claims(found: Sequence[dict[str, Any]]) -> list[Claim]:
    """Of what `pairs` found."""
    value = (
        f"cosine {_spread(found, 'cosine')}; of two samples of the new task {_spread(found, 'new')}, of the old task, "
        f"at its own optimum, {_spread(found, 'old')}; rank correlation of the harm done with the new adapter's part "
        f"along the new data's gradient {ranked(found, 'along_new'):+.2f}, along the old data's "
        f"{ranked(found, 'along_old'):+.2f} ({len(found)} pairs of tasks)"
    )
    what = "why: hifgo's premise, that the new data's gradient at an old model stands for the old data's"
    return [Claim("2.2", what, "measured", value, True, COMMAND)]


def _spread(found: Sequence[dict[str, Any]], name: str) -> str:
    values = sorted(pair[name] for pair in found)
    return f"{np.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def measure() -> tuple[list[dict[str, Any]], list[Claim]]:
    """Rows and claims, of the validation order and one seed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        found = list(pairs(Cell("hifgo", order="validation"), Path(scratch)))
    torch.set_num_threads(threads)
    return found, claims(found)


def main() -> None:
    argparse.ArgumentParser(prog=COMMAND, description=__doc__).parse_args()
    print(as_json(*measure()))


if __name__ == "__main__":
    main()
