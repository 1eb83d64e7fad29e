"""Claims of the `adwin` detector; they need river."""

from __future__ import annotations

import json

import numpy as np
import pytest

from streamcl.detect import Adwin, Boundary, Detector, Observations
from streamcl.errors import ConfigError

pytest.importorskip("river")


def boundaries(detector: Detector, seen: Observations) -> list[Boundary]:
    found, row = [], 0
    while row < len(seen) and (b := detector.update(seen.from_row(row))) is not None:
        found.append(Boundary(row + b.at, row + b.starts, b.task))
        detector.begin(f"task-{len(found)}")
        row += b.at + 1
    return found


def observed(x_ND: np.ndarray, losses_N: np.ndarray | None = None) -> Observations:
    return Observations(x_ND.astype(np.float32), (None,) * len(x_ND), losses_N)


def moved(row: int, rows: int = 1500) -> np.ndarray:
    x_ND = np.random.default_rng(0).standard_normal((rows, 8))
    x_ND[row:] += 3
    return x_ND


def test_a_shift_is_found_and_placed_near():
    first, second = boundaries(Adwin().build(), observed(moved(700)))
    assert first == Boundary(0, 0, None)
    assert 700 < second.at < 800
    assert abs(second.starts - 700) <= 32


def test_nothing_is_found_where_nothing_changes():
    assert boundaries(Adwin().build(), observed(moved(1500))) == [Boundary(0, 0, None)]


def test_a_rising_loss_is_a_boundary_and_a_falling_one_is_not():
    x_ND, noise_N = np.zeros((1200, 1)), np.random.default_rng(0).random(1200) / 10
    step_N = (np.arange(1200) >= 600).astype(float)
    assert len(boundaries(Adwin(watch="loss").build(), observed(x_ND, noise_N + step_N))) == 2
    assert len(boundaries(Adwin(watch="loss").build(), observed(x_ND, noise_N - step_N))) == 1


def test_watching_losses_that_are_not_there_is_refused():
    with pytest.raises(ConfigError, match="without losses"):
        Adwin(watch="loss").build().update(observed(np.zeros((2, 1))))


@pytest.mark.parametrize("cut", [1, 40, 64, 300, 701, 760, 1400])
def test_a_restored_detector_decides_as_the_one_that_was_written_down(cut):
    seen = observed(moved(700))
    first, second = Adwin().build(), Adwin().build()
    head = boundaries(first, observed(moved(700)[:cut]))
    second.restore(json.loads(json.dumps(first.snapshot())))
    tail = [Boundary(b.at + cut, b.starts + cut, b.task) for b in boundaries(second, seen.from_row(cut))]
    assert head + tail == boundaries(Adwin().build(), seen)
