"""Whether a projection holds what it promises: the share of a task's whole update that lies where it must not.

python -m streamcl.bench.continual_leak
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import torch

from streamcl import zoo
from streamcl.bench.continual_cell import PROMPTS, TRAIN
from streamcl.bench.report import Claim, as_json
from streamcl.store.memory import TaskMemory
from streamcl.strategies import KINDS, FwdPrompt, Params, Strategy
from streamcl.train.batch import Encoder, Row, to_rows
from streamcl.train.loop import Learning
from streamcl.train.model import grow, load_base
from streamcl.train.settings import ModelConfig, TrainConfig
from streamcl.types import Window

COMMAND = "python -m streamcl.bench.continual_leak"
TASKS = ("digits", "maps", "animals")
ROWS = 64
"""Samples of a task."""


@dataclass(frozen=True)
class ByGradient(FwdPrompt):
    """The control: the gradient is projected, as is usual, and AdamW does the rest."""

    projects: ClassVar[bool] = False

    def guide(self, grads: Params, params: Params, plan: Any, draw: torch.Generator) -> Params:
        return {**grads, **self.project(grads, plan)}


def projecting() -> dict[str, Strategy]:
    """The kinds that project, at their defaults."""
    return {name: kind() for name, kind in KINDS.items() if kind.projects}


def leaks(strategy: Strategy, learning: Learning, tasks: list[list[Row]], *, seed: int) -> list[float]:
    """Of each task after the first, the leak of its whole update."""
    memory, served, found = TaskMemory(), None, []
    for number, rows in enumerate(tasks):
        window = Window(number, TASKS[number], (), (), seed=seed + number, base=0, index=number, closes_task=True)
        learning.start(served, strategy=strategy, memory=memory, seed=seed)
        trained = learning.train(window, rows, [], strategy=strategy, memory=memory)
        memory, served = trained.memory, trained.served
        found.append(trained.leak)
    return found[1:]


def measure(*, seed: int = 0) -> tuple[list[dict[str, Any]], list[Claim]]:
    """Rows and claims; AdamW with weight decay."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = ModelConfig(zoo.resolve("zoo:small"), register="streamcl.zoo.tower")
    base = load_base(config)
    encoder = Encoder(base)
    table = pa.concat_tables([zoo.load_task(task, "train").slice(0, ROWS) for task in TASKS])
    rows = to_rows(encoder.encode(table.combine_chunks().to_batches()[0]).batch)
    tasks = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
    train = TrainConfig(**{**TRAIN, **PROMPTS, "epochs": 2, "weight_decay": 0.01})
    learning = Learning(
        grow(base, config.prompts, seed=seed), pad_id=base.processor.tokenizer.pad_token_id, config=train
    )
    found = {name: leaks(one, learning, tasks, seed=seed) for name, one in projecting().items()}
    control = leaks(ByGradient(), learning, tasks, seed=seed)
    torch.set_num_threads(threads)
    claims = [
        Claim("2.3", f"share of a task's whole update in the protected space, AdamW with weight decay, {name}; the "
              "same run with the gradient projected", "≤ 1e-5; ≥ 1e-2", f"{max(ours):.1e}; {min(control):.1e}",
              max(ours) <= 1e-5 and min(control) >= 1e-2, COMMAND)
        for name, ours in found.items()
    ]  # fmt: skip
    return [{"leak": name, "tasks": ours, "by_gradient": control, "seed": seed} for name, ours in found.items()], claims


def main() -> None:
    argparse.ArgumentParser(prog=COMMAND, description=__doc__).parse_args()
    print(as_json(*measure()))


if __name__ == "__main__":
    main()
