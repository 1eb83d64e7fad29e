"""On a GPU every strategy does what it does on a CPU. Skipped where there is none."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from streamcl import zoo
from streamcl.store.memory import TaskMemory
from streamcl.strategies import DGG, EWC, FwdPrompt, HiFGO, OLoRA, Params, Replay, Strategy
from streamcl.train.batch import Encoder, Row, to_rows
from streamcl.train.evaluate import marks
from streamcl.train.loop import Learning
from streamcl.train.model import grow, load_base
from streamcl.train.settings import LoRA, ModelConfig, Prompts, TrainConfig
from streamcl.types import Window

CONFIG = ModelConfig(zoo.resolve("zoo:small"), register="streamcl.zoo.tower")
TASKS = ("digits", "counting")
STRATEGIES = [
    Strategy(), EWC(), OLoRA(), HiFGO(), HiFGO(dagger=True), HiFGO(space="weights"), DGG(alpha=0.5, replay_rows=8),
    Replay(replay_rows=8), FwdPrompt(), FwdPrompt(projection="exempt"),
]  # fmt: skip


def trained(strategy: Strategy, device: str) -> tuple[Params, TaskMemory, list[bool]]:
    """What is served after two tasks, what is remembered, and which test rows it answers."""
    base = load_base(CONFIG, device=device)
    encoder = Encoder(base)
    rows = {task: rows_of(encoder, task) for task in TASKS}
    model = grow(base, Prompts() if strategy.adapter == "prompts" else LoRA(r=4, alpha=8), seed=0)
    config = TrainConfig(epochs=1, batch_size=8, lr=1e-3, probe_rows=16)
    learning = Learning(model, pad_id=base.processor.tokenizer.pad_token_id, config=config)
    memory, served = TaskMemory(), None
    for number, task in enumerate(TASKS):
        window = Window(number, task, (), (), seed=number, base=0, index=number, closes_task=True)
        replay = rows[TASKS[0]][: strategy.replay_rows] if number else []
        learning.start(served, strategy=strategy, memory=memory, seed=number)
        done = learning.train(window, rows[task], replay, strategy=strategy, memory=memory)
        memory, served = done.memory, done.served
    with learning.serving(served):
        hits = marks(learning.model, rows, pad_id=learning.pad_id)
    return served, memory, [*itertools.chain.from_iterable(hit.tolist() for hit in hits.values())]


def rows_of(encoder: Encoder, task: str) -> list[Row]:
    return to_rows(encoder.encode(zoo.load_task(task, "train").slice(0, 32).combine_chunks().to_batches()[0]).batch)


def apart(one: Any, other: Any) -> float:
    """Relative distance of two sets of tensors."""
    assert one.keys() == other.keys()
    whole = [torch.cat([part[name].detach().cpu().double().flatten() for name in one]) for part in (one, other)]
    return float((whole[0] - whole[1]).norm() / whole[0].norm())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_a_gpu_trains_as_a_cpu_does(strategy: Strategy) -> None:
    (ours, kept, right), (theirs, known, hits) = trained(strategy, "cpu"), trained(strategy, "cuda")
    assert apart(ours, theirs) < 0.05
    assert kept.tensors.keys() == known.tensors.keys()
    assert sum(a == b for a, b in zip(right, hits, strict=True)) >= 0.95 * len(right)
