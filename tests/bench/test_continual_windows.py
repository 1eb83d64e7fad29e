"""The form of HiFGO that passes through its stages once a task."""

from __future__ import annotations

import torch

from streamcl.bench.continual_windows import AtTheEnd
from streamcl.store.memory import TaskMemory
from streamcl.strategies import HiFGO, Params, Stage

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


def test_hifgo_itself_has_both_stages_in_every_window() -> None:
    assert [len(HiFGO().stages(KNOWN, closes_task=closes)) for closes in (False, True)] == [2, 2]
