"""On a GPU every strategy does what it does on a CPU. Skipped where there is none."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from streamcl.bench.gpu_model import TINY, random_base, rows_of
from streamcl.store.memory import TaskMemory
from streamcl.strategies import DGG, EWC, FwdPrompt, HiFGO, OLoRA, Params, Replay, Strategy
from streamcl.train.loop import Learning
from streamcl.train.model import grow
from streamcl.train.settings import LoRA, Prompts, TrainConfig
from streamcl.types import Window

TASKS = ("digits", "counting")
STRATEGIES = [
    Strategy(), EWC(), OLoRA(), HiFGO(), HiFGO(dagger=True), HiFGO(space="weights"), DGG(alpha=0.5, replay_rows=8),
    Replay(replay_rows=8), FwdPrompt(), FwdPrompt(projection="exempt"),
]  # fmt: skip


def trained(strategy: Strategy, device: str) -> tuple[Params, TaskMemory, list[float]]:
    """What is served after two tasks of two windows, what is remembered, and the loss of each window."""
    base = random_base(TINY, "cpu")  # the same weights for any device
    base.model.float().to(device)
    rows = {task: rows_of(base, 32, task=task) for task in TASKS}
    model = grow(base, Prompts() if strategy.adapter == "prompts" else LoRA(r=4, alpha=8), seed=0)
    config = TrainConfig(epochs=1, batch_size=8, lr=1e-3, probe_rows=16)
    learning = Learning(model, pad_id=base.processor.tokenizer.pad_token_id, config=config)
    memory, served, losses = TaskMemory(), None, []
    for number, (task, half) in enumerate(itertools.product(TASKS, (0, 1))):
        window = Window(number, task, (), (), seed=number, base=0, index=number // 2, closes_task=half == 1)
        replay = rows[TASKS[0]][: strategy.replay_rows] if task != TASKS[0] else []
        learning.start(served, strategy=strategy, memory=memory, seed=number // 2)
        part = rows[task][16 * half : 16 * (half + 1)]
        done = learning.train(window, part, replay, strategy=strategy, memory=memory)
        memory, served = done.memory, done.served
        losses.append(done.loss)
    return served, memory, losses


def apart(one: Any, other: Any) -> float:
    """Relative distance of two sets of tensors."""
    assert one.keys() == other.keys()
    whole = [torch.cat([part[name].detach().cpu().double().flatten() for name in one]) for part in (one, other)]
    return float((whole[0] - whole[1]).norm() / whole[0].norm())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_a_gpu_trains_as_a_cpu_does(strategy: Strategy) -> None:
    (ours, kept, losses), (theirs, known, seen) = trained(strategy, "cpu"), trained(strategy, "cuda")
    assert apart(ours, theirs) < 0.05
    assert losses == pytest.approx(seen, rel=1e-3)
    assert kept.tensors.keys() == known.tensors.keys()
    assert all(tensor.device.type == "cpu" for group in known.tensors.values() for tensor in group.values())


def test_another_seed_is_far_away() -> None:
    """What `apart` would say if the devices did not train alike."""
    fresh = [grow(random_base(TINY, "cpu"), LoRA(r=4, alpha=8), seed=seed) for seed in (0, 1)]
    one, other = ({n: p for n, p in model.named_parameters() if "lora_A" in n} for model in fresh)
    assert apart(one, other) > 0.5
