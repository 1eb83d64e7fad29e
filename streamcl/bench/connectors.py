"""Connectors, measured: the same end whatever a stream comes from, speed, faults, and the papers' directories.

    python -m streamcl.bench.connectors [--part runs|speed|faults|papers] [--kept DIR]

A part that was measured is kept in a folder and not measured again; `runs` keeps each connector's run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamcl.bench import connectors_faults, connectors_runs, connectors_speed, continual_papers
from streamcl.bench.report import Claim, about, save

COMMAND = "python -m streamcl.bench.connectors"
METRICS = ("last", "avg", "imd", "maa", "bwt", "bwt_octopus", "forgetting", "fwt")
Part = tuple[list[dict[str, Any]], list[Claim]]


def papers() -> Part:
    """`streamcl bench continual --data` on small directories in the layouts of UCIT and CoIN."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="streamcl-papers-") as root:
        for kind in ("UCIT", "CoIN"):
            folder = continual_papers.write(Path(root) / kind, kind, train=16, test=4)
            command = [sys.executable, "-m", "streamcl.cli", "bench", "continual", "--data", str(folder)]
            done = subprocess.run([*command, "--strategies", "dgg", "--json"], capture_output=True, text=True)
            found = json.loads(done.stdout) if not done.returncode else {"error": done.stderr[-1000:]}
            rows.append({"directory": kind, **found})
    return rows, [_papers_claim(rows)]


def _papers_claim(rows: list[dict[str, Any]]) -> Claim:
    said, whole = [], True
    for row in rows:
        (result,) = row.get("results") or [{}]
        whole &= all(name in result for name in METRICS)
        figures = ", ".join(f"{name} {100 * result[name]:.1f}" for name in METRICS if name in result)
        said.append(f"{row['directory']}, {len(row.get('tasks', ()))} tasks: {figures or row.get('error')}")
    what = "small UCIT- and CoIN-shaped directories through `streamcl bench continual --data DIR`, dgg, zoo:small"
    return Claim("6.6", what, "the papers' metrics", "; ".join(said), whole, COMMAND)


PARTS: Mapping[str, Callable[[], Part]] = {
    "speed": connectors_speed.measured, "faults": connectors_faults.measured, "papers": papers
}  # fmt: skip


def part(name: str, kept: Path) -> Part:
    """A part's rows and claims, measured unless they are kept."""
    if name == "runs":
        return connectors_runs.measured(kept)
    path = kept / f"{name}.json"
    if not path.exists():
        rows, claims = PARTS[name]()
        path.write_text(json.dumps({"rows": rows, "claims": [asdict(claim) for claim in claims]}))
    found = json.loads(path.read_text())
    return found["rows"], [Claim(**claim) for claim in found["claims"]]


def main() -> None:
    names = ("runs", *PARTS)
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--part", choices=names, help="measure this one only, and keep it")
    parser.add_argument("--kept", type=Path, default=Path(tempfile.gettempdir()) / "streamcl-connectors")
    asked = parser.parse_args()
    asked.kept.mkdir(parents=True, exist_ok=True)
    parts = {name: part(name, asked.kept) for name in names if asked.part in (None, name)}
    claims = [claim for _, found in parts.values() for claim in found]
    for claim in claims:
        print(f"{claim.id} {'holds' if claim.holds else 'MISSED'}: {claim.value}")
    if asked.part is None:
        rows = [{"part": name, **row} for name, (found, _) in parts.items() for row in found]
        save("connectors", about(seeds=[0]), rows=rows, claims=claims)


if __name__ == "__main__":
    main()
