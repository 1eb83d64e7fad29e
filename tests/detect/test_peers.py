"""The bench's own form of a peer decides as the peer does."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("river")
pytest.importorskip("scipy")

from river.drift import KSWIN

from streamcl.bench.boundaries_peers import kswin, river


@pytest.mark.parametrize("alpha", [0.01, 0.001])
@pytest.mark.parametrize("seed", range(4))
def test_kswin_alarms_where_rivers_does(seed, alpha):
    scalar_N = np.random.default_rng(seed).standard_normal(900)
    scalar_N[600:] += seed % 2  # two streams change
    if seed > 1:
        scalar_N = scalar_N.round(1)  # equal values
    assert kswin(scalar_N, alpha) == river(lambda a: KSWIN(alpha=a, seed=0), scalar_N, alpha)
