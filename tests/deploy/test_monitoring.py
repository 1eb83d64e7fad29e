"""Dashboard and alerts, as files. That their metrics are really exported: `tests/cluster/test_run.py`."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from streamcl.cluster import metrics
from streamcl.testing.dashboard import metrics as read
from streamcl.testing.dashboard import panels, rules, unknown

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "streamcl.json").read_text())


def test_grafana_knows_every_key_of_the_dashboard() -> None:
    assert unknown(DASHBOARD) == []


@pytest.mark.parametrize("key", ["gridPos", "options", "fieldConfig", "targets"])
def test_a_typing_error_in_the_dashboard_is_found(key: str) -> None:
    wrong = copy.deepcopy(DASHBOARD)
    panel = wrong["panels"][1]
    place = panel[key][0] if isinstance(panel[key], list) else panel[key]
    name = next(iter(place))
    place[f"{name}s"] = place.pop(name)
    assert unknown(wrong)


def test_panels_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_everything_that_is_told_is_shown_and_nothing_else() -> None:
    told = {f"ray_streamcl_{name}" for name in (*metrics.GAUGES, *metrics.SHARD_GAUGES, *metrics.REPLICA_GAUGES)}
    shown = {name for queries in panels(DASHBOARD).values() for query in queries for name in read(query)}
    assert {name for name in shown if "streamcl" in name} == told


def test_alerts_read_what_is_told_or_recorded() -> None:
    told = {f"ray_streamcl_{name}" for name in (*metrics.GAUGES, *metrics.SHARD_GAUGES, *metrics.REPLICA_GAUGES)}
    queries = rules(DEPLOY / "prometheus" / "rules.yaml")
    wanted = {name for query in queries.values() for name in read(query)}
    assert {name for name in wanted if "streamcl" in name} <= {*told, *queries}


@pytest.mark.parametrize(
    "command", ["check rules rules.yaml", "test rules rules_test.yaml", "check config prometheus.yml"]
)
def test_prometheus_takes_the_rules(command: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    done = subprocess.run(
        [promtool, *command.split()], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
