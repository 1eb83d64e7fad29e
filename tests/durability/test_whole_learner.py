"""A whole learner, without Ray and without a model, under SIGKILL, a second writer, lost replies, damage, a full disk.

`python -m streamcl.bench.reliability` runs all of the scenarios; here are enough to notice when a guard goes.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from streamcl.bench import reliability_whole as whole
from streamcl.bench.reliability_kill import Tally, occurrences
from streamcl.bench.reliability_state import different, multiset_hash


def show(tally: Tally) -> None:
    print(
        f"{tally.scenarios} scenarios / {tally.kills} kills at {len(tally.points)} points / {tally.reads} reads / "
        f"{len(tally.violations)} violations: at most {tally.bound:.1%} at 95 %"
    )


def test_kills_at_many_points_and_in_recovery_change_nothing(apart: Any) -> None:
    tally: Tally = apart(whole.kills, times=1, every=5)
    show(tally)
    assert tally.violations == []
    assert len(tally.points) >= 30
    assert tally.kills >= 1.5 * tally.scenarios
    assert tally.reads >= 1000


def test_random_chains_of_kills_change_nothing(apart: Any) -> None:
    tally: Tally = apart(whole.random_chains, 3, seed=7)
    show(tally)
    assert tally.violations == []
    assert tally.kills >= 5


@pytest.mark.chaos
def test_kills_at_every_point_at_three_occurrences_change_nothing(apart: Any) -> None:
    tally: Tally = apart(whole.kills) + apart(whole.random_chains, 40)
    show(tally)
    assert tally.violations == []
    assert len(tally.points) >= 100
    assert tally.kills >= 600


def test_a_writer_that_wakes_after_another_changes_nothing(apart: Any) -> None:
    tally: Tally = apart(whole.two_writers, 5)
    assert tally.violations == []
    assert tally.scenarios == 5


def test_lost_late_and_repeated_replies_change_nothing(apart: Any) -> None:
    tally: Tally = apart(whole.lost_replies, 2)
    assert tally.violations == []
    assert tally.kills >= 3


def test_damaged_objects_are_walked_past_or_named(apart: Any) -> None:
    found = apart(whole.damaged_objects, every=19)
    assert found.violations == []
    assert found.walked_past >= 5


def test_a_full_disk_stops_the_learner_and_space_lets_it_go_on(apart: Any) -> None:
    try:
        tally: Tally = apart(whole.full_disk, (60, 250, 500))
    except OSError as error:
        pytest.skip(str(error))
    assert tally.violations == []
    assert tally.scenarios == 3


def test_every_broken_twin_is_caught(apart: Any) -> None:
    found: dict[str, str] = apart(whole.broken_twins)
    assert len(found) == 7
    assert [name for name, violation in found.items() if not violation] == []


def test_an_ending_tells_what_differs() -> None:
    assert different({"a": 1, "b": 2}, {"a": 1, "b": 3}) == "b: 2 instead of 3"
    assert different({"a": 1, "b": 2}, {"a": 1}) == ""


def test_the_multiset_hash_sees_repeats_and_no_order() -> None:
    assert multiset_hash(Counter(["a", "b"])) == multiset_hash(Counter(["b", "a"]))
    assert multiset_hash(Counter(["a", "b"])) != multiset_hash(Counter(["a", "b", "b"]))


def test_occurrences_reach_from_the_first_to_the_last() -> None:
    assert occurrences(9, 3) == [1, 5, 9]
    assert occurrences(2, 3) == [1, 2]
    assert occurrences(9, 1) == [5]
