"""What `bench/boundaries.py` promises, from the rows that it measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamcl.bench.report import Claim

COMMAND = "python -m streamcl.bench.boundaries"
SHIFTS = (0.5, 1.0, 2.0)
WANTED = 10_000
Row = dict[str, Any]


def matched(rows: Sequence[Row], value: str) -> float:
    """A detector's `value` at a run length of WANTED, between its two nearest thresholds, or at the nearest one.

    Thresholds at which every alarm came before its change have no delay and are left out.
    """
    points = sorted((row["arl0"], row[value]) for row in rows if row["early"] < row["changes"])
    return float(np.interp(np.log(WANTED), np.log([arl0 for arl0, _ in points]), [v for _, v in points]))


def best_peer(rows: Sequence[Row], value: str) -> tuple[float, str]:
    """The lowest matched `value` of the peers, and whose it is."""
    names = {row["detector"] for row in rows} - {"mmd"}
    return min((matched([row for row in rows if row["detector"] == name], value), name) for name in sorted(names))


def claim(line: int, what: str, bar: str, value: str, *, holds: bool) -> Claim:
    return Claim(f"3.{line}", what, bar, value, bool(holds), COMMAND)


def claim_run_length(rows: Sequence[Row]) -> Claim:
    nulls = [row for row in rows if row["part"] == "null"]
    alarms = [_run_length(row) for row in nulls if not row["second_look"]]
    looks = [
        f"{row['alarms']} in {row['rows']:,} samples at {row['wanted']:,} ({_kind(row)})"
        for row in nulls if row["second_look"]
    ]  # fmt: skip
    return claim(
        1, "realised samples to a false alarm (second_look: false); one task, shuffled or drawn, 6 tasks in turn",
        "within a factor 1.5 of 1,000 and of 10,000",
        f"{'; '.join(alarms)}. Boundaries, which the second look (the default) leaves of alarms: {'; '.join(looks)}",
        holds=all(1 / 1.5 <= r["realised"] / r["wanted"] <= 1.5 for r in nulls if not r["second_look"]),
    )  # fmt: skip


def _run_length(row: Row) -> str:
    tasks = [realised / row["wanted"] for realised in row["by_task"].values()]
    return (
        f"{_kind(row)} {row['realised']:,.0f} for {row['wanted']:,} (95 %: {row['low']:,.0f} to {row['high']:,.0f}; "
        f"{row['alarms']} alarms; single tasks x {min(tasks):.2f} to {max(tasks):.2f})"
    )


def _kind(row: Row) -> str:
    return "shuffled" if row["shuffled"] else "drawn"


def claim_orders(rows: Sequence[Row]) -> Claim:
    row, every = rows
    misses = row["missed"] == 0 and row["false"] <= 1
    soon = row["delay_median"] <= 32 and row["delay_95"] <= 96 and row["located_16"] >= 0.95
    return claim(
        2, f"{row['orders']} orders of {row['tasks']} tasks of the zoo, default settings, no labels",
        "0 missed, at most 1 false; delay median <= 32, 95 % <= 96; located within 16 in >= 95 %",
        f"{_found(row)}; with the {every['tasks'] - row['tasks']} tasks of the calibration: {_found(every)}",
        holds=misses and soon,
    )  # fmt: skip


def _found(row: Row) -> str:
    return (
        f"{row['missed']} missed and {row['false']} false of {row['found']}, delay median {row['delay_median']:.0f}, "
        f"95 % {row['delay_95']:.0f}, located {row['located_16']:.1%}"
    )


def claim_delay(rows: Sequence[Row]) -> Claim:
    values, ratios = [], {}
    shifts = [(f"a {shift}", "delay_mean") for shift in SHIFTS]
    for part, value in (("b", "delay_mean"), ("b", "delay_median"), *shifts):
        here = [row for row in rows if row["part"] == part]
        mine, (peer, name) = matched([row for row in here if row["detector"] == "mmd"], value), best_peer(here, value)
        ratios[part, value] = mine / peer
        values.append(f"({part}) {value.removeprefix('delay_')} {mine:.1f}, best peer {peer:.1f} ({name})")
    return claim(
        3, "mean delay at 10,000 samples to a false alarm, a miss counted as long as the task",
        "lowest of all on (b); within 1.3 of the best on (a)", "; ".join(values),
        holds=ratios["b", "delay_mean"] < 1 and all(ratio <= 1.3 for (part, _), ratio in ratios.items() if part != "b"),
    )  # fmt: skip


def claim_returns(rows: Sequence[Row]) -> Claim:
    row, every = rows
    return claim(
        4, f"{row['orders']} orders with each of {row['tasks']} tasks twice",
        "returns recognised >= 95 %, unseen tasks taken for known <= 2 %",
        f"{_recognised(row)}; with the {every['tasks'] - row['tasks']} tasks of the calibration: {_recognised(every)}",
        holds=row["recognised"] >= 0.95 and row["mistaken"] <= 0.02,
    )  # fmt: skip


def _recognised(row: Row) -> str:
    return (
        f"recognised {row['recognised']:.1%}, mistaken {row['mistaken']:.1%} of {row['found']}, "
        f"{row['missed']} missed, {row['false']} false"
    )


def claim_speed(row: Row) -> Claim:
    fast, even = row["per_second_median"] >= 20_000, abs(row["snapshot_bytes"][1] - row["snapshot_bytes"][0]) < 64
    early, late = row["snapshot_bytes"]
    return claim(
        5, "embeddings a second of one core's processor time, state, decisions after snapshot and restore",
        ">= 20,000; constant; equal",
        f"median {row['per_second_median']:,.0f}, best {row['per_second_best']:,.0f}; snapshot {early:,} bytes early, "
        f"{late:,} late, {row['known_task_bytes']:,} more for each known task; "
        f"equal after {row['equal_after_cut']} of {row['cuts']} cuts",
        holds=fast and even and row["equal_after_cut"] == row["cuts"],
    )  # fmt: skip
