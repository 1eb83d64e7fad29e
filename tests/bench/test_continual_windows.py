"""The forms of HiFGO whose stages lie elsewhere in a task of several windows."""

from __future__ import annotations

import torch

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
