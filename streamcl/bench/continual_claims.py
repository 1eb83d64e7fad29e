"""What the cells say about each promise of the strategies: claims, with intervals, and the result file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from streamcl.bench import continual_leak, continual_premise, continual_served, continual_steps
from streamcl.bench.continual_cell import published
from streamcl.bench.continual_plots import plots
from streamcl.bench.report import RESULTS, Claim, about, interval, save

COMMAND = "python -m streamcl.bench.continual"
Result = Mapping[str, Any]
SIGNS: Mapping[str, tuple[str, str, str]] = {
    "hifgo, no norm": ("hifgo", "last", "lower"),
    "hifgo, one stage": ("hifgo", "last", "lower"),
    "hifgo, no GPWC": ("hifgo", "last", "lower"),
    "hifgo, to parameters": ("hifgo", "last", "lower"),
    "replay": ("dgg", "last", "lower"),
    "dgg, no buffer": ("dgg", "last", "lower"),
    "dgg, no clip": ("dgg", "last", "lower"),
    "dgg, no Bernoulli": ("dgg", "last", "lower"),
    "fwd_prompt, no projection": ("fwd_prompt", "last", "lower"),
    "fwd_prompt, residual": ("fwd_prompt", "fwt", "lower"),
}
"""Line → (the method it takes a part from, what to compare, the paper's sign)."""
WITH_REPLAY = {"replay", "dgg", "hifgo + replay"}
"""The lines that may look at the buffer."""


def paired(results: Sequence[Result], one: str, other: str, metric: str) -> tuple[float, float]:
    """Mean and half-width of `one` − `other` in points, over equal orders and seeds: infinite for one cell."""
    found: dict[str, dict[tuple[str, int], float]] = {one: {}, other: {}}
    for result in results:
        if result["label"] in found:
            found[result["label"]][result["cell"]["order"], result["cell"]["seed"]] = 100 * result[metric]
    both = [found[one][cell] - found[other][cell] for cell in found[one] if cell in found[other]]
    mean, half = interval(both)
    return mean, half if len(both) > 1 else math.inf


def publish(results: Sequence[Result], rows: Sequence[Mapping[str, Any]], *, table: Sequence[Sequence[str]]) -> None:
    """Measures what is not in the cells, writes `results/continual.json` and the pictures."""
    parts = [part.measure() for part in (continual_leak, continual_steps, continual_served, continual_premise)]
    claims = [*_table(results, rows), *_missing(rows), *_windows(results), *_signs(results), *_budget(results)]
    claims = sorted([*claims, *(claim for _, found in parts for claim in found)], key=lambda claim: claim.id)
    seeds = sorted({result["cell"]["seed"] for result in results})
    measured = [row for found, _ in parts for row in found]
    save("continual", about(seeds=seeds), rows=[*rows, *measured, *published(results)], claims=claims, table=table)
    plots([dict(result) for result in results], RESULTS)


def _table(results: Sequence[Result], rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    last = {row["label"]: row["last"] for row in rows}
    text = {label: f"{100 * mean:.1f} ± {100 * half:.1f}" for label, (mean, half) in last.items()}
    best = max(WITH_REPLAY & last.keys(), key=lambda label: last[label][0])
    share = last[best][0] / last["joint"][0]
    rivals = [label for label in ("finetune", "olora", "ewc", "hifgo, one stage") if label in last]
    gains = {label: paired(results, "hifgo", label, "last") for label in rivals}
    apart = all(mean - half > (20 if label == "finetune" else 0) for label, (mean, half) in gains.items())
    listed = ", ".join(f"{mean:+.1f} ± {half:.1f} over {label}" for label, (mean, half) in gains.items())
    return [
        Claim("2.1", "best strategy with replay (10 % of the samples), Last against joint training's", "≥ 95 %",
              f"{100 * share:.1f} %: {best} {text[best]}, joint {text['joint']}", share >= 0.95, COMMAND),
        Claim("2.1", "hifgo without replay, Last, paired", "≥ 20 points over finetune, and above olora, ewc, one stage",
              f"{text['hifgo']}: {listed}", apart, COMMAND),
    ]  # fmt: skip


def _signs(results: Sequence[Result]) -> list[Claim]:
    lines = {result["label"] for result in results} & SIGNS.keys()
    found = {line: paired(results, line, SIGNS[line][0], SIGNS[line][1]) for line in SIGNS if line in lines}
    held = sum(mean + half < 0 for mean, half in found.values())
    listed = "; ".join(f"{line}: {SIGNS[line][1]} {mean:+.1f} ± {half:.1f}" for line, (mean, half) in found.items())
    return [
        Claim("2.2", "the change without a part of a method, paired, in points", f"all {len(SIGNS)} below 0",
              f"{held} clearly below 0 of {len(found)} measured. {listed}", held == len(SIGNS), COMMAND)
    ]  # fmt: skip


def _missing(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """What joint training has and a line has not: what it never learned, and what it lost of old tasks again, which is
    how to answer, or only which task's words to answer with."""
    joint = next(row["last"][0] for row in rows if row["label"] == "joint")
    listed = []
    for row in (row for row in rows if "," not in row["label"] and row["label"] != "joint"):
        last, imd, within = (100 * row[name][0] for name in ("last", "imd", "within"))
        missing = f"{row['label']} {100 * joint - last:.1f} = {100 * joint - imd:.1f} + {imd - last:.1f}"
        listed.append(f"{missing} (words {within - last:.1f})")
    what = "points of Last short of joint = not learned + forgotten (of it, other tasks' words for the answer)"
    return [Claim("2.1", f"why: {what}", "measured", ", ".join(listed), True, COMMAND)]


def _windows(results: Sequence[Result]) -> list[Claim]:
    """Where HiFGO's stages belong when a task is longer than a window."""
    own = "hifgo, 2 windows a task"
    others = {
        "hifgo, 2 windows, stages in each": "both stages in each window",
        "hifgo, 2 windows, stages at a task's end": "stage 2 only at a task's end, which serves it no earlier",
    }
    if not {own, *others} <= {result["label"] for result in results}:
        return []
    gains = {what: paired(results, own, label, "last") for label, what in others.items()}
    value = "; ".join(f"{mean:+.1f} ± {half:.1f} points over {what}" for what, (mean, half) in gains.items())
    what = "tasks of two windows: HiFGO with stage 1 in a task's first window only; Last, paired"
    return [Claim("2.1", what, "measured", value, True, COMMAND)]


def _budget(results: Sequence[Result]) -> list[Claim]:
    """Of the cells that also scored the sum without its rank budget."""
    cells = [result for result in results if result["label"] == "hifgo" and result.get("exact")]
    error, _ = interval([cell["exact"]["error"] for cell in cells])
    cost, half = interval([100 * (cell["exact"]["last"] - cell["last"]) for cell in cells])
    ranks = {cell["exact"]["rank"] for cell in cells}
    return [
        Claim("2.5", f"hifgo after 8 tasks, {max(ranks)} ranks served as 64: relative error, and Last it costs, points",
              "measured", f"{error:.1%}; {cost:.1f} ± {half:.1f} ({len(cells)} cells)", True, COMMAND)
    ]  # fmt: skip
