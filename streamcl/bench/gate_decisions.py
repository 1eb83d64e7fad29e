"""Candidates that were really trained, good and bad, before the gate.

Five chains of four zoo tasks, each in another order and from another seed. Each window of a chain gives a good one:
20. The last two windows of each chain give four bad ones as well: 20. A chain is kept in the cache when it is done.

    flip        trained with the new task's answers dealt out anew among its rows
    destroyed   trained on the new task as it is, and on one old task with its answers dealt out anew
    noise       the good candidate's weights, each shifted by a draw four times as large as that tensor's own spread
                (one as large as the spread costs an old task 0 to 7 points more than the good one lost, which 60
                rows cannot tell: with `unsure: promote` five of five were let through)
    broken      in turn: all zeros, a NaN, trained on another base model, all zeros, a NaN
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from streamcl import zoo
from streamcl.bench.continual_cell import Data
from streamcl.errors import NotFinite
from streamcl.store.memory import TaskMemory
from streamcl.strategies import DGG
from streamcl.strategies.base import Params
from streamcl.train.batch import Encoder, Row
from streamcl.train.evaluate import Flags, accuracy, marks
from streamcl.train.evidence import change, reach
from streamcl.train.gate import Evidence, GateConfig, Pairs, judge
from streamcl.train.loop import Learning
from streamcl.train.model import check_finite, grow, load_base
from streamcl.train.settings import LoRA, ModelConfig, TrainConfig
from streamcl.types import Window

TASKS = ("digits", "animals", "icons", "maps")
CHAINS, TRAIN, HELD, REPLAYED = 5, 240, 60, 120
BROKEN = ("zeroed", "NaN", "wrong base", "zeroed", "NaN")
CACHE = Path(tempfile.gettempdir()) / "streamcl-bench-gate"
FORMAT = 2
NOISE = 4.0


@dataclass
class Bench:
    """The model and the rows that every chain uses. Mutable: the adapter's parameters."""

    learning: Learning
    pad_id: int
    digest: str
    reach: float
    data: Data

    @staticmethod
    def ready() -> Bench:
        torch.set_num_threads(1)
        base = load_base(ModelConfig(zoo.resolve("zoo:small"), register="streamcl.zoo.tower"))
        CACHE.mkdir(exist_ok=True)
        data = Data(Encoder(base), CACHE, base.digest)
        pad_id = base.processor.tokenizer.pad_token_id
        model = grow(base, LoRA(), seed=0)
        config = TrainConfig(epochs=4, batch_size=16, lr=2e-3)
        return Bench(Learning(model, pad_id=pad_id, config=config), pad_id, base.digest, reach(model), data)

    def trained(self, seed: int, task: str, base: Params | None, memory: TaskMemory, rows: Sequence[Row],
                replay: Sequence[Row]) -> tuple[Params, TaskMemory, int]:  # fmt: skip
        strategy = DGG(replay_rows=REPLAYED)
        self.learning.start(base, strategy=strategy, memory=memory, seed=seed)
        window = Window(1, task, (), (), seed=seed, base=int(base is not None), index=0, closes_task=True)
        done = self.learning.train(window, rows, replay, strategy=strategy, memory=memory)
        return done.served, done.memory, done.steps

    def marked(self, params: Params, sets: Mapping[str, Sequence[Row]]) -> dict[str, Flags]:
        with self.learning.serving(params):
            return marks(self.learning.model, sets, pad_id=self.pad_id)


@dataclass(frozen=True)
class Position:
    """Where a chain is: what a candidate of its next window is compared with."""

    base: Params | None
    memory: TaskMemory
    stood: Mapping[str, Flags]
    held: Mapping[str, Sequence[Row]]


def chain(bench: Bench, number: int) -> list[dict[str, Any]]:
    """The verdicts of one chain; kept, and read again next time."""
    path = CACHE / f"chain-{FORMAT}-{bench.digest[:12]}-{number}.json"
    if not path.exists():
        rows = list(_chain(bench, number))
        path.write_text(json.dumps(rows))
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return [{**row, **_judged(row)} for row in found]


def _judged(row: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict of today's gate on what was measured."""
    evidence = Evidence.from_json(row["evidence"])
    found = judge(evidence, GateConfig(), task=row["task"], known=False)
    passed, why = (False, row["stopped"]) if row["stopped"] else (found.passed, found.why)
    return {"passed": passed, "why": why, "right": passed == (row["kind"] == "good")}


def _chain(bench: Bench, number: int) -> Iterator[dict[str, Any]]:
    dice = random.Random(number)
    order = dice.sample(TASKS, len(TASKS))
    base, memory = None, TaskMemory()
    for index, task in enumerate(order):
        known = order[: index + 1]
        held = {name: bench.data.rows(name, "train")[-HELD:] for name in known}
        rows = dice.sample(bench.data.rows(task, "train")[:-HELD], TRAIN)
        replay = [row for name in order[:index] for row in
                  dice.sample(bench.data.rows(name, "train")[:-HELD], REPLAYED // max(index, 1))]  # fmt: skip
        bench.learning.start(base, strategy=DGG(), memory=memory, seed=number)
        stood = bench.marked({n: p.detach().clone() for n, p in bench.learning.params.items()}, held)
        at = Position(base, memory, stood, held)
        good, after, steps = bench.trained(number, task, base, memory, rows, replay)
        yield _measured(bench, at, "good", task, good, steps, number)
        if index >= 2:
            yield from _bad(bench, at, number, index, order, good, steps, rows, replay)
        base, memory = good, after


def _bad(bench: Bench, at: Position, number: int, index: int, order: Sequence[str], good: Params, steps: int,
         rows: Sequence[Row], replay: Sequence[Row]) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Two bad candidates of a window: flip and noise at the third task, destroyed and broken at the fourth."""
    task = order[index]
    if index == 2:
        flipped, _, made = bench.trained(number, task, at.base, at.memory, _dealt(rows, number), replay)
        yield _measured(bench, at, "flip", task, flipped, made, number)
        draw = torch.Generator().manual_seed(number)
        noisy = {name: p + NOISE * p.std() * torch.randn(p.shape, generator=draw) for name, p in good.items()}
        yield _measured(bench, at, "noise", task, noisy, steps, number)
        return
    victim = order[number % index]
    spoiled = _dealt(bench.data.rows(victim, "train")[:TRAIN], number)
    destroyed, _, made = bench.trained(number, task, at.base, at.memory, [*rows, *spoiled], replay)
    yield _measured(bench, at, f"destroyed: {victim}", task, destroyed, made, number)
    yield _measured(bench, at, BROKEN[number], task, _broken(good, BROKEN[number]), steps, number)


def _dealt(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows with each other's answers."""
    answers = [row.answer_ids for row in rows]
    random.Random(seed).shuffle(answers)
    return [replace(row, answer_ids=answer) for row, answer in zip(rows, answers, strict=True)]


def _broken(good: Params, how: str) -> Params:
    if how == "zeroed":
        return {name: torch.zeros_like(value) for name, value in good.items()}
    if how == "NaN":
        name = sorted(good)[0]
        return {**good, name: good[name].clone().index_fill_(0, torch.tensor([0]), float("nan"))}
    return good


def _measured(
    bench: Bench, at: Position, kind: str, task: str, params: Params, steps: int, chain: int
) -> dict[str, Any]:
    """What a training job says of a candidate; `stopped`: why none comes of it, which is what NaN does."""
    about = {"chain": chain, "task": task, "kind": kind}
    try:
        check_finite(params)
    except NotFinite as error:
        return {**about, "evidence": asdict(Evidence()), "stopped": str(error), "scores": {}}
    after = bench.marked(params, at.held)
    size, moved = change(bench.learning.model, at.base, params, reach=bench.reach)
    evidence = Evidence(
        pairs={name: Pairs.of(at.stood[name], after[name]) for name in at.held}, size=size, moved=moved, steps=steps,
        base="another" if kind == "wrong base" else bench.digest, wanted=bench.digest,
    )  # fmt: skip
    return {**about, "evidence": asdict(evidence), "stopped": "", "scores": accuracy(after)}
