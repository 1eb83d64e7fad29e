"""What is published after many tasks: its rank, its size and how far it is from the exact sum of all adapters.

    python -m streamcl.bench.continual_served

A simulation through the same `consolidate` and `served` as a run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from streamcl.bench.report import Claim, as_json
from streamcl.store.budget import pairs_of
from streamcl.store.memory import TaskMemory
from streamcl.strategies import Params, Probe
from streamcl.strategies.stacked import Stacked

COMMAND = "python -m streamcl.bench.continual_served"
SHAPES = {"k_proj": (192, 576), "linear_1": (576, 320)}
"""Outputs and inputs of the adapted layers: two of the shipped base's."""
RANK = 16
SPECTRA: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": torch.ones_like,
    "decaying": lambda k: 0.7**k,
}
"""Singular values of an update by their number 0, 1, … Directions are random, so tasks share none: the worst case."""
NOTHING = cast(Probe, None)
"""Stacking asks for no data."""
SHOWN = (8, 32, 64, 100, 200)


def adapter(spectrum: str, draw: torch.Generator) -> Params:
    """A task's adapter: orthonormal random directions and the given singular values, shared by both factors."""
    root = SPECTRA[spectrum](torch.arange(RANK)).sqrt()
    params = {}
    for name, (outputs, inputs) in SHAPES.items():
        left, right = (torch.linalg.qr(torch.randn(d, RANK, generator=draw))[0] for d in (outputs, inputs))
        params[f"{name}.lora_A.weight"], params[f"{name}.lora_B.weight"] = (right * root).T.contiguous(), left * root
    return params


def distance(params: Params, exact: dict[str, Tensor]) -> float:
    """Relative Frobenius error over all layers."""
    off = [(b.double() @ a.double() - exact[name]).norm() for name, (a, b) in pairs_of(params).items()]
    return float(torch.stack(off).norm() / torch.stack([whole.norm() for whole in exact.values()]).norm())


def best(exact: dict[str, Tensor], rank: int) -> float:
    """The least error that any adapter of that rank has."""
    sizes = [torch.linalg.svdvals(whole) for whole in exact.values()]
    return float(torch.cat([size[rank:] for size in sizes]).norm() / torch.cat(sizes).norm())


def simulate(spectrum: str, *, tasks: int, seed: int, strategy: Stacked) -> list[dict[str, Any]]:
    """A row after each task."""
    draw, memory, rows = torch.Generator().manual_seed(seed), TaskMemory(), []
    exact: dict[str, Tensor] = {}
    for task in range(1, tasks + 1):
        params = adapter(spectrum, draw)
        for name, (a, b) in pairs_of(params).items():
            exact[name] = exact.get(name, 0) + b.double() @ a.double()
        began = time.process_time()
        served = strategy.served(params, memory, closes_task=True)
        memory = strategy.consolidate(params, memory, NOTHING, None, closes_task=True)
        seconds = time.process_time() - began
        ranks = [max(len(a) for a, _ in pairs_of(some).values()) for some in (served, strategy.frozen(memory))]
        row = {"spectrum": spectrum, "task": task, "seed": seed, "rank": ranks[0], "memory_rank": ranks[1],
               "served_mb": sum(value.nbytes for value in served.values()) / 1e6, "memory_mb": memory.nbytes / 1e6,
               "seconds": seconds}  # fmt: skip
        shown = task in SHOWN or task == tasks
        rows.append(row | ({"error": distance(served, exact), "best": best(exact, ranks[0])} if shown else {}))
    return rows


def claim(rows: list[dict[str, Any]], strategy: Stacked) -> Claim:
    """Of one simulation."""
    last, tasks = rows[-1], len(rows)
    quarters = (rows[tasks // 4 : tasks // 2], rows[-tasks // 4 :])
    early, late = (statistics.median(row["seconds"] for row in part) for part in quarters)
    rank, kept = (max(row[name] for row in rows) for name in ("rank", "memory_rank"))
    return Claim(
        "2.5", f"{tasks} simulated tasks of rank {RANK}, {last['spectrum']} spectra, no direction shared",
        f"published rank <= {strategy.served_rank}, kept <= {strategy.memory_rank}; error measured",
        f"{rank} ({last['served_mb']:.2f} MB), {kept}; error {last['error']:.1%}, least possible {last['best']:.1%}; "
        f"{1e3 * late:.0f} ms a task, {late / early:.2f} x those of the second quarter",
        rank <= strategy.served_rank and kept <= strategy.memory_rank, COMMAND,
    )  # fmt: skip


def measure(*, tasks: int = 200, seed: int = 0) -> tuple[list[dict[str, Any]], list[Claim]]:
    """Rows, those of SHOWN alone, and claims."""
    threads, strategy = torch.get_num_threads(), Stacked()
    torch.set_num_threads(1)
    lives = [simulate(spectrum, tasks=tasks, seed=seed, strategy=strategy) for spectrum in SPECTRA]
    torch.set_num_threads(threads)
    return [row for life in lives for row in life if "error" in row], [claim(life, strategy) for life in lives]


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    rows, claims = measure(tasks=parser.parse_args().tasks)
    print(as_json(rows, claims))


if __name__ == "__main__":
    main()
