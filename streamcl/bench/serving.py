"""Serving, measured: swaps under load, and the engine's speed. Each part may be run by itself and keeps the others'.

python -m streamcl.bench.serving [swaps | speed | clients]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from streamcl.bench.report import Claim, about, save, saved
from streamcl.bench.serving_clients import clients
from streamcl.bench.serving_speed import speed
from streamcl.bench.serving_swaps import swaps

COMMAND = "python -m streamcl.bench.serving"
PARTS: dict[str, Callable[[], tuple[list[dict[str, Any]], list[Claim]]]] = {
    "swaps": lambda: swaps(5, quiet_s=20.0, swapping_s=41.0),
    "speed": lambda: speed(seconds=4.0, rounds=2),
    "clients": clients,
}
"""About eight minutes, four, and one."""


def keep(rows: list[dict[str, Any]], claims: list[Claim]) -> None:
    """Writes what was measured in place of what was measured before of the same parts and claims."""
    old = saved("serving")
    parts, ids = {row["part"] for row in rows}, {claim.id for claim in claims}
    kept = [Claim(**claim) for claim in old["claims"] if claim["id"] not in ids]
    everything = sorted([*kept, *claims], key=lambda claim: claim.id)
    save("serving", about(seeds=[0]), rows=[*(r for r in old["rows"] if r["part"] not in parts), *rows],
         claims=everything)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="what to measure; all without")
    for part in parser.parse_args().part or PARTS:
        rows, claims = PARTS[part]()
        keep(rows, claims)
        for claim in claims:
            print(f"{claim.id} {'holds' if claim.holds else 'missed'}: {claim.value}")


if __name__ == "__main__":
    main()
