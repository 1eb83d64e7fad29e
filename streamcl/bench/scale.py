"""How far a run scales: over nodes, against bare training, over workers and partitions, and by a model beyond that.

python -m streamcl.bench.scale                   all parts
python -m streamcl.bench.scale --part nodes      two and three nodes on this machine, one taken away; 10 min, as root
python -m streamcl.bench.scale --part overhead   the quickstart on Ray, then its windows again without; 10 min, alone
python -m streamcl.bench.scale --part weak       weak scaling, and the constants of the model; 5 min, alone

Parts are kept, and the runs of `nodes` one by one (`--run`): what is measured anew takes the place of its rows.
"""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from streamcl.bench import scale_nodes, scale_overhead, scale_weak
from streamcl.bench.report import Claim, about, save, saved

COMMAND = "python -m streamcl.bench.scale"
PARTS = {"nodes": scale_nodes, "overhead": scale_overhead, "weak": scale_weak}
"""Each has `measure(say, chosen)`, rows; and `claims(rows, command)`, of its rows."""


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """8.1, 8.3 and 8.4, as far as they were measured."""
    found = []
    for part, module in PARTS.items():
        mine = [row for row in rows if row["part"] == part]
        found += module.claims(mine, f"{COMMAND} --part {part}")
    return found


def merged(rows: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows` with those that were found anew, by part and run."""
    new = {(row["part"], row.get("run")) for row in found}
    return [*(row for row in rows if (row["part"], row.get("run")) not in new), *found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="what to measure anew; all without any")
    parser.add_argument("--run", action="append", choices=scale_nodes.RUNS, help="of nodes: these runs alone")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="of overhead: what to run otherwise")
    parser.add_argument("--more", action="store_true", help="of overhead: another run beside those that there are")
    options = parser.parse_args()
    chosen = {"nodes": options.run or list(scale_nodes.RUNS), "overhead": options.set or [], "weak": []}
    say = Console(stderr=True)
    for part in options.part or PARTS:
        found = PARTS[part].measure(say, chosen[part])
        known = saved("scale")["rows"]
        if options.more:
            found = [*(row for row in known if row["part"] == part == "overhead"), *found]
        rows = merged(known, found)
        save("scale", about(seeds=[0]), rows=rows, claims=claims(rows))
        for claim in claims(rows):
            say.print(f"{claim.id} {'holds' if claim.holds else 'MISSED'}: {claim.value}")


if __name__ == "__main__":
    main()
