"""What a strategy adds to a training step: paired steps on the same batch, in random order, on the shipped base.

python -m streamcl.bench.continual_steps
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from streamcl import zoo
from streamcl.bench.continual_cell import TRAIN
from streamcl.bench.report import Claim, as_json
from streamcl.store.memory import TaskMemory
from streamcl.strategies import DGG, FwdPrompt, HiFGO, Params, Stage, Strategy
from streamcl.strategies.fwd_prompt import OLD
from streamcl.train.batch import Encoder, Row, to_rows
from streamcl.train.loop import Learning
from streamcl.train.model import added, fresh, grow, load_base
from streamcl.train.probe import WindowProbe
from streamcl.train.settings import LoRA, ModelConfig, Prompts, TrainConfig
from streamcl.train.step import train_step

COMMAND = "python -m streamcl.bench.continual_steps"
TASKS = 8
"""Finished tasks in memory."""


@dataclass(frozen=True)
class Case:
    """A strategy whose steps are compared with plain ones of the same adapter."""

    label: str
    strategy: Strategy
    bar: float
    """Largest ratio of step times."""

    @property
    def form(self) -> LoRA | Prompts:
        return Prompts() if self.strategy.adapter == "prompts" else LoRA(r=16, alpha=32)


CASES = (
    Case("dgg", DGG(), 1.02),
    Case("dgg, every step guided", DGG(alpha=1.0), 1.02),
    Case("hifgo, stage 2", HiFGO(), 1.05),
    Case("hifgo, dagger, stage 2", HiFGO(dagger=True), 1.05),
    Case("fwd_prompt", FwdPrompt(), 1.05),
)


def learning_of(form: LoRA | Prompts, *, rows: int) -> tuple[Learning, list[Row]]:
    """The shipped base under an untrained adapter, and some samples."""
    base = load_base(ModelConfig(zoo.resolve("zoo:small"), register="streamcl.zoo.tower"))
    base.model.set_attn_implementation({"text_config": "eager"})
    samples = zoo.load_task("animals", "train").slice(0, rows).combine_chunks().to_batches()[0]
    encoded = to_rows(Encoder(base).encode(samples).batch)
    pad_id = base.processor.tokenizer.pad_token_id
    return Learning(grow(base, form, seed=0), pad_id=pad_id, config=TrainConfig(**TRAIN)), encoded


def remembered(strategy: Strategy, params: Params) -> TaskMemory:
    """A memory of TASKS tasks that has what `strategy` looks for."""
    draw = torch.Generator().manual_seed(0)
    count = TASKS if isinstance(strategy, HiFGO) else 1
    old = [{n: 0.02 * torch.randn(p.shape, generator=draw) for n, p in params.items()} for _ in range(count)]
    if isinstance(strategy, HiFGO):
        return TaskMemory({f"adapter/{number}": adapter for number, adapter in enumerate(old)})
    if isinstance(strategy, FwdPrompt):
        widths = {name: value.shape[-1] for name, value in params.items()}
        return TaskMemory(
            {OLD: {n: torch.linalg.qr(torch.randn(d, d // 2, generator=draw)).Q for n, d in widths.items()}}
        )
    return TaskMemory({"anchor": old[0]})


def stepper(strategy: Strategy, plan: Any, learning: Learning) -> Callable[[Sequence[Row], int], None]:
    """One training step on a batch, with an optimizer of its own; the number seeds the strategy's draws."""
    optimizer = torch.optim.AdamW(learning.params.values(), lr=learning.config.lr)

    def step(batch: Sequence[Row], number: int) -> None:
        train_step(lambda: learning.mean_loss(batch), learning.params, optimizer, strategy=strategy, plan=plan,
                   draw=torch.Generator().manual_seed(number), clip=1.0)  # fmt: skip

    return step


def plan_of(strategy: Strategy, learning: Learning, rows: Sequence[Row], memory: TaskMemory) -> Any:
    """What a stage on these rows goes by."""
    probe = WindowProbe(learning.model, learning.params, rows, [], pad_id=learning.pad_id,
                        size=learning.config.batch_size, bfloat16=learning.config.precision == "bfloat16")  # fmt: skip
    return strategy.prepare(Stage(), dict(learning.params), memory, probe)


def ratios(
    strategy: Strategy, plan: Any, learning: Learning, rows: Sequence[Row], memory: TaskMemory, *, pairs: int,
    seed: int, clock: Callable[[], float] = time.process_time,
) -> list[tuple[float, float]]:  # fmt: skip
    """Seconds of a plain step and of one with the strategy, for each pair; one more pair warms up."""
    size, dice = learning.config.batch_size, random.Random(seed)
    sides = [stepper(Strategy(), None, learning), stepper(strategy, plan, learning)]
    seconds: list[tuple[float, float]] = []
    with added(learning.model, strategy.frozen(memory)):
        for number in range(pairs + 1):
            batch, took = dice.sample(list(rows), size), [0.0, 0.0]
            for side in dice.sample([0, 1], 2):
                began = clock()
                sides[side](batch, number)
                took[side] = clock() - began
            seconds.append((took[0], took[1]))
    return seconds[1:]


def median(values: Sequence[float]) -> tuple[float, float, float]:
    """The median and its 95 % interval, from order statistics."""
    ranked, n = sorted(values), len(values)
    half = 0.98 * n**0.5
    return statistics.median(ranked), ranked[max(0, int(n / 2 - half))], ranked[min(n - 1, int(n / 2 + half))]


def measure(*, pairs: int = 60, seed: int = 0) -> tuple[list[dict[str, Any]], list[Claim]]:
    """Rows and claims of all cases."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows, claims = [], []
    for form in dict.fromkeys(case.form for case in CASES):
        learning, samples = learning_of(form, rows=64)
        untrained = fresh(learning.params, seed=0)
        for case in (case for case in CASES if case.form == form):
            learning.start(untrained, strategy=Strategy(), memory=TaskMemory(), seed=0)
            memory = remembered(case.strategy, dict(learning.params))
            plan = plan_of(case.strategy, learning, samples[: learning.config.batch_size], memory)
            found = ratios(case.strategy, plan, learning, samples, memory, pairs=pairs, seed=seed)
            row, claim = told(case, found, COMMAND)
            rows.append({**row, "seed": seed})
            claims.append(claim)
    torch.set_num_threads(threads)
    return rows, claims


def told(
    case: Case, seconds: Sequence[tuple[float, float]], command: str, where: str = ""
) -> tuple[dict[str, Any], Claim]:
    """What the pairs of a case say."""
    middle, low, high = median([ours / plain for plain, ours in seconds])
    row = {"step": case.label, "ratio": middle, "low": low, "high": high, "pairs": len(seconds), "tasks": TASKS,
           "plain_ms": 1e3 * statistics.median(plain for plain, _ in seconds)}  # fmt: skip
    against = "plain prompt tuning" if case.strategy.adapter == "prompts" else "plain LoRA"
    what = f"step time of {case.label}, {TASKS} old tasks, against {against}{where}; median of {len(seconds)} pairs"
    return row, Claim(
        "2.4", what, f"<= {case.bar}", f"{middle:.3f} [{low:.3f}, {high:.3f}]", middle <= case.bar, command
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--pairs", type=int, default=60)
    rows, claims = measure(pairs=parser.parse_args().pairs)
    print(as_json(rows, claims))


if __name__ == "__main__":
    main()
