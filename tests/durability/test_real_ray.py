"""Every kind of process of a run on real Ray is killed once, with a client that goes on asking."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamcl.bench.reliability_ray import VICTIMS, compared

pytestmark = pytest.mark.chaos


def test_whoever_is_killed_the_run_ends_as_a_calm_one_and_the_endpoint_answers(tmp_path: Path) -> None:
    rows = list(compared(tmp_path, list(VICTIMS), kills=1))
    assert [row["victim"] for row in rows] == ["", *VICTIMS]
    assert {row["victim"]: row["wrong"] for row in rows if row["wrong"]} == {}
    assert all(row["kills"] == 1 for row in rows[1:])
    assert sum(row["failed"] for row in rows) == 0, rows
    assert all(row["asked"] > 20 for row in rows)
