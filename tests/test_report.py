"""The accuracy matrix as the log tells it, and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from streamcl.console import headline
from streamcl.report import Matrix, draw, matrix


def version(
    task: str, *, closes: bool = True, before: dict[str, float] | None = None, **scores: float
) -> dict[str, Any]:
    """The version part of a commit, as far as the report looks."""
    return {"task": task, "scores": scores, "extra": {"closes_task": closes, "before": before or {}}}


RUN = [
    version("digits", closes=False, digits=0.4, before={"digits": 0.1, "maps": 0.2}),
    version("digits", digits=0.9, maps=0.3),
    version("maps", closes=False, digits=0.1, maps=0.1),
    version("maps", digits=0.7, maps=0.8),
]


def test_a_column_is_a_finished_task_and_a_row_its_scores() -> None:
    found = matrix(RUN)
    assert found is not None
    assert (found.tasks, found.columns, found.learned) == (("digits", "maps"), ("digits", "maps"), [0, 1])
    assert found.a_TC.tolist() == [[0.9, 0.7], [0.3, 0.8]]
    assert found.zero_shot == (0.1, 0.2)
    assert found.metrics()["fwt"] == pytest.approx(0.3 - 0.2)
    assert found.metrics()["bwt"] == pytest.approx(0.7 - 0.9)


def test_a_task_that_returns_has_one_row_and_two_columns() -> None:
    found = matrix([*RUN, version("digits", digits=0.95, maps=0.6)])
    assert found is not None
    assert (found.tasks, found.columns) == (("digits", "maps"), ("digits", "maps", "digits"))
    assert (found.learned, found.a_TC.shape) == ([0, 1], (2, 3))
    assert found.metrics()["last"] == pytest.approx((0.95 + 0.6) / 2)


def test_there_is_no_matrix_before_a_task_is_finished() -> None:
    assert matrix([]) is None
    assert matrix(RUN[:1]) is None


def test_a_score_that_was_not_taken_is_nan_and_spoils_no_other_metric() -> None:
    found = matrix([version("digits", digits=0.9), version("maps", digits=0.7, maps=0.8)])
    assert found is not None
    assert np.isnan(found.a_TC[1, 0])
    assert found.zero_shot is None
    assert found.metrics()["bwt"] == pytest.approx(0.7 - 0.9)
    assert np.isfinite(list(found.metrics().values())).all()


def test_there_is_no_zero_shot_unless_every_task_was_scored_before() -> None:
    found = matrix([version("digits", digits=0.9, before={"digits": 0.1}), *RUN[1:]])
    assert found is not None
    assert found.zero_shot is None


def drawn(found: Matrix, path: Path) -> np.ndarray:
    draw(found, path, title="a run")
    with Image.open(path, formats=["PNG"]) as image:
        return np.asarray(image.convert("L"))


@pytest.mark.parametrize("zero_shot", [None, (0.1, 0.2)])
def test_the_picture_opens_and_shows_dark_and_bright_cells(zero_shot: tuple[float, ...] | None, tmp_path: Path) -> None:
    found = Matrix(("digits", "maps"), ("digits", "maps", "digits"), np.eye(2, 3), zero_shot)
    picture = drawn(found, tmp_path / "matrix.png")
    assert min(picture.shape) > 200
    assert picture.std() > 10


def test_a_score_that_was_not_taken_can_be_drawn(tmp_path: Path) -> None:
    found = Matrix(("digits", "maps"), ("digits", "maps"), np.array([[0.9, 0.7], [np.nan, 0.8]]), None)
    whole = Matrix(found.tasks, found.columns, np.nan_to_num(found.a_TC, nan=0.5), None)
    assert (drawn(found, tmp_path / "nan.png") != drawn(whole, tmp_path / "whole.png")).any()


def test_the_headline_leaves_out_what_one_finished_task_cannot_tell() -> None:
    assert headline({"last": 0.5, "avg": 0.25, "bwt": None}) == "Last [bold]50.0[/]   Avg [bold]25.0[/]"
