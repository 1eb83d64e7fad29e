"""Two writers, a collector, readers, damage, and replies that get lost: nothing is lost or doubled. The twins' is."""

from __future__ import annotations

from typing import Any

import pytest

from streamcl.bench.reliability_log import machine_runs
from streamcl.errors import Corrupt
from streamcl.testing.machine import TwoWriters, explore

from . import twins

GUARDS: dict[str, dict[str, Any]] = {
    "txn": {"log": twins.NoTxnCheck},
    "epoch": {"log": twins.NoEpoch},
    "conditional put": {"store": twins.Overwriting},
    "post-commit check": {"log": twins.NoPostCommitCheck},
    "sha": {"log": twins.NoDigestCheck},
    "commit before deletion": {"collect": staticmethod(twins.deletes_first)},
    "age of the unnamed": {"collect": staticmethod(twins.sweeps_the_young)},
    "horizon of recovery": {"collect": staticmethod(twins.forgets_its_horizon)},
    "new folder after a collection": {"registry": twins.SameFolder},
}


def test_no_commit_is_lost_or_doubled_whatever_the_store_does() -> None:
    assert machine_runs(100)["violations"] == 0


@pytest.mark.slow
def test_no_commit_is_lost_or_doubled_in_3_000_runs() -> None:
    assert machine_runs(3_000)["violations"] == 0


@pytest.mark.parametrize("guard", GUARDS)
def test_the_machine_catches_the_twin_without(guard: str) -> None:
    with pytest.raises((AssertionError, Corrupt)):
        explore(type("Broken", (TwoWriters,), {**GUARDS[guard], "happened": {}}), 1_000)
