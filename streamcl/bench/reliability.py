"""What holds when processes die, replies get lost, disks fill up and samples are hostile: every part, counted.

    python -m streamcl.bench.reliability                 everything: an hour or so on two cores
    python -m streamcl.bench.reliability --quick         a few minutes: fewer of each, without real Ray
    python -m streamcl.bench.reliability --only l2,l3    some parts; the others' results stay as they are

Each part is written as soon as it is through, with its own date and commit, so an interrupted bench goes on with
`--only`. With 0 violations in n scenarios, at most 3/n of such scenarios violate something, at 95 % confidence.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from streamcl.bench.report import RESULTS, Claim, about, save

COMMAND = "python -m streamcl.bench.reliability"
Row = dict[str, Any]
"""What was shown of one guarantee: guarantee, what, scenarios, kills, violations; and what else was counted."""


def _row(guarantee: str, what: str, counts: Mapping[str, Any], told: Sequence[str] = ()) -> Row:
    numbers = {name: counts.get(name, 0) for name in ("scenarios", "kills", "violations")}
    more = {name: value for name, value in counts.items() if name not in numbers}
    return {"guarantee": guarantee, "what": what, **numbers, **more, "told": [text[:500] for text in told[:3]]}


def _tally(guarantee: str, what: str, tally: Any) -> Row:
    counts = {"scenarios": tally.scenarios, "kills": tally.kills, "violations": len(tally.violations)}
    seen = {"points": len(tally.points), "reads": tally.reads}
    return _row(guarantee, what, {**counts, **{name: value for name, value in seen.items() if value}}, tally.violations)


# -- parts -------------------------------------------------------------------------------------------------------------


def l1(quick: bool) -> list[Row]:
    from streamcl.bench import reliability_log as log

    return [
        _row(
            "G2 G9 G11", "state machine of the log: two writers, bad replies", log.machine_runs(100 if quick else 2000)
        )
    ]


def l2(quick: bool) -> list[Row]:
    from streamcl.bench import reliability_whole as whole

    points = whole.kills(times=1 if quick else 3, every=4 if quick else 1)
    return [_tally("G1-G4 G24", "whole learner, SIGKILL at named points and again in recovery", points)]


def chains(quick: bool) -> list[Row]:
    from streamcl.bench import reliability_whole as whole

    found = whole.random_chains(4 if quick else 40)
    return [_tally("G1-G4 G24", "whole learner, random chains of 3 to 8 SIGKILLs", found)]


def log(quick: bool) -> list[Row]:
    from streamcl.bench import reliability_log as log

    return [
        _row(
            "G1 G2 G24", "log and registry, SIGKILL at every step of every write", log.log_kills(30 if quick else None)
        ),
        _row("G4", "reads of pointer, manifest and weights beside a killed writer", log.reads(500 if quick else 4000)),
    ]


def zombies(quick: bool) -> list[Row]:
    from streamcl.bench import reliability_log as log
    from streamcl.bench import reliability_whole as whole

    return [
        _row("G8", "log: SIGSTOP, second writer, SIGCONT", log.zombies(5 if quick else 20)),
        _tally(
            "G8", "whole learner: SIGSTOP, second learner to the end, SIGCONT", whole.two_writers(4 if quick else 20)
        ),
    ]


def replies(quick: bool) -> list[Row]:
    from streamcl.bench import reliability_store as store
    from streamcl.bench import reliability_whole as whole

    puts = store.ambiguous_puts(40 if quick else 400)
    return [
        _row("G9", "puts to an S3 server through a line that drops, delays, repeats", puts),
        _tally("G9", "whole learner on a store that loses replies, with kills", whole.lost_replies(2 if quick else 20)),
    ]


def damage(quick: bool) -> list[Row]:
    from streamcl.bench import reliability_store as store
    from streamcl.bench import reliability_whole as whole

    found = whole.damaged_objects(every=19 if quick else 1)
    counts = {
        "scenarios": found.scenarios,
        "violations": len(found.violations),
        "walked_past": found.walked_past,
        "stopped_and_named": dict(found.refused),
    }
    disk = whole.full_disk((60, 250, 500) if quick else whole.SIZES_KIB)
    return [
        _row("G11", "whole learner: each object of a killed run flipped, cut, deleted", counts, found.violations),
        _tally("G12", "whole learner: disk full, then space again", disk),
        _row("G11", "log and registry: each object flipped, cut, deleted", store.damages()),
        _row("G12", "log and registry: disk full", store.disk_full()),
        _row("G1 G4", "log and registry: power cut, unsynced writes gone", store.power_cuts(30 if quick else None)),
    ]


def twins(quick: bool) -> list[Row]:
    from streamcl.bench import reliability_whole as whole

    caught = whole.broken_twins()
    alive = [name for name, violation in caught.items() if not violation]
    counts = {"scenarios": len(caught), "violations": len(alive), "caught": len(caught) - len(alive)}
    return [_row("all", "learners broken on purpose, caught by the same scenarios", counts, alive)]


def corpus(quick: bool) -> list[Row]:
    from streamcl.bench.reliability_corpus import run_corpus

    with tempfile.TemporaryDirectory() as folder:
        found = run_corpus(Path(folder) / "corpus")
    lost = found["good_expected"] - found["good"]
    counts = {"scenarios": found["files"], "violations": len(found["wrong"]) + found["crashes"] + lost, **found}
    return [_row("G18 G19", "hostile records, each followed by a good one", counts, found["wrong"])]


def l3(quick: bool) -> list[Row]:
    if quick:
        return []
    from streamcl.bench import reliability_ray as ray

    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="streamcl-", dir=memory) as folder:
        runs = list(ray.compared(Path(folder), list(ray.VICTIMS), kills=5))
    rows = []
    for run in runs:
        wrong = run.pop("wrong")
        counts = {"scenarios": 1, "violations": int(bool(wrong)), **run}
        rows.append(
            _row("G1-G6 G24", f"real Ray, {run['victim'] or 'nobody'} killed", counts, [wrong] if wrong else [])
        )
    return rows


PARTS = {part.__name__: part for part in (l1, l2, chains, log, zombies, replies, damage, twins, corpus, l3)}


def run_part(name: str, quick: bool) -> dict[str, Any]:
    """One part in a process of its own; its rows, when and of which commit."""
    started = time.monotonic()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = pool.submit(PARTS[name], quick).result()
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    return {"date": now, "commit": commit, "quick": quick, "seconds": round(time.monotonic() - started), "rows": rows}


# -- what is promised --------------------------------------------------------------------------------------------------


def claims(parts: Mapping[str, Any]) -> list[Claim]:
    """The promises whose parts have been run."""
    rows = {name: part["rows"] for name, part in parts.items()}
    whole = rows["l2"] + rows["chains"] if {"l2", "chains"} <= set(rows) else None
    made = [
        _claim_of(
            "5.1", "whole learner, SIGKILL at named points and in recovery: the final state of an undisturbed run",
            ">= 250 kills at >= 30 points, 0 violations", whole,
            lambda found: _total(found, "kills") >= 250 and found[0]["points"] >= 30,
        ),
        _claim_of(
            "5.2", "state machine of the log: two writers, replies lost, late, repeated",
            ">= 2,000 runs, 0 violations", rows.get("l1"), lambda found: _total(found, "scenarios") >= 2000,
        ),
        _claim_of(
            "5.3", "real Ray: driver, ingest, shards, train controller and worker, replica killed",
            "5 times each: final state of a calm run, no question unanswered with one retry", rows.get("l3"), _survived,
        ),
        _claim_of(
            "5.4", "a writer stopped, a second one to the end, the first awake again",
            "20 of 20 change nothing", rows.get("zombies"), lambda found: all(row["scenarios"] >= 20 for row in found),
        ),
        _claim_of(
            "5.5", "commits through a line that drops, delays and repeats",
            ">= 400 puts, 0 violations", rows.get("replies"), lambda found: found[0]["scenarios"] >= 400,
        ),
        _claim_of(
            "5.6", "hostile records: in the dead letters with their reason; the good ones arrive",
            ">= 40, 0 wrong", rows.get("corpus"), lambda found: found[0]["scenarios"] >= 40,
        ),
    ]  # fmt: skip
    return [claim for claim in made if claim is not None]


def _claim_of(
    id: str, what: str, bar: str, rows: Sequence[Row] | None, enough: Callable[[Sequence[Row]], bool]
) -> Claim | None:
    if not rows:
        return None
    scenarios, kills, wrong = (_total(rows, name) for name in ("scenarios", "kills", "violations"))
    bound = f", at most {min(1.0, 3 / scenarios):.1%} at 95 %" if not wrong else ""
    points = f" at {rows[0]['points']} points" if "points" in rows[0] else ""
    value = f"{scenarios} scenarios, {kills} kills{points}, {wrong} violations{bound}"
    if "asked" in rows[0]:
        value += f"; {_total(rows, 'asked')} questions, {_total(rows, 'failed')} unanswered"
    return Claim(id, what, bar, value, wrong == 0 and enough(rows), COMMAND)


def _survived(rows: Sequence[Row]) -> bool:
    return all(row["kills"] >= 5 for row in rows[1:]) and _total(rows, "failed") == 0


def _total(rows: Sequence[Row], name: str) -> int:
    return sum(row.get(name, 0) for row in rows)


def table(parts: Mapping[str, Any]) -> Table:
    shown = Table("guarantee", "what", "scenarios", "kills", "violations", "bound at 95 %")
    for part in parts.values():
        for row in part["rows"]:
            bound = "" if row["violations"] or not row["scenarios"] else f"{min(1.0, 3 / row['scenarios']):.1%}"
            numbers = [str(row[name]) for name in ("scenarios", "kills", "violations")]
            shown.add_row(row["guarantee"], row["what"], *numbers, bound)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer of each, no real Ray; nothing is written")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := set(names) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: one of {', '.join(PARTS)}")
    console = Console(stderr=True)
    path = RESULTS / "reliability.json"
    parts = json.loads(path.read_text())["parts"] if path.exists() and not arguments.quick else {}
    for name in names:
        with console.status(name):
            parts[name] = run_part(name, arguments.quick)
        console.print(f"{name}: {parts[name]['seconds']} s")
        if not arguments.quick:
            ordered = {name: parts[name] for name in PARTS if name in parts}
            rows = [row for part in ordered.values() for row in part["rows"]]
            save("reliability", {**about(seeds=[0]), "parts": ordered}, rows=rows, claims=claims(ordered))
    console.print(table(parts))


if __name__ == "__main__":
    main()
