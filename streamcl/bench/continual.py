"""Every strategy through the same real tasks: Last, Avg, Imd, BWT, FWT, forgetting, seconds and memory, with intervals.

    python -m streamcl.bench.continual --quick      # one seed, one order, the main strategies
    python -m streamcl.bench.continual              # two orders, three seeds, and the papers' ablations

A cell (strategy, order, seed) is one process with one thread and is kept by the digest of what determines it: a bench
that was interrupted goes on. Accuracy is exact match of the greedy answer; intervals (95 %, Student's t) are over
cells.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from streamcl.bench.continual_cell import PROMPTS, Cell
from streamcl.bench.report import interval

COMMAND = "python -m streamcl.bench.continual"
SHOWN = ("last", "within", "avg", "imd", "bwt", "fwt", "forgetting", "train_s", "memory_mb", "replay_rows", "served_mb")
BUFFER = 48
"""Replay rows kept of a task: a tenth of its samples."""
REPLAY = {"replay_rows": 7 * BUFFER, "replay_share": 0.67}
Result = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A line of the table."""

    label: str
    strategy: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    windows: int = 1

    def cell(self, order: str, seed: int) -> Cell:
        return Cell(
            self.strategy, self.settings, order=order, seed=seed, rows=10 * BUFFER, windows=self.windows,
            buffer=BUFFER, train=self.train,
        )  # fmt: skip


MAIN = [
    Entry("finetune", "finetune"),
    Entry("ewc", "ewc"),
    Entry("olora", "olora"),
    Entry("fwd_prompt", "fwd_prompt", train=PROMPTS),
    Entry("hifgo", "hifgo"),
    Entry("replay", "replay", REPLAY),
    Entry("dgg", "dgg", REPLAY),
    Entry("hifgo + replay", "hifgo", {**REPLAY, "two_stages": False, "norm": 0.003}),
    Entry("joint", "joint"),
]
ABLATIONS = [
    Entry("hifgo, no norm", "hifgo", {"norm": 0.0}),
    Entry("hifgo, one stage", "hifgo", {"two_stages": False}),
    Entry("hifgo, no GPWC", "hifgo", {"orth": 0.0}),
    Entry("hifgo, to parameters", "hifgo", {"to": "parameters"}),
    Entry("hifgo, 2 windows a task", "hifgo", windows=2),
    Entry("hifgo, 2 windows, stages in each", "hifgo in every window", windows=2),
    Entry("hifgo, 2 windows, stages at a task's end", "hifgo at the end", windows=2),
    Entry("dgg, no buffer", "dgg", {"replay_rows": 0}),
    Entry("dgg, no clip", "dgg", {**REPLAY, "scaled": False}),
    Entry("dgg, no Bernoulli", "dgg", {**REPLAY, "alpha": 1.0}),
    Entry("fwd_prompt, no projection", "fwd_prompt", {"projection": "none"}, PROMPTS),
    Entry("fwd_prompt, residual", "fwd_prompt", {"projection": "residual"}, PROMPTS),
]
CELLS = (("a", 0), ("b", 1), ("a", 2), ("b", 0))
"""Order and seed of each cell of a line."""
Job = tuple[Entry, Cell]


def jobs(*, quick: bool, ablations: bool) -> list[Job]:
    """The cells of a form: two of every line before the third of any, so that an interrupted bench has whole tables."""
    lines = [MAIN] if quick or not ablations else [MAIN, ABLATIONS]
    rounds = [CELLS[:1]] if quick else [CELLS[:2], CELLS[2:3], CELLS[3:]]
    return [(line, line.cell(*at)) for some in rounds for part in lines for at in some for line in part]


def run(todo: Sequence[Job], cache: Path, *, workers: int) -> list[Result]:
    """Each cell's result; those in the cache are not run again. Ctrl-C ends the processes."""
    missing = [job for job in todo if not _path(cache, job[1]).exists()]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress, contextlib.ExitStack() as stack:
        bar = progress.add_task("cells", total=len(missing))
        running: list[tuple[Job, subprocess.Popen[str]]] = []
        while missing or running:
            while missing and len(running) < workers:
                job = missing.pop(0)
                running.append((job, stack.enter_context(_started(job[1], cache))))
                progress.update(bar, description=f"{job[0].label}, order {job[1].order}, seed {job[1].seed}")
            time.sleep(0.5)
            for job, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((job, process))
                _finish(job, process, cache)
                progress.advance(bar)
    return [{"label": line.label, **json.loads(_path(cache, cell).read_text())} for line, cell in todo]


def _path(cache: Path, cell: Cell) -> Path:
    return cache / f"{cell.digest}.json"


def kept(todo: Iterable[Job], cache: Path) -> list[Job]:
    """The jobs whose result the cache has."""
    return [job for job in todo if _path(cache, job[1]).exists()]


@contextlib.contextmanager
def _started(cell: Cell, cache: Path) -> Iterator[subprocess.Popen[str]]:
    """The cell's process, ended on the way out."""
    asked = cache / f"{cell.digest}.cell"
    asked.write_text(json.dumps(asdict(cell)))
    one = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "streamcl.bench.continual_cell", str(asked)]
    answer = _path(cache, cell).with_suffix(".part")
    with answer.open("w") as sink, asked.with_suffix(".log").open("w") as errors:
        process = subprocess.Popen(command, stdout=sink, stderr=errors, text=True, env={**os.environ, **one})
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _finish(job: Job, process: subprocess.Popen[str], cache: Path) -> None:
    """Keeps a finished cell's answer.  Raises RuntimeError when its process failed."""
    path = _path(cache, job[1])
    if process.returncode:
        log = path.with_suffix(".log").read_text()[-2000:]
        raise RuntimeError(
            f"{job[0].label}, order {job[1].order}, seed {job[1].seed} ended with {process.returncode}:\n{log}"
        )
    path.with_suffix(".part").rename(path)


def rows_of(results: Iterable[Result]) -> list[dict[str, Any]]:
    """One row a line of the table: mean and half-width of everything shown, and the cells it rests on."""
    labels: dict[str, list[Result]] = {}
    for result in results:
        labels.setdefault(result["label"], []).append(result)
    rows = []
    for label, cells in labels.items():
        known = [name for name in SHOWN if all(math.isfinite(cell.get(name, math.nan)) for cell in cells)]
        figures = {name: interval([cell[name] for cell in cells]) for name in known}
        rows.append({"label": label, "cells": len(cells), "leak": max(cell["leak"] for cell in cells), **figures})
    return rows


def lines_of(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table's lines, the header first: mean ± half-width of the 95 % interval, accuracy in points."""
    cells = [[row["label"], str(row["cells"]), *(shown_of(name, row.get(name)) for name in SHOWN)] for row in rows]
    return [["strategy", "cells", *SHOWN], *cells]


def shown(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The same for a terminal."""
    header, *lines = lines_of(rows)
    table = Table(*header, title="mean ± half-width of the 95 % interval")
    for line in lines:
        table.add_row(*line)
    return table


def shown_of(name: str, figure: tuple[float, float] | None) -> str:
    """A figure of SHOWN with its half-width: accuracy in points, the others as they are."""
    if figure is None:
        return ""
    scale = 1.0 if name in ("train_s", "memory_mb", "replay_rows", "served_mb") else 100.0
    mean, half = figure[0] * scale, figure[1] * scale
    return f"{mean:.1f} ± {half:.1f}" if half else f"{mean:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one order; nothing is written to results/")
    parser.add_argument("--main", action="store_true", help="without the ablations")
    parser.add_argument("--cached", action="store_true", help="start no cell: publish those that the cache has")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "streamcl-continual")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--checkpoint", default=Cell.checkpoint, help="another base; nothing is written to results/")
    parser.add_argument("--device", default=Cell.device, help="where the cells run; only the CPU's are published")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--data", metavar="DIR", help="instead: a UCIT or CoIN directory, through its tasks in order")
    parser.add_argument("--strategies", default="finetune,replay,dgg", help="with --data: which, by comma")
    parser.add_argument("--model", default="zoo:small", help="with --data: path or id of the base model")
    asked = parser.parse_args()
    if asked.data:
        from streamcl.bench.continual_data import compare

        compare(asked.data, asked.strategies.split(","), model=asked.model, as_json=asked.json)
        return
    asked.cache.mkdir(parents=True, exist_ok=True)
    where = {"checkpoint": asked.checkpoint, "device": asked.device}
    todo = [(line, replace(cell, **where)) for line, cell in jobs(quick=asked.quick, ablations=not asked.main)]
    if asked.cached:
        todo = kept(todo, asked.cache)
    results = run(todo, asked.cache, workers=asked.workers)
    rows = rows_of(results)
    if asked.json:
        print(json.dumps(rows, indent=1))
    else:
        Console(width=200).print(shown(rows))
    if not asked.quick and where == {"checkpoint": Cell.checkpoint, "device": Cell.device}:
        from streamcl.bench.continual_claims import publish

        publish(results, rows, table=lines_of(rows))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
