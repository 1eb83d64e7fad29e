"""The bench of a large model on a GPU, with a model of two layers on whatever is here."""

from __future__ import annotations

import pytest
import torch

from streamcl.bench.gpu import OURS, SAME, USUAL, against, compared, lines_of, strategies
from streamcl.bench.gpu_model import TINY, random_base


@pytest.mark.slow
def test_both_sides_learn_the_same_from_the_same_batches() -> None:
    base = random_base(TINY, "cpu")
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    turns = compared(base, TINY)
    rows, (claim,) = against(turns, TINY, "tiny")
    assert [row["side"] for row in rows] == [OURS, SAME, USUAL]
    assert max(turn.loss for turn in turns) - min(turn.loss for turn in turns) < 0.05
    assert claim.holds == (rows[0]["samples_s"] >= rows[1]["samples_s"])
    more, claims = strategies(base, TINY, "tiny")
    assert len(more) == len(claims) == 5
    assert {len(line) for line in lines_of(rows + more)} == {5}
    after = base.model.state_dict()
    assert before.keys() == after.keys()  # no adapter is left behind
    assert all(torch.equal(value, after[name]) for name, value in before.items())
