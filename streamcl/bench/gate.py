"""The gate's decisions over candidates that were really trained; rollbacks and kills under an endpoint that answers.

    python -m streamcl.bench.gate [decisions | served]

Each part may be run by itself and keeps what was measured of the other. About 10 minutes, and 8.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from streamcl.bench import gate_served
from streamcl.bench.gate_decisions import CHAINS, Bench, chain
from streamcl.bench.report import Claim, about, save, saved

COMMAND = "python -m streamcl.bench.gate"
Row = dict[str, Any]


def decisions() -> list[Row]:
    bench = Bench.ready()
    return [row for number in track(range(CHAINS), "chains") for row in chain(bench, number)]


def served() -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="streamcl-gate-") as folder:
        for row in track(gate_served.measured(Path(folder) / "run"), "rollbacks and kills", total=14):
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


PARTS: dict[str, Callable[[], list[Row]]] = {"decisions": decisions, "served": served}


def decided(rows: Sequence[Row]) -> Claim:
    good, bad = ([row for row in rows if (row["kind"] == "good") is kind] for kind in (True, False))
    held = [row for row in good if not row["passed"]]
    let = [row for row in bad if row["passed"]]
    kinds = sorted({row["kind"].split(":")[0] for row in bad})
    wrong = "; ".join(f"chain {row['chain']}, {row['task']}, {row['kind']}: {row['why']}" for row in (*held, *let))
    return Claim(
        "7.4",
        f"{len(good)} good candidates and {len(bad)} bad ones ({', '.join(kinds)}), in chains of four zoo tasks",
        "20 and 20, <= 1 wrong each way",
        f"good ones held back: {len(held)} of {len(good)}; bad ones let through: {len(let)} of {len(bad)}"
        f"{': ' if wrong else ''}{wrong}",
        len(good) >= 20 and len(bad) >= 20 and len(held) <= 1 and len(let) <= 1,
        f"{COMMAND} decisions",
    )


def moved(rows: Sequence[Row]) -> Claim:
    worst = max(row["moved_to_answer_s"] for row in rows)
    command = sorted(row["command_s"] for row in rows)[len(rows) // 2]
    failed, stale = (sum(row[name] for row in rows) for name in ("failed", "stale"))
    without = sum(not row["learner"] for row in rows)
    return Claim(
        "7.5",
        f"{len(rows)} moves of the alias through `streamcl versions promote` on 2 replicas under about 10 requests/s, "
        f"{without} of them without a learner: from the commit that moves it to the first answer of the other version",
        "<= 2 s, 0 failures",
        f"at most {worst:.2f} s, {failed} failed, {stale} answers of another version once the command had returned; "
        f"the command as a whole, a Python of its own, takes {command:.1f} s",
        worst <= 2.0 and not failed and not stale,
        f"{COMMAND} served",
    )


def killed(rows: Sequence[Row]) -> Claim:
    said = "; ".join(f"{row['victim']} {row['failed']}/{row['asked']}, {row['gap_s']:.1f} s" for row in rows)
    stale = sum(row.get("stale", 0) for row in rows)
    return Claim(
        "7.3",
        "kill -9 of each (the store: its folder taken away for 12 s), one retry: failed/asked and the longest time "
        "between two answers; answers of a stale version after a killed replica's successor is ready",
        "a table; 0 stale",
        f"{said}; stale {stale}",
        not stale and {row["victim"] for row in rows} >= {"replica", "controller", "proxy", "store", "learner"},
        f"{COMMAND} served",
    )


def claims(rows: Sequence[Row]) -> list[Claim]:
    """What the rows of those parts say that were measured."""
    of: dict[str, list[Row]] = {"decisions": [], "moves": [], "kills": []}
    for row in rows:
        of["decisions" if row["part"] == "decisions" else "kills" if "victim" in row else "moves"].append(row)
    ways: list[tuple[str, Callable[[Sequence[Row]], Claim]]]
    ways = [("kills", killed), ("decisions", decided), ("moves", moved)]
    return [claim(of[name]) for name, claim in ways if of[name]]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="what to measure; all without")
    for part in parser.parse_args().part or PARTS:
        others = [row for row in saved("gate")["rows"] if row["part"] != part]
        rows = others + [{"part": part, **row} for row in PARTS[part]()]
        found = claims(rows)
        save("gate", about(seeds=range(CHAINS)), rows=rows, claims=found)
        for claim in found:
            print(f"{claim.id} {'holds' if claim.holds else 'MISSED'}: {claim.value}")


if __name__ == "__main__":
    main()
