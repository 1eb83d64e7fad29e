"""SIGKILL and SIGSTOP at the steps of every write: the history is that of an undisturbed run (G1, G2, G4, G8, G24)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamcl.bench.reliability_log import check, check_readable, late_pointers, log_kills, reads, scratch, zombies
from streamcl.errors import StoreError
from streamcl.registry.backends import LocalStore
from streamcl.testing import crash

from .twins import InPlace, PointsFirst


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch() as path:
        yield path


def test_the_small_learner_counts_every_sample_once(folder: Path) -> None:
    counter = crash.KillPoint()
    crash.learn(folder / "run", counter)
    assert crash.history(LocalStore(folder / "run"))[-1][1]["counters"] == {"in": 10, "accepted": 7, "dup": 3}
    assert len(counter.counts) == 10, "every step of a write is a place to die"


def test_a_kill_and_another_during_recovery_leave_the_same_history() -> None:
    counts = log_kills(30)
    assert counts["violations"] == 0
    assert counts["kills"] > 1.2 * counts["scenarios"] == 36


@pytest.mark.chaos
def test_a_kill_at_every_step_leaves_the_same_history() -> None:
    counts = log_kills()
    print(counts)
    assert counts["violations"] == 0
    assert counts["scenarios"] >= 150


def test_a_store_that_writes_in_place_shows_halves(folder: Path) -> None:
    broken = 0
    for nth in range(1, 13):
        assert crash.learn_in_child(folder / str(nth), f"half:{nth}", InPlace)
        try:
            check_readable(folder / str(nth))
        except StoreError:
            broken += 1
    assert broken >= 3, "half a commit each"


def test_the_same_with_a_process_of_its_own(folder: Path) -> None:
    root, repository = folder / "run", Path(__file__).parents[2]
    crash.learn(folder / "undisturbed", crash.KillPoint())
    codes = []
    for place in ("linked:9", "replaced:2", ""):
        environment = {**os.environ, "STREAMCL_KILL_AT": place, "PYTHONPATH": str(repository)}
        learner = subprocess.run([sys.executable, crash.__file__, str(root)], env=environment, check=False)
        codes.append(learner.returncode)
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    check(root, crash.history(LocalStore(folder / "undisturbed")))


def test_a_stopped_learner_that_wakes_after_another_came_does_nothing_any_more() -> None:
    counts = zombies(5)
    assert counts["violations"] == 0
    assert counts["fenced"] >= 1, "the others did not come as far: the heir had cleared away what they were writing"


@pytest.mark.chaos
def test_20_of_20_zombies_stop_before_any_side_effect() -> None:
    counts = zombies(20)
    print(counts)
    assert (counts["scenarios"], counts["violations"]) == (20, 0)


def test_a_zombie_that_was_stopped_while_it_moved_the_pointer_misleads_no_reader() -> None:
    counts = late_pointers(6)
    assert counts["violations"] == 0
    assert counts["went back"] >= 1, "it is possible"


def test_readers_see_whole_versions_while_the_writer_is_killed() -> None:
    counts = reads(1_000)
    assert counts["violations"] == 0
    assert min(counts["kills"], counts["versions"]) >= 2


@pytest.mark.chaos
def test_4_000_reads_see_whole_versions_while_the_writer_is_killed() -> None:
    counts = reads(4_000)
    print(counts)
    assert counts["violations"] == 0


def test_readers_notice_a_pointer_that_comes_before_its_files() -> None:
    assert reads(300, registry=PointsFirst)["violations"] > 0
