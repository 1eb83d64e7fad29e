"""Weak scaling on this machine: one and two training workers, one to four ingest partitions; and a model beyond it.

Training: two processes that talk through gloo, one thread and 16 samples a step each. Three modes take turns: the first
alone, both side by side without a word between them, both together. So what the processors and the memory share, and
what talking costs, are told apart. Ingest: the run's own actors on real Ray, an encoder a partition, rows in turn.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from rich.console import Console

from streamcl import zoo
from streamcl.bench import scale_model
from streamcl.bench.continual_steps import learning_of
from streamcl.bench.report import Claim
from streamcl.cluster.ingest import Ingesting
from streamcl.cluster.runtime import start_ray, stop_ray
from streamcl.sections import Config, RayConfig, StoreConfig
from streamcl.strategies import Strategy
from streamcl.stream import Files
from streamcl.train.batch import Row
from streamcl.train.loop import ALONE, Learning, World
from streamcl.train.settings import LoRA, ModelConfig, TrainConfig
from streamcl.train.step import train_step

BATCH, STEPS, ROUNDS = 16, 4, 12
"""Samples a worker and step; steps a turn; turns of each mode."""
REDUCTIONS = 50
MODES = ("alone", "side by side", "together")
PARTITIONS = (1, 2, 4)
EACH, PULL, TURNS = 96, 32, 3
"""Rows of a partition in a turn, rows of a pull, and turns."""


# -- training workers --------------------------------------------------------------------------------------------------


def trained(rank: int, meeting: str, answers: Any) -> None:
    """One worker's life; the first tells seconds a step by mode, seconds a reduction, and its bytes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    plain, rows = learning_of(LoRA(r=16, alpha=32), rows=64)
    config, dice = TrainConfig(batch_size=BATCH), random.Random(0)
    worlds = {"alone": ALONE, "side by side": ALONE, "together": World(rank, 2)}
    sides = {mode: Learning(plain.model, pad_id=plain.pad_id, config=config, world=world)
             for mode, world in worlds.items()}  # fmt: skip
    optimizer = torch.optim.AdamW(plain.params.values(), lr=1e-4)
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number in range(ROUNDS + 1):
        for mode, learning in sides.items():
            batch = dice.sample(rows, 2 * BATCH)
            mine = batch if mode == "together" else batch[rank::2]
            spent = stepped(learning, optimizer, mine, STEPS if rank == 0 or mode != "alone" else 0)
            if number:  # the first turn warms up
                seconds[mode].append(spent)
    reduction, nbytes = reduced(sides["together"])
    if rank == 0:
        answers.put({"seconds": seconds, "reduction_s": reduction, "bytes": nbytes})
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def stepped(learning: Learning, optimizer: torch.optim.Optimizer, batch: list[Row], steps: int) -> float:
    """Seconds a step, begun by all workers at once."""
    torch.distributed.barrier()
    began = time.monotonic()
    for _ in range(steps):
        train_step(
            lambda: learning.mean_loss(batch), learning.params, optimizer, strategy=Strategy(), plan=None,
            draw=torch.Generator(), clip=1.0, average=learning.average,
        )  # fmt: skip
    return (time.monotonic() - began) / STEPS


def reduced(learning: Learning) -> tuple[float, int]:
    """Seconds of a reduction of the gradients while nothing else is done, and their bytes."""
    grads = {name: torch.zeros_like(value) for name, value in learning.params.items()}
    torch.distributed.barrier()
    began = time.monotonic()
    for _ in range(REDUCTIONS):
        learning.average(grads)
    return (time.monotonic() - began) / REDUCTIONS, sum(grad.nbytes for grad in grads.values())


def workers() -> dict[str, Any]:
    """Both workers' run: medians by mode, and the efficiency of two."""
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    with tempfile.TemporaryDirectory(prefix="scl-") as folder:
        ranks = [context.Process(target=trained, args=(rank, f"{folder}/meet", answers)) for rank in range(2)]
        for process in ranks:
            process.start()
        found = answers.get(timeout=300)
        for process in ranks:
            process.join(60)
    paired = [alone / both for alone, both in zip(found["seconds"]["alone"], found["seconds"]["together"], strict=True)]
    step = {mode: statistics.median(values) for mode, values in found["seconds"].items()}
    return {"part": "weak", "what": "workers", "batch": BATCH, "turns": ROUNDS, "step_s": step,
            "slowest_s": max(found["seconds"]["side by side"]), "efficiency": statistics.median(paired),
            "reduction_s": found["reduction_s"],
            "bytes": found["bytes"]}  # fmt: skip


# -- ingest partitions -------------------------------------------------------------------------------------------------


def ingest() -> list[dict[str, Any]]:
    """Rows a second through 1, 2 and 4 partitions with as many encoders, in one run; equal rows in each partition."""
    with tempfile.TemporaryDirectory(prefix="scl-") as scratch:
        root = Path(scratch)
        zoo.write_stream(root / "one", ("animals",), train=EACH * TURNS, test=1, partitions=1)
        readers = {}
        start_ray(config(root, 1))
        try:
            for count in PARTITIONS:
                folder = root / f"of-{count}"
                folder.mkdir()
                for part in range(count):
                    shutil.copy(root / "one" / "train" / "part-00000.parquet", folder / f"part-{part:05d}.parquet")
                readers[count] = Ingesting(config(root, count), {}, b"k" * 32)
            for reader in readers.values():
                for actor in reader.actors if len(reader.actors) == 1 else reader.actors[1:]:
                    actor.warm.remote().future().result()
            took: dict[int, list[float]] = {count: [] for count in PARTITIONS}
            for _ in range(TURNS):
                for count in PARTITIONS:
                    took[count].append(pulled(readers[count], EACH * count))
        finally:
            stop_ray()
    rate = {count: EACH * count / statistics.median(seconds) for count, seconds in took.items()}
    return [
        {"part": "weak", "what": "partitions", "partitions": count, "encoders": count, "rows_a_turn": EACH * count,
         "seconds": took[count], "rows_per_s": rate[count], "efficiency": rate[count] / (count * rate[1])}
        for count in PARTITIONS
    ]  # fmt: skip


def config(root: Path, count: int) -> Config:
    model = ModelConfig(zoo.resolve("zoo:small"), register="streamcl.zoo.tower")
    return Config(StoreConfig(str(root / f"store-{count}")), model, Files(str(root / f"of-{count}")), encoders=count,
                  ray=RayConfig(cpus=16))  # fmt: skip


def pulled(reader: Ingesting, rows: int) -> float:
    """Seconds for so many rows, asked for at once."""
    began = time.monotonic()
    arrivals = [reader.pull(PULL) for _ in range(rows // PULL)]
    came = sum(len(arrival.result()) for arrival in arrivals)
    if came != rows:
        raise RuntimeError(f"{came} rows came of {rows}")
    return time.monotonic() - began


# -- the part ----------------------------------------------------------------------------------------------------------


def measure(say: Console, overrides: list[str]) -> list[dict[str, Any]]:
    """Rows of workers, of partitions, of the model's constants."""
    rows = [workers()]
    say.print(rows)
    rows += ingest()
    say.print(rows[1:])
    rows += scale_model.constants()
    rows.append(scale_model.model(rows))
    say.print(rows[4:])
    return rows


def claims(rows: list[dict[str, Any]], command: str) -> list[Claim]:
    """8.4, if it was measured."""
    if not rows:
        return []
    both = next(row for row in rows if row["what"] == "workers")
    alone, beside, together = (1e3 * both["step_s"][mode] for mode in MODES)
    shares = [
        f"{row['partitions']}: {row['rows_per_s']:.0f} rows/s ({row['efficiency']:.2f})"
        for row in rows
        if row["what"] == "partitions"
    ]
    value = (
        f"two workers {both['efficiency']:.2f} (a step takes {alone:.0f} ms alone, {beside:.0f} ms beside another that "
        f"does not talk, {together:.0f} ms together; to reduce {both['bytes'] / 1e6:.1f} MB takes "
        f"{1e3 * both['reduction_s']:.1f} ms, the rest is waiting for each other); partitions with an encoder each: "
        f"{', '.join(shares)}, bounded by 2 cores (at best 1, 1, 0.5). {scale_model.told(rows)}"
    )
    what = "weak scaling 1 → 2 workers and 1 → 4 partitions; model of 64 workers and 1,000 partitions (not measured)"
    whole = {row["what"] for row in rows} >= {"workers", "partitions", "model"}
    return [Claim("8.4", what, "efficiency, what bounds it, the model's assumptions", value, whole, command)]
