"""The reservoir keeps every sample with the same chance, whatever happens on the way; Algorithm R does not."""

from __future__ import annotations

import pytest

from streamcl.bench.memory_uniformity import algorithm_r_counts, chi_square, reservoir_counts


def test_every_sample_is_kept_with_the_same_chance() -> None:
    counts, differing = reservoir_counts(trials=200, items=120, kept=30, seed=0)
    assert differing == 0
    assert 0.001 <= chi_square(counts, trials=200, kept=30).p <= 0.999


def test_algorithm_r_with_repeats_fails_the_same_test() -> None:
    counts = algorithm_r_counts(trials=200, items=120, kept=30, seed=0)
    assert chi_square(counts, trials=200, kept=30).p < 1e-9


def test_algorithm_r_without_repeats_passes_it() -> None:
    counts = algorithm_r_counts(trials=200, items=120, kept=30, seed=0, repeated=0)
    assert 0.001 <= chi_square(counts, trials=200, kept=30).p <= 0.999


@pytest.mark.bench
def test_every_sample_is_kept_with_the_same_chance_over_3000_trials() -> None:
    counts, differing = reservoir_counts(trials=3000, items=400, kept=100, seed=1)
    assert differing == 0
    assert 0.001 <= chi_square(counts, trials=3000, kept=100).p <= 0.999
