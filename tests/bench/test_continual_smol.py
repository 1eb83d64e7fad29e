"""What is said of the base smol follows from the cells."""

from __future__ import annotations

import pytest

from streamcl.bench.continual_smol import LINES, claims_of


def test_the_claims_are_ratios_of_the_means_and_shares_of_the_gap() -> None:
    lasts = {"joint": 0.9, "finetune": 0.4, "hifgo": 0.89, "hifgo + replay": 0.8, "olora": 0.65}
    rows = [{"label": label, "cells": 1, "last": (last, 0.0)} for label, last in lasts.items()]
    alone, replayed, gap = claims_of(rows)
    assert (alone.holds, replayed.holds) == (True, False)
    assert alone.value == "98.9%: hifgo 89.0, joint 90.0; cells: 1"
    assert replayed.value.startswith("88.9%: hifgo + replay 80.0")
    assert gap.value == "hifgo 98%, hifgo + replay 80%, olora 50%; finetune 40.0"


def test_penalties_that_are_sums_weigh_in_all_what_they_weigh_on_the_small_base() -> None:
    norms = {line.label: line.settings["norm"] for line in LINES if "norm" in line.settings}
    assert norms == pytest.approx({"hifgo": 0.03 * 32 / 424, "hifgo + replay": 0.003 * 32 / 424})
