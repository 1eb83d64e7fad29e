"""What is said of the base smol follows from the cells."""

from __future__ import annotations

import pytest

from streamcl.bench.continual_smol import LINES, claims_of


def test_the_claims_compare_lines_on_the_cells_that_they_share() -> None:
    lasts = {
        "joint": (0.9, 0.95), "finetune": (0.4, 0.5), "hifgo": (0.89, 0.92), "hifgo + replay": (0.8,), "olora": (0.65,)
    }  # fmt: skip
    cells = [{"order": "a", "seed": 0}, {"order": "b", "seed": 1}]
    results = [
        {"label": label, "cell": cell, "last": last}
        for label, many in lasts.items()
        for cell, last in zip(cells, many, strict=False)
    ]
    alone, replayed, gap = claims_of(results)
    assert (alone.holds, replayed.holds) == (False, False)
    assert alone.value == "97.8%: hifgo 90.5, joint 92.5; cells: 2"
    assert replayed.value == "88.9%: hifgo + replay 80.0, joint 90.0; cells: 1"
    assert gap.value == "hifgo 96% (2), hifgo + replay 80% (1), olora 50% (1)"
    better = [result | {"last": 0.93} if result["label"] == "hifgo" else result for result in results]
    assert claims_of(better)[0].holds


def test_penalties_that_are_sums_weigh_in_all_what_they_weigh_on_the_small_base() -> None:
    norms = {line.label: line.settings["norm"] for line in LINES if "norm" in line.settings}
    assert norms == pytest.approx({"hifgo": 0.03 * 32 / 424, "hifgo + replay": 0.003 * 32 / 424})
