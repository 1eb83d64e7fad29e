"""The main lines of the strategies' table on the base `smol`: on a GPU, or up to an hour a cell on a CPU.

    python -m streamcl.bench.continual_smol --checkpoint smol

`zoo/checkpoints/smol/README.md` says how the checkpoint is made. Nothing was chosen for this base but a batch of 16 and
a rate of 1e-3: orders, samples and scores are those of `bench.continual`, and penalties that are sums over tensors
weigh in all what they weigh on zoo:small, where adapters have 32 tensors and not 424.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from rich.console import Console

from streamcl.bench.continual import CELLS, REPLAY, Entry, Job, Result, kept, lines_of, rows_of, run, shown
from streamcl.bench.continual_cell import ORDERS, Cell, model_of, published, strategy_of
from streamcl.bench.gpu_model import gpu_name
from streamcl.bench.report import WITHOUT_RAY, Claim, about, save

COMMAND = "python -m streamcl.bench.continual_smol"
SHARE = 32 / 424
"""zoo:small's tensors of an adapter, over smol's."""
TRAIN = {"batch_size": 16, "lr": 1e-3}
LINES = [
    Entry("hifgo + replay", "hifgo", {**REPLAY, "two_stages": False, "norm": 0.003 * SHARE}, TRAIN),
    Entry("joint", "joint", train=TRAIN),
    Entry("finetune", "finetune", train=TRAIN),
    Entry("hifgo", "hifgo", {"norm": 0.03 * SHARE}, TRAIN),
    Entry("olora", "olora", {"orth": 0.01 * SHARE}, TRAIN),
    Entry("ewc", "ewc", {"strength": 0.3 * SHARE}, TRAIN),
]


def encode(cell: Cell, cache: Path, task: str, split: Literal["train", "test"]) -> None:
    """Writes a task's encoded rows where the cells look for them."""
    torch.set_num_threads(1)
    model_of(cell, strategy_of(cell), cache)[1].rows(task, split)


def encoded(cell: Cell, cache: Path, *, workers: int) -> None:
    """The rows of all tasks, made once, a process for each."""
    splits: Sequence[Literal["train", "test"]] = ("train", "test")
    parts = [(task, split) for split in splits for task in dict.fromkeys(ORDERS[cell.order])]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(encode, cell, cache, *part) for part in parts]:
            done.result()


def claims_of(results: Sequence[Result]) -> list[Claim]:
    """The papers' own ratios, each on the means over the cells that all compared lines have."""
    lasts: dict[str, dict[tuple[str, int], float]] = {}
    for result in results:
        lasts.setdefault(result["label"], {})[result["cell"]["order"], result["cell"]["seed"]] = result["last"]

    def means(*labels: str) -> tuple[list[float], int]:
        both = set.intersection(*(set(lasts[label]) for label in labels))
        return [fmean(lasts[label][cell] for cell in both) for label in labels], len(both)

    claims = []
    for label, what, bar in (
        ("hifgo", "hifgo without replay", 0.979),
        ("hifgo + replay", "best strategy with replay (10 % of the samples)", 0.987),
    ):
        (last, joint), cells = means(label, "joint")
        value = f"{last / joint:.1%}: {label} {100 * last:.1f}, joint {100 * joint:.1f}; cells: {cells}"
        claims.append(Claim("2.1", f"smol: {what}, Last against joint training's", f"≥ {bar:.1%}", value,
                            last / joint >= bar, COMMAND))  # fmt: skip
    closed = []
    for label in lasts.keys() - {"joint", "finetune"}:
        (last, joint, finetune), cells = means(label, "joint", "finetune")
        closed.append(((last - finetune) / (joint - finetune), label, cells))
    value = ", ".join(f"{label} {share:.0%} ({cells})" for share, label, cells in sorted(closed, reverse=True))
    what = "smol: share of the gap between finetune and joint that is closed, and cells"
    what += " (the paper: hifgo 94, olora 42, ewc 9 %)"
    return [*claims, Claim("2.1", what, "measured", value, True, COMMAND)]


def publish(results: Sequence[Result], rows: Sequence[Mapping[str, Any]]) -> None:
    seeds = sorted({result["cell"]["seed"] for result in results})
    known = about(seeds=seeds, packages=WITHOUT_RAY, gpu=gpu_name())
    save("continual_smol", known, rows=[*rows, *published(results)], claims=claims_of(results), table=lines_of(rows))


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder that recipe/smol.py wrote")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "streamcl-smol")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--cells", type=int, default=3, help="cells of a line")
    parser.add_argument("--cached", action="store_true", help="start no cell: publish those that the cache has")
    asked = parser.parse_args()
    asked.cache.mkdir(parents=True, exist_ok=True)
    where = {"checkpoint": asked.checkpoint, "device": "cuda" if torch.cuda.is_available() else "cpu"}
    todo: list[Job] = [(line, replace(line.cell(*at), **where)) for line in LINES for at in CELLS[: asked.cells]]
    if asked.cached:
        todo = kept(todo, asked.cache)
    else:
        encoded(todo[0][1], asked.cache, workers=asked.workers)
    results = run(todo, asked.cache, workers=asked.workers)
    rows = rows_of(results)
    Console(width=200).print(shown(rows))
    publish(results, rows)


if __name__ == "__main__":
    main()
