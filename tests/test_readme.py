"""The README shows what was measured, and what it shows works."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import yaml

from streamcl import config
from streamcl.bench import report
from streamcl.bench.continual_claims import paired
from streamcl.bench.report import README, RESULTS, filled

TEXT = README.read_text()


def test_tables_are_those_of_the_results() -> None:
    assert filled(TEXT) == TEXT, "run `python -m streamcl.bench.report`"


def test_a_changed_figure_would_be_noticed() -> None:
    changed = re.sub(r"\| yes \|", "| no |", TEXT, count=1)
    assert changed != TEXT == filled(changed)


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL))
def test_yaml_in_the_readme_is_a_configuration(block: str) -> None:
    assert config.parse(yaml.safe_load(block)).name


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_say_where_they_come_from(path: Path) -> None:
    result = json.loads(path.read_text())
    assert {"machine", "date", "seeds", "versions", "rows", "claims"} <= result.keys()
    for claim in result["claims"]:
        assert set(claim) == {"id", "what", "bar", "value", "holds", "command"}
        assert re.fullmatch(r"\d\.\d", claim["id"])


def test_files_that_the_readme_names_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (README.parent / target).exists(), target


def test_a_results_own_table_stands_above_its_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    claim = report.Claim("1.1", "what", "bar", "a | b", True, "command")
    report.save("one", report.about(seeds=[0]), rows=[], claims=[claim], table=[["strategy", "last"], ["ewc", "1"]])
    own, claims, _ = report.table("one").split("\n\n")
    assert own == "| strategy | last |\n|---|---|\n| ewc | 1 |"
    assert claims.endswith("| 1.1 | what | bar | a \\| b | yes |")


def test_one_pair_of_cells_proves_nothing() -> None:
    results = [
        {"label": label, "last": last, "cell": {"order": "a", "seed": seed}}
        for label, lasts in {"with": (0.9, 0.8), "without": (0.5, 0.6)}.items()
        for seed, last in enumerate(lasts)
    ]
    assert paired(results[::2], "with", "without", "last") == (pytest.approx(40), math.inf)
    mean, half = paired(results, "with", "without", "last")
    assert (mean, half) == (pytest.approx(30), pytest.approx(127.06))
