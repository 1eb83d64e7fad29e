"""The forms of HiFGO whose stages lie elsewhere in a task of several windows."""

from __future__ import annotations

import torch

from streamcl.bench.continual_claims import _windows
from streamcl.bench.continual_windows import AtTheEnd, InEveryWindow
from streamcl.store.memory import TaskMemory
from streamcl.strategies import HiFGO, Params, Stage
from streamcl.strategies.stacked import OPEN

ADAPTER: Params = {"layer.lora_A": torch.ones(2, 3), "layer.lora_B": torch.ones(4, 2)}
KNOWN = TaskMemory({"adapter/0": ADAPTER})


def test_every_window_but_a_tasks_last_is_stage_one_and_serves_what_was_known() -> None:
    late = AtTheEnd()
    assert late.stages(KNOWN, closes_task=False) == (Stage(old_adapters=False),)
    assert late.stages(KNOWN, closes_task=True) == (Stage(),)
    new = {name: 2 * value for name, value in ADAPTER.items()}
    kept = late.served(new, KNOWN, closes_task=False)
    assert all(torch.equal(kept[name], value) for name, value in ADAPTER.items())
    assert len(late.served(new, KNOWN, closes_task=True)["layer.lora_A"]) == 4


def test_the_first_task_has_one_stage_and_is_served_at_once() -> None:
    late, fresh = AtTheEnd(), {name: 2 * value for name, value in ADAPTER.items()}
    assert late.stages(TaskMemory(), closes_task=False) == (Stage(),)
    assert late.served(fresh, TaskMemory(), closes_task=False) is fresh


def test_stages_of_a_second_window() -> None:
    going_on = KNOWN.with_group(OPEN, ADAPTER)
    both = (Stage(0.0, 0.5, old_adapters=False), Stage(0.5))
    assert HiFGO().stages(KNOWN, closes_task=True) == InEveryWindow().stages(KNOWN, closes_task=False) == both
    assert HiFGO().stages(KNOWN, closes_task=False) == (Stage(old_adapters=False), Stage(0.5))
    assert HiFGO().stages(going_on, closes_task=True) == (Stage(),)
    assert InEveryWindow().stages(going_on, closes_task=True) == both


def test_the_claim_counts_for_the_own_form() -> None:
    lasts = {"a task": 0.7, "stages in each": 0.6, "stages at a task's end": 0.71}
    results = [
        {"label": f"hifgo, 2 windows{' ' if what == 'a task' else ', '}{what}", "last": last + 0.01 * seed,
         "cell": {"order": "a", "seed": seed}}
        for what, last in lasts.items() for seed in (0, 1)
    ]  # fmt: skip
    (claim,) = _windows(results)
    assert claim.value.startswith("+10.0 ± 0.0 points over both stages in each window; -1.0 ± 0.0 points over stage 2")
    assert _windows(results[:4]) == []
