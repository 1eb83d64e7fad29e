"""Each metric against its formula, by hand and against the numbers that papers print."""

from __future__ import annotations

import numpy as np
import pytest

from streamcl.metrics import DEFINITIONS, Matrix, summarize

THREE = np.array([[0.9, 0.7, 0.8], [0.3, 0.8, 0.4], [0.1, 0.2, 0.6]])
"""a[task, column]. Task 0 falls and recovers a little, task 1 falls, task 2 is learned last."""


def with_means(imd: float, last: float, tasks: int) -> Matrix:
    """A matrix whose diagonal and last column have these means. The last task has not changed since being learned."""
    rng = np.random.default_rng(0)
    a_TT = rng.uniform(20, 90, (tasks, tasks))
    column = rng.uniform(-5, 5, tasks)
    a_TT[:, -1] = last + column - column.mean()
    drop = rng.uniform(-5, 5, tasks - 1)
    np.fill_diagonal(a_TT[:-1, :-1], a_TT[:-1, -1] + drop - drop.mean() + (imd - last) * tasks / (tasks - 1))
    return a_TT


def test_disco_has_the_bwt_of_its_paper() -> None:
    values = summarize(with_means(75.87, 69.66, 6))
    assert values["imd"] == pytest.approx(75.87)
    assert values["last"] == pytest.approx(69.66)
    assert values["bwt"] == pytest.approx(-7.45, abs=0.005)  # (69.66 - 75.87) * 6 / 5
    assert values["bwt_octopus"] == pytest.approx(-6.21)


def test_octopus_has_the_bwt_of_its_paper() -> None:
    values = summarize(with_means(70.60, 71.01, 6))
    assert values["bwt_octopus"] == pytest.approx(0.41)
    assert values["bwt"] == pytest.approx(0.41 * 6 / 5)


def test_three_tasks_by_hand() -> None:
    values = summarize(THREE, zero_shot=[0.2, 0.1, 0.1])
    assert values == pytest.approx(
        {
            "last": (0.8 + 0.4 + 0.6) / 3,
            "imd": (0.9 + 0.8 + 0.6) / 3,
            "avg": ((0.9 + 0.7 + 0.8) / 3 + (0.8 + 0.4) / 2 + 0.6) / 3,
            "maa": (0.9 + (0.7 + 0.8) / 2 + (0.8 + 0.4 + 0.6) / 3) / 3,
            "bwt": ((0.8 - 0.9) + (0.4 - 0.8)) / 2,
            "bwt_octopus": ((0.8 - 0.9) + (0.4 - 0.8) + 0.0) / 3,
            "forgetting": ((0.9 - 0.8) + (0.8 - 0.4)) / 2,
            "forgetting_avalanche": ((0.9 - 0.8) + (0.8 - 0.4)) / 2,
            "fwt": ((0.3 - 0.1) + (0.2 - 0.1)) / 2,
        }
    )
    assert set(values) == set(DEFINITIONS)


def test_chaudhry_counts_from_the_best_score_and_avalanche_from_the_first() -> None:
    values = summarize(np.array([[0.5, 0.9, 0.6], [0.0, 0.5, 0.5], [0.0, 0.0, 0.5]]))
    assert values["forgetting"] == pytest.approx((0.3 + 0.0) / 2)
    assert values["forgetting_avalanche"] == pytest.approx((-0.1 + 0.0) / 2)


def test_a_task_that_returns_adds_a_column_and_no_row() -> None:
    a_TC = np.array([[0.9, 0.5, 0.8, 0.7], [0.1, 0.6, 0.2, 0.4], [0.0, 0.1, 0.3, 0.5]])  # tasks 0, 1, 0 again, 2
    values = summarize(a_TC, learned=[0, 1, 3], zero_shot=[0.0, 0.0, 0.0])
    assert values["imd"] == pytest.approx((0.9 + 0.6 + 0.5) / 3)
    assert values["last"] == pytest.approx((0.7 + 0.4 + 0.5) / 3)
    assert values["avg"] == pytest.approx((np.mean([0.9, 0.5, 0.8, 0.7]) + np.mean([0.6, 0.2, 0.4]) + 0.5) / 3)
    assert values["maa"] == pytest.approx((0.9 + (0.5 + 0.6) / 2 + (0.8 + 0.2) / 2 + (0.7 + 0.4 + 0.5) / 3) / 4)
    assert values["bwt"] == pytest.approx(((0.7 - 0.9) + (0.4 - 0.6)) / 2)
    assert values["fwt"] == pytest.approx((0.1 + 0.3) / 2)


def test_a_first_task_that_returns_last_leaves_the_second_to_be_forgotten() -> None:
    a_TC = np.array([[0.9, 0.5, 0.9], [0.1, 0.6, 0.2]])  # tasks 0, 1, 0 again
    values = summarize(a_TC, learned=[0, 1])
    assert values["bwt"] == pytest.approx((0.0 + (0.2 - 0.6)) / 2)
    assert values["forgetting_avalanche"] == pytest.approx((0.0 + (0.6 - 0.2)) / 2)


def test_one_task_has_nothing_to_forget() -> None:
    assert set(summarize(np.array([[0.5]]))) == {"last", "imd", "avg", "maa"}


def test_perfect_memory_forgets_nothing() -> None:
    a_TT = np.triu(np.tile([[0.3], [0.6], [0.9]], (1, 3)))
    values = summarize(a_TT)
    assert [values[name] for name in ("bwt", "bwt_octopus", "forgetting", "forgetting_avalanche")] == [0.0] * 4
    assert values["last"] == values["imd"] == values["avg"] == pytest.approx(0.6)


def test_scores_that_were_not_taken_before_a_task_was_known_do_not_matter() -> None:
    unknown = THREE.copy()
    unknown[np.tril_indices(3, -1)] = np.nan
    assert summarize(unknown) == pytest.approx(summarize(THREE))
