"""A model of LLaVA-1.5-7B's size on a GPU: training beside PEFT under transformers' Trainer, and what strategies add.

    python -m streamcl.bench.gpu            # a GPU of 80 GB, about five minutes
    python -m streamcl.bench.gpu --tiny     # the same with a few narrow layers, anywhere; nothing is written

The weights are random, for neither seconds nor bytes depend on their values. Base in bfloat16, adapters in float32
under autocast, LoRA of the paper's rank 48 on the language model and the projector, pictures of 336 px (576 tokens
each), no activation is computed twice. Both sides train the same frozen weights on the same batches, in turns: ours, as
always, on features that the frozen tower made at ingest; Trainer on the same features, and on the pixels, as is usual.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
from rich.console import Console
from rich.progress import track
from transformers import Trainer, TrainerCallback, TrainingArguments

from streamcl.bench.continual_steps import CASES, plan_of, ratios, remembered, stepper, told
from streamcl.bench.gpu_model import SEVEN, TINY, Size, gpu_name, random_base, rows_of
from streamcl.bench.report import WITHOUT_RAY, Claim, about, as_json, save
from streamcl.store.memory import TaskMemory
from streamcl.strategies import Strategy
from streamcl.train.batch import IGNORED, Row, collate
from streamcl.train.feed import batches
from streamcl.train.loop import Learning
from streamcl.train.model import Base, added, grow, peft_config
from streamcl.train.prompts import detach
from streamcl.train.settings import LoRA, Prompts, TrainConfig
from streamcl.types import Window

COMMAND = "python -m streamcl.bench.gpu"
LORA = LoRA(r=48, alpha=96)
ROUNDS, WARM = 2, 4
"""Turns of each side, and steps of a turn that are not counted."""
OURS, SAME, USUAL = "streamcl", "Trainer, the same features", "Trainer, pixels"


@dataclass(frozen=True)
class Turn:
    """A side's turn at training."""

    side: str
    seconds: tuple[float, ...]
    """Of each step, from the end of the one before it; data included."""
    peak: int
    """Most bytes that torch held on the device, the frozen weights included."""
    loss: float
    """Mean of all steps."""


# -- two sides ---------------------------------------------------------------------------------------------------------


def ours(base: Base, rows: Sequence[Row], size: Size) -> Turn:
    """Fine-tuning by our loop."""
    clock = Clock(base.device)
    learning = learning_of(base, LORA, size)
    strategy, losses = Strategy(), list[float]()
    learning.start(None, strategy=strategy, memory=TaskMemory(), seed=0)

    def on_step(step: int, steps: int, log: Any) -> None:
        clock.tick()
        losses.append(log.loss)

    window = Window(0, "animals", (), (), seed=0, base=0, index=0, closes_task=True)
    learning.train(window, rows, [], strategy=strategy, memory=TaskMemory(), on_step=on_step)
    learning.model.unload()
    return clock.turn(OURS, statistics.fmean(losses))


def learning_of(base: Base, form: LoRA | Prompts, size: Size) -> Learning:
    config = TrainConfig(epochs=2, batch_size=size.batch, lr=1e-4, precision="bfloat16", probe_rows=2 * size.batch)
    return Learning(grow(base, form, seed=0), pad_id=base.processor.tokenizer.pad_token_id, config=config)


class Ticking(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Tells a clock of each step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.tick()


def trainers(base: Base, rows: Sequence[Row], size: Size, *, side: str) -> Turn:
    """Fine-tuning by PEFT under transformers' Trainer, with its defaults but for rate, batch and precision."""
    clock, pad_id = Clock(base.device), base.processor.tokenizer.pad_token_id
    model = peft.get_peft_model(base.model, peft_config(LORA))

    def collated(batch: Sequence[Row]) -> dict[str, torch.Tensor]:
        made = collate(batch, pad_id=pad_id)
        width = made["input_ids"].shape[1] - made["labels"].shape[1]
        return {**made, "labels": torch.nn.functional.pad(made["labels"], (width, 0), value=IGNORED)}

    with tempfile.TemporaryDirectory(prefix="scl-") as folder:
        settings = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=size.batch, num_train_epochs=1, learning_rate=1e-4,
            bf16=True, train_sampling_strategy="sequential", remove_unused_columns=False, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=base.device.type == "cpu",
        )  # fmt: skip
        trainer = Trainer(model, settings, data_collator=collated, train_dataset=rows, callbacks=[Ticking(clock)])
        loss = trainer.train().training_loss
    model.unload()
    return clock.turn(side, loss)


class Clock:
    """Seconds between the ends of steps, and the device's peak of memory. Mutable."""

    def __init__(self, device: torch.device) -> None:
        self.cuda, self.ticks = device.type == "cuda", list[float]()
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def now(self) -> float:
        """Seconds, once the device has nothing left to do."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def tick(self) -> None:
        self.ticks.append(self.now())

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.cuda else 0

    def turn(self, side: str, loss: float) -> Turn:
        seconds = [b - a for a, b in zip(self.ticks, self.ticks[1:], strict=False)]
        return Turn(side, tuple(seconds[WARM - 1 :]), self.peak, loss)


def passed(rows: Sequence[Row], size: Size) -> list[Row]:
    """The rows of our two epochs, in our loop's order."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return [row for batch in batches([rows[i] for i in order], size.batch, epochs=2, seed=0) for row in batch]


def compared(base: Base, size: Size) -> list[Turn]:
    """Both sides' turns."""
    features, pixels = (rows_of(base, size.rows, features=flag) for flag in (True, False))
    turns: list[Turn] = []
    for _ in track(range(ROUNDS), "turns"):
        turns += [
            ours(base, features, size),
            trainers(base, passed(features, size), size, side=SAME),
            trainers(base, passed(pixels, size), size, side=USUAL),
        ]
        Console(stderr=True).print(lines_of(against(turns, size, "")[0]))
    return turns


def against(turns: Sequence[Turn], size: Size, where: str) -> tuple[list[dict[str, Any]], list[Claim]]:
    """What the turns say."""
    rows: list[dict[str, Any]] = []
    for side in (OURS, SAME, USUAL):
        seconds = [s for turn in turns if turn.side == side for s in turn.seconds]
        rows.append({"part": "turns", "side": side, "samples_s": size.batch / statistics.median(seconds),
                     "steps": len(seconds), "peak_gb": max(t.peak for t in turns if t.side == side) / 1e9,
                     "loss": [t.loss for t in turns if t.side == side]})  # fmt: skip
    speed = {row["side"]: row["samples_s"] for row in rows}
    figures = ", ".join(f"{row['side']} {row['samples_s']:.1f}, {row['peak_gb']:.1f} GB" for row in rows)
    ratio = speed[OURS] / speed[SAME]
    value = f"{ratio:.2f} × ({speed[OURS] / speed[USUAL]:.2f} × on pixels); samples/s and peak memory: {figures}"
    what = f"finetune beside PEFT under transformers' Trainer, {where}, the same batches of {size.batch}"
    return rows, [Claim("8.5", what, ">= 1.0 ×", value, ratio >= 1.0, COMMAND)]


# -- strategies --------------------------------------------------------------------------------------------------------


def strategies(base: Base, size: Size, where: str) -> tuple[list[dict[str, Any]], list[Claim]]:
    """What each strategy adds to a step and to memory."""
    samples, rows, claims = rows_of(base, size.rows), list[dict[str, Any]](), list[Claim]()
    for adapter, form in (("lora", LORA), ("prompts", Prompts())):
        learning = learning_of(base, form, size)
        _, _, plain_peak = alone(Strategy(), TaskMemory(), learning, samples)
        for case in track([case for case in CASES if case.strategy.adapter == adapter], "strategies"):
            memory = remembered(case.strategy, dict(learning.params))
            plan, prepared, peak = alone(case.strategy, memory, learning, samples)
            clock = Clock(base.device).now
            pairs = ratios(case.strategy, plan, learning, samples, memory, pairs=size.pairs, seed=0, clock=clock)
            row, claim = told(case, pairs, COMMAND, f", {where}")
            speed = 1e3 * size.batch / (row["plain_ms"] * row["ratio"])
            rows.append({"part": "strategies", **row, "samples_s": speed, "prepare_s": prepared, "peak_gb": peak / 1e9,
                         "plain_peak_gb": plain_peak / 1e9})  # fmt: skip
            claims.append(claim)
            Console(stderr=True).print(lines_of(rows)[-1])
        if adapter == "lora":
            learning.model.unload()
        else:
            detach(base.model)
    return rows, claims


def alone(strategy: Strategy, memory: TaskMemory, learning: Learning, rows: Sequence[Row]) -> tuple[Any, float, int]:
    """The strategy's plan, the seconds that it took, once a task, and the peak of memory until two steps are over."""
    clock, config = Clock(learning.device), learning.config
    began = clock.now()
    plan = plan_of(strategy, learning, rows[: config.probe_rows], memory)
    prepared, step = clock.now() - began, stepper(strategy, plan, learning)
    with added(learning.model, strategy.frozen(memory)):
        for number in range(2):
            step(rows[: config.batch_size], number)
    return plan, prepared, clock.peak


def lines_of(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table of the README."""
    lines = [["", "samples/s", "peak GB", "step, of a plain one", "once a task, s"]]
    for row in rows:
        known = f"{row['samples_s']:.1f}", f"{row['peak_gb']:.1f}"
        if row["part"] == "turns":
            lines.append([f"finetune, {row['side']}", *known, "", ""])
        else:
            ratio = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            lines.append([row["step"], *known, ratio, f"{row['prepare_s']:.1f}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a model of a few layers; nothing is written")
    arguments = parser.parse_args()
    size, device = TINY if arguments.tiny else SEVEN, "cuda" if torch.cuda.is_available() else "cpu"
    base = random_base(size, device)
    where = f"{sum(p.numel() for p in base.model.parameters()) / 1e9:.1f} B parameters in bfloat16"
    rows, claims = against(compared(base, size), size, where)
    more, theirs = strategies(base, size, where)
    rows, claims = rows + more, claims + theirs
    print(as_json(rows, claims))
    if not arguments.tiny:
        known = about(seeds=[0], packages=WITHOUT_RAY, gpu=gpu_name())
        save("gpu", known, rows=rows, claims=claims, table=lines_of(rows))


if __name__ == "__main__":
    main()
