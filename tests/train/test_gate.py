"""The gate: what it lets pass, what it holds, and what it says when the rows are too few to tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from streamcl.errors import ConfigError
from streamcl.train.evidence import _squared
from streamcl.train.gate import Evidence, GateConfig, Pairs, Verdict, judge

GATE = GateConfig()
GOOD = Pairs(kept=50, lost=1, won=2, missed=7)
"""An old task that stays as it is."""
LEARNED = Pairs(kept=2, lost=0, won=40, missed=18)
"""A new task that was learned."""
CALM = Evidence({"old": GOOD, "new": LEARNED}, size=0.2, moved=0.1, steps=30)


def verdict(evidence: Evidence, *, known: bool = False, **gate: object) -> Verdict:
    return judge(evidence, replace(GATE, **gate), task="new", known=known)


def test_a_candidate_that_gains_and_forgets_nothing_passes() -> None:
    assert verdict(CALM) == Verdict(True, "95% sure of old, new")


@pytest.mark.parametrize(
    ("evidence", "why"),
    [
        (replace(CALM, pairs={"old": Pairs(10, 41, 2, 7), "new": LEARNED}), "old -65.0% of 60 rows: a fall"),
        (replace(CALM, pairs={"old": GOOD, "new": Pairs(2, 2, 1, 55)}), "new -1.7% of 60 rows: no gain"),
        (replace(CALM, size=float("nan")), "NaN"),
        (replace(CALM, moved=float("inf")), "infinity"),
        (replace(CALM, base="a" * 64, wanted="b" * 64), "trained on base aaaaaaaaaaaa, but bbbbbbbbbbbb"),
        (replace(CALM, size=0.0), "the bare base would answer"),
        (replace(CALM, moved=0.0), "30 steps changed nothing"),
        (replace(CALM, size=50.0), "50.0 times as large"),
    ],
)
def test_a_bad_candidate_is_held_with_its_reason(evidence: Evidence, why: str) -> None:
    for unsure in ("promote", "hold"):
        found = verdict(evidence, unsure=unsure)
        assert not found.passed
        assert why in found.why
    assert verdict(evidence, enabled=False).passed  # the positive control: without the gate each goes live


def test_a_task_that_goes_on_needs_no_gain_but_may_not_fall() -> None:
    level, fallen = Pairs(55, 1, 1, 3), Pairs(20, 36, 1, 3)
    assert not verdict(Evidence({"new": level})).passed
    assert verdict(Evidence({"new": level}), known=True).passed
    assert not verdict(Evidence({"new": fallen}), known=True).passed


def test_few_rows_are_never_sure_and_the_setting_decides() -> None:
    few = Evidence({"old": Pairs(kept=4), "new": Pairs(won=1, missed=2)})
    for unsure, passes in (("promote", True), ("hold", False)):
        found = verdict(few, unsure=unsure)
        assert found.passed is passes
        assert found.why.startswith("too few rows to be sure: old +0.0% of 4 rows")


def test_no_heldout_row_is_no_clearance() -> None:
    assert verdict(Evidence()) == Verdict(True, "too few rows to be sure: new has no held-out row")
    assert not verdict(Evidence(), unsure="hold").passed


def test_a_window_without_a_step_has_nothing_to_change() -> None:
    assert verdict(replace(CALM, steps=0, moved=0.0)).passed


@pytest.mark.parametrize("rows", [40, 200])
def test_the_probability_is_that_of_the_posterior(rows: int) -> None:
    """Against the same posterior, drawn share by share from Beta distributions."""
    pairs, dice = Pairs(kept=rows), np.random.default_rng(1)
    lost_D = dice.beta(0.5, rows + 1.5, 200_000)
    rest_D = dice.beta(0.5, rows + 1.0, 200_000) * (1 - lost_D)
    assert pairs.below(-0.01) == pytest.approx(float((rest_D - lost_D < -0.01).mean()), abs=0.01)
    assert pairs.below(0.0) == pytest.approx(0.5, abs=0.01)


def test_a_finding_is_as_sure_as_it_says() -> None:
    """A candidate exactly at the tolerance is held in about 5 % of draws at 95 %, not in half of them."""
    dice = np.random.default_rng(3)
    held = dict.fromkeys((0.0, GATE.tolerance, 0.25), 0)
    for loss in held:
        shares = (0.8 - loss, loss + 0.02, 0.02, 0.16)
        for counts in dice.multinomial(100, shares, 300):
            held[loss] += not verdict(Evidence({"old": Pairs(*map(int, counts)), "new": LEARNED})).passed
    assert held[0.0] <= 1
    assert 3 <= held[GATE.tolerance] <= 30
    assert held[0.25] >= 295


def test_pairs_are_counted_row_by_row() -> None:
    before = np.array([True, True, False, False, True])
    after = np.array([True, False, True, False, False])
    assert Pairs.of(before, after) == Pairs(kept=1, lost=2, won=1, missed=1)
    assert Pairs.of(before, after).change == pytest.approx(-0.2)


def test_the_norm_of_an_update_needs_no_product_of_its_factors() -> None:
    draw = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(r, 30, generator=draw, dtype=torch.float64), torch.randn(20, r, generator=draw).double())
        for r in (4, 9)
    ]
    whole = sum(b @ a for a, b in pairs)
    assert _squared(pairs) == pytest.approx(float(whole.square().sum()), rel=1e-12)


@pytest.mark.parametrize("wrong", [{"tolerance": 1.0}, {"confidence": 0.5}, {"gain": -0.1}, {"largest": 0.0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="gate"):
        GateConfig(**wrong)
