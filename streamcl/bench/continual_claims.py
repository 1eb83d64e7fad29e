"""What the cells say about each promise of the strategies: claims, with intervals, and the result file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamcl.bench import continual_served, continual_steps
from streamcl.bench.continual_plots import plots
from streamcl.bench.report import RESULTS, Claim, about, interval, save

COMMAND = "python -m streamcl.bench.continual"
Result = Mapping[str, Any]
SIGNS: Mapping[str, tuple[str, str, str]] = {
    "hifgo, no norm": ("hifgo", "last", "lower"),
    "hifgo, one stage": ("hifgo", "last", "lower"),
    "hifgo, to parameters": ("hifgo", "last", "lower"),
    "replay": ("dgg", "last", "lower"),
    "dgg, no buffer": ("dgg", "last", "lower"),
    "dgg, no clip": ("dgg", "last", "lower"),
    "dgg, no Bernoulli": ("dgg", "last", "lower"),
    "fwd_prompt, no projection": ("fwd_prompt", "last", "lower"),
    "fwd_prompt, residual": ("fwd_prompt", "fwt", "lower"),
}
"""Line → (the method it takes a part from, what to compare, the paper's sign)."""


def paired(results: Sequence[Result], one: str, other: str, metric: str) -> tuple[float, float]:
    """Mean and half-width of `one` − `other` in points, over the cells of equal order and seed."""
    found: dict[str, dict[tuple[str, int], float]] = {one: {}, other: {}}
    for result in results:
        if result["label"] in found:
            found[result["label"]][result["cell"]["order"], result["cell"]["seed"]] = 100 * result[metric]
    return interval([found[one][cell] - found[other][cell] for cell in found[one] if cell in found[other]])


def publish(results: Sequence[Result], rows: Sequence[Mapping[str, Any]]) -> None:
    """Measures what is not in the cells, writes `results/continual.json` and the pictures."""
    steps, served = continual_steps.measure(), continual_served.measure()
    claims = [*_table(results, rows), _signs(results), _leak(results), *steps[1], *served[1]]
    seeds = sorted({result["cell"]["seed"] for result in results})
    cells = [{name: value for name, value in result.items() if name != "penalties"} for result in results]
    save("continual", about(seeds=seeds), rows=[*rows, *steps[0], *served[0], *cells], claims=claims)
    plots([dict(result) for result in results], RESULTS)


def _table(results: Sequence[Result], rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    last = {row["label"]: row["last"] for row in rows}
    text = {label: f"{100 * mean:.1f} ± {100 * half:.1f}" for label, (mean, half) in last.items()}
    best = max(("replay", "dgg"), key=lambda label: last[label][0])
    share = last[best][0] / last["joint"][0]
    gains = {
        label: paired(results, "hifgo", label, "last") for label in ("finetune", "olora", "ewc", "hifgo, one stage")
    }
    apart = all(mean - half > (20 if label == "finetune" else 0) for label, (mean, half) in gains.items())
    listed = ", ".join(f"{mean:+.1f} ± {half:.1f} over {label}" for label, (mean, half) in gains.items())
    return [
        Claim("2.1", "best strategy with replay (10 % of the samples), Last against joint training's", "≥ 95 %",
              f"{100 * share:.1f} %: {best} {text[best]}, joint {text['joint']}", share >= 0.95, COMMAND),
        Claim("2.1", "hifgo without replay, Last, paired", "≥ 20 points over finetune, and above olora, ewc, one stage",
              f"{text['hifgo']}: {listed}", apart, COMMAND),
    ]  # fmt: skip


def _signs(results: Sequence[Result]) -> Claim:
    found = {line: paired(results, line, of, metric) for line, (of, metric, _) in SIGNS.items()}
    held = sum(mean + half < 0 for mean, half in found.values())
    listed = "; ".join(f"{line}: {SIGNS[line][1]} {mean:+.1f} ± {half:.1f}" for line, (mean, half) in found.items())
    return Claim("2.2", "what each part of a method is worth: the change without it, paired, in points", "all below 0",
                 f"{held} of {len(found)} clearly below 0. {listed}", held == len(found), COMMAND)  # fmt: skip


def _leak(results: Sequence[Result]) -> Claim:
    leak = max(result["leak"] for result in results if result["label"] == "fwd_prompt")
    return Claim("2.3", "share of a whole stage's update in the protected space, with AdamW", "≤ 1e-5", f"{leak:.1e}",
                 leak <= 1e-5, COMMAND)  # fmt: skip
