"""The memory bench: uniformity, speed, sketch error, a thousand tasks, resharding.  `python -m streamcl.bench.memory`

Peers are measured where they are installed; they are no dependency of ours, and must not change torch:
`pip install --no-deps cpprb torchrl tensordict pyvers orjson cloudpickle importlib_metadata zipp`
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from streamcl.bench import memory_sketch, memory_speed, memory_tasks, memory_uniformity, report
from streamcl.bench.memory_plots import plot_rss, plot_tasks

COMMAND = "python -m streamcl.bench.memory"
SEED = 0
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much of everything is measured."""

    trials: int
    batches: int
    rounds: int
    samples: int
    rows: int
    tasks: int
    unbudgeted: int
    every: int


FULL = Size(trials=3000, batches=1000, rounds=5, samples=10_000_000, rows=20_000, tasks=1000, unbudgeted=100, every=20)
QUICK = Size(trials=300, batches=100, rounds=3, samples=1_000_000, rows=3000, tasks=20, unbudgeted=6, every=1)


@dataclass(frozen=True)
class Section:
    """One acceptance line: its claim, and the rows behind it."""

    line: int
    what: str
    bar: str
    value: str
    holds: bool
    rows: list[Row]

    def claim(self) -> report.Claim:
        return report.Claim(f"4.{self.line}", self.what, self.bar, self.value, self.holds, COMMAND)


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute; prints, but writes nothing")
    quick = parser.parse_args().quick
    size = QUICK if quick else FULL
    torch.set_num_threads(1)
    start = time.perf_counter()
    # memory first: the peers' imports would blur it
    curve = memory_speed.flat_memory(samples=size.samples, tasks=4)
    budgeted = _simulated(size.tasks, size.every, budget=True)
    unbudgeted = _simulated(size.unbudgeted, size.every, budget=False)
    sections = [_uniformity(size), _speed(size, curve), _sketch(size), _tasks(budgeted, unbudgeted), _sharding()]
    if quick:
        print("quick: lines whose bar asks for more trials, samples or tasks show as missed")
    for section in sections:
        print(f"4.{section.line}  {'holds ' if section.holds else 'MISSED'}  {section.what}\n     bar   {section.bar}")
        print(f"     value {section.value}")
    if not quick:
        plot_rss(curve, report.RESULTS / "memory_rss.png")
        plot_tasks(budgeted, unbudgeted, report.RESULTS / "memory_tasks.png")
        about = {**_about(), "seconds": round(time.perf_counter() - start)}
        rows = [{"line": s.line, **_rounded(row)} for s in sections for row in s.rows]
        report.save("memory", about, rows=rows, claims=[section.claim() for section in sections])


def _uniformity(size: Size) -> Section:
    trials, items, kept, drawn = size.trials, 400, 100, 40
    counts, differing = memory_uniformity.reservoir_counts(trials=trials, items=items, kept=kept, seed=SEED)
    draws = memory_uniformity.drawn_counts(trials=trials, items=items, kept=kept, drawn=drawn, seed=SEED)
    control = memory_uniformity.algorithm_r_counts(trials=trials, items=items, kept=kept, seed=SEED)
    ours = memory_uniformity.chi_square(counts, trials=trials, kept=kept)
    window = memory_uniformity.chi_square(draws, trials=trials, kept=drawn)
    r = memory_uniformity.chi_square(control, trials=trials, kept=kept)
    tests = {"kept": ours, "drawn for a window": window, "Algorithm R, last quarter delivered again": r}
    return Section(
        1,
        "the reservoir is uniform, and the same for 1, 3, 8 shards × shuffled order × 1-4 deliveries × restarts",
        "χ² with finite-population correction, ≥ 3,000 trials: p in [0.001, 0.999]; 0 sets differ; Algorithm R fails",
        f"χ² {ours.statistic:.0f} (df {ours.df}, p {ours.p:.3f}; draws p {window.p:.3f}) over {trials} trials; "
        f"{differing} sets differ; Algorithm R χ² {r.statistic:,.0f}, p < 1e-6",
        all(0.001 <= test.p <= 0.999 for test in (ours, window)) and differing == 0 and r.p < 1e-6 and trials >= 3000,
        [{"what": what, "trials": trials, **asdict(test)} for what, test in tests.items()],
    )


def _speed(size: Size, curve: list[Row]) -> Section:
    rates = memory_speed.offers(batches=size.batches, rounds=size.rounds)
    draws = [memory_speed.draws(tasks=tasks, n=4096, repeats=50) for tasks in (1, 10, 100)]
    full = [row["rss_mb"] for row in curve if row["offered"] >= size.samples / 10]
    growth, ours = max(full) - full[0], rates[0]["offers_per_s"]
    peers = ", ".join(f"{r['what']} {r['offers_per_s'] / 1e6:.2f} M" for r in rates[1:] if "offers_per_s" in r)
    slowest = max(draw["median_ms"] for draw in draws)
    return Section(
        2,
        "offers a second in batches of 1,024 on one core; a draw of 4,096; resident memory over 10 million offers",
        "≥ 1,000,000 offers a CPU second; ≤ 20 ms; memory flat (≤ 5 MB more than after the first tenth)",
        f"{ours / 1e6:.2f} M offers a CPU second ({peers}); draw {draws[0]['median_ms']} ms from 4,096 rows, "
        f"{slowest} ms from 409,600 (median); {growth:+.1f} MB from {size.samples // 10:,} to {size.samples:,} offers",
        ours >= 1e6 and slowest <= 20 and growth <= 5 and size.samples >= 10_000_000,
        [*rates, *draws, *curve],
    )


def _sketch(size: Size) -> Section:
    rows = memory_sketch.compare(seed=SEED, length=size.rows)
    new = rows[-1]
    fails = new["truncated_svd_error"] > 10 * new["certificate"]
    return Section(
        3,
        "Frequent Directions' error is below its certificate, whole and merged of 4 shards; truncated SVD's is not",
        "error ≤ certificate ≤ the theorem's bound of the whole on 4 streams; truncated incremental SVD fails on one",
        f"{sum(row['holds'] for row in rows)} of {len(rows)} streams; small equal rows of a new direction: error "
        f"{new['error']:.0f} (certificate {new['certificate']:.0f}), truncated SVD {new['truncated_svd_error']:.0f}",
        all(row["holds"] for row in rows) and fails,
        rows,
    )


def _tasks(budgeted: list[Row], unbudgeted: list[Row]) -> Section:
    late = budgeted[len(budgeted) // 10 :]  # the budget is full by then
    tenth = max(1, len(late) // 9)
    names = ("mb", "snapshot_s", "read_s")
    figures = {name: _median(late, name) for name in names}
    ratio = {name: _median(late[-tenth:], name) / _median(late[:tenth], name) for name in names}
    grown = (unbudgeted[-1]["mb"] - unbudgeted[0]["mb"]) / (len(unbudgeted) - 1)
    without = [row for row in unbudgeted if "read_s" in row]
    shown = [row for row in budgeted if "read_s" in row]
    return Section(
        5,
        f"{len(budgeted):,} tasks with 7B layer shapes on disk (rank {memory_tasks.RANK} a task, "
        f"{memory_tasks.RANK_BUDGET} in all, random data)",
        "1,000 tasks; under the budget, size grows ≤ 1 % and snapshot and read time ≤ 1.5 × from 2nd to last tenth",
        f"{figures['mb']:.1f} MB, snapshot {figures['snapshot_s']:.2f} s, read {figures['read_s']:.2f} s (medians); "
        f"last over second tenth × {ratio['mb']:.3f}, × {ratio['snapshot_s']:.2f}, × {ratio['read_s']:.2f}; without "
        f"a budget +{grown:.1f} MB a task, read {without[-1]['read_s']:.2f} s after {without[-1]['task']}; "
        f"the oldest, {late[-1]['merged_adapters']} random adapters in one, misses {late[-1]['merged_error']:.0%}",
        len(budgeted) >= 1000 and ratio["mb"] <= 1.01 and ratio["snapshot_s"] <= 1.5 and ratio["read_s"] <= 1.5,
        [{"budget": True, **row} for row in shown] + [{"budget": False, **row} for row in without],
    )


def _sharding() -> Section:
    row = memory_tasks.moved_keys()
    return Section(
        6,
        "store.shards from 2 to 5: parameters and ids that move, and whether the whole is the same",
        "≤ 65 % move; nothing is lost",
        f"{row['parameters_moved']:.1%} of {row['parameters']} parameters, {row['ids_moved']:.1%} of {row['ids']:,} "
        f"ids move; joined again: {'equal bytes' if row['nothing_lost'] else 'NOT equal'}",
        row["nothing_lost"] and max(row["parameters_moved"], row["ids_moved"]) <= 0.65,
        [row],
    )


def _about() -> Row:
    about = report.about(seeds=[SEED], packages=("numpy", "pyarrow", "torch"))
    return {**about, "versions": {**about["versions"], **memory_speed.peer_versions()}}


def _rounded(row: Row) -> Row:
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in row.items()}


def _median(rows: list[Row], name: str) -> float:
    return float(statistics.median(row[name] for row in rows if name in row))


def _simulated(tasks: int, every: int, *, budget: bool) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="streamcl-bench-") as folder:
        return memory_tasks.simulate(Path(folder), tasks=tasks, budget=budget, every=every)


if __name__ == "__main__":
    main()
