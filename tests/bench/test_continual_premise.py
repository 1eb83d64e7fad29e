"""What is said of HiFGO's premise follows from the pairs of tasks."""

from __future__ import annotations

import pytest

from streamcl.bench.continual_premise import claims, ranked

PAIRS = [
    {"cosine": 0.01 * n, "new": 0.5, "old": 0.1, "along_new": -n, "along_old": n, "harm": n * n} for n in range(21)
]


def test_ranks_follow_the_order_and_not_the_size() -> None:
    assert ranked(PAIRS, "along_old") == pytest.approx(1)
    assert ranked(PAIRS, "along_new") == pytest.approx(-1)


def test_the_claim_says_median_range_and_control_of_all_pairs() -> None:
    (claim,) = claims(PAIRS)
    assert "cosine 0.10 (0.00 to 0.20)" in claim.value
    assert (
        "of the new task 0.50 (0.50 to 0.50), of the old task, at its own optimum, 0.10 (0.10 to 0.10)" in claim.value
    )
    assert "(21 pairs of tasks)" in claim.value
