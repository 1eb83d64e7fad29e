"""What every bench writes, and what the README shows of it.

A bench ends in `streamcl/bench/results/NAME.json`: machine, date, seeds, versions, rows, and claims, one for each
promise it measures. `python -m streamcl.bench.report` writes the README's tables anew from these files.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[2] / "README.md"
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The 97.5 % quantile of Student's t for 1, 2, … degrees of freedom."""
PACKAGES = ("torch", "ray", "transformers", "peft", "pyarrow", "numpy")
WITHOUT_RAY = tuple(name for name in PACKAGES if name != "ray")


@dataclass(frozen=True)
class Claim:
    """One promise and what was measured."""

    id: str
    what: str
    bar: str
    value: str
    holds: bool
    command: str


def about(*, seeds: Sequence[int], packages: Iterable[str] = PACKAGES, gpu: str | None = None) -> dict[str, Any]:
    """The machine, the day and the versions that a result belongs to. `gpu`: its name, if one took part."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": {
            "cpu": names[0] if names else platform.machine(),
            "cores": os.cpu_count(),
            "load": [round(load, 2) for load in os.getloadavg()],
            **({"gpu": gpu} if gpu else {}),
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seeds": list(seeds),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and the half-width of its 95 % interval (Student's t, at most ten values); 0 for one value."""
    n = len(values)
    half = STUDENT[n - 2] * statistics.stdev(values) / n**0.5 if n > 1 else 0.0
    return statistics.fmean(values), half


def save(
    name: str, about: Mapping[str, Any], *, rows: Sequence[Mapping[str, Any]], claims: Sequence[Claim],
    table: Sequence[Sequence[str]] = (),
) -> Path:  # fmt: skip
    """Writes `results/NAME.json`. `table`: lines that the README shows above the claims, the header first."""
    path = RESULTS / f"{name}.json"
    RESULTS.mkdir(exist_ok=True)
    result = {**about, "table": list(table), "rows": list(rows), "claims": [asdict(claim) for claim in claims]}
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return path


def as_json(rows: Sequence[Mapping[str, Any]], claims: Sequence[Claim]) -> str:
    """What a part of a bench prints when it runs alone."""
    return json.dumps({"rows": list(rows), "claims": [asdict(claim) for claim in claims]}, indent=1)


def saved(name: str) -> dict[str, Any]:
    """What `save` wrote last; without rows and claims where it never did."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": [], "claims": []}
    return found


def table(name: str) -> str:
    """The claims of one result as a Markdown table, below its own if it has one; then the machine and the day."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    lines = [["", "claim", "bar", "measured", "holds"]]
    for claim in result["claims"]:
        holds = "yes" if claim["holds"] else "**missed**"
        lines.append([claim["id"], claim["what"], claim["bar"], claim["value"], holds])
    machine = result["machine"]
    seeds = ", ".join(str(seed) for seed in result["seeds"])
    gpu = f"one {machine['gpu']}, " if "gpu" in machine else ""
    where = f"{gpu}{machine['cores']} cores of {machine['cpu']}, load {machine['load'][0]} as it ended"
    about = f"{where}; {result['date']}; seeds {seeds}; `{result['claims'][0]['command']}`"
    return "\n\n".join([*map(_markdown, filter(None, (result.get("table"), lines))), about])


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lines as a table, the header first."""
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]])


def filled(text: str) -> str:
    """README text with every table between `<!-- NAME -->` and `<!-- end NAME -->` written anew."""
    return re.sub(
        r"(<!-- (\w+) -->\n).*?(<!-- end \2 -->)",
        lambda found: f"{found[1]}{table(found[2])}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
