"""A window trained by several workers, with sharded weights, in several passes, with activations computed twice: one
and the same result. Workers are forked processes that talk through gloo; the model is a random LLaVA of 60,000 weights.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import torch
import torch.distributed
from torch.distributed.tensor import DTensor

from streamcl.errors import ConfigError
from streamcl.store.memory import TaskMemory
from streamcl.strategies import DGG, EWC, FwdPrompt, HiFGO, OLoRA, Replay, Strategy
from streamcl.train.batch import Row, collate
from streamcl.train.evaluate import accuracy, marks
from streamcl.train.feed import ahead, batches, shares
from streamcl.train.loop import ALONE, Learning, World
from streamcl.train.model import grow, load_base
from streamcl.train.settings import ModelConfig, Prompts, TrainConfig
from streamcl.train.sharding import sharded
from streamcl.types import Window

sys.path.append(str(Path(__file__).parents[1] / "serve"))
from tiny_llava import LORA, save_checkpoint

torch.set_num_threads(1)
CONFIG = TrainConfig(epochs=1, batch_size=6, lr=1e-2, probe_rows=6)
STRATEGIES: dict[str, Strategy] = {
    "dgg": DGG(alpha=0.5), "hifgo": HiFGO(), "ewc": EWC(), "olora": OLoRA(), "replay": Replay(), "prompts": FwdPrompt()
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_checkpoint(folder)
    return folder


def rows(task: int, count: int) -> list[Row]:
    """Rows of different lengths, every second with an image."""
    draw, made = torch.Generator().manual_seed(task), []
    for number in range(count):
        text = torch.randint(4, 90, (3 + 2 * number,), generator=draw)
        image = number % 2 == 0
        prompt = torch.cat([torch.full((5,), 2), text]) if image else text
        inputs = {"pixel_values": torch.randn(1, 5, 32, generator=draw)} if image else {}
        made.append(Row(f"{task}/{number}", prompt, torch.randint(4, 90, (2,), generator=draw), inputs))
    return made


def lived(folder: Path, config: TrainConfig, strategy: Strategy, world: World = ALONE) -> list[Any]:
    """Three windows of two tasks: the parameters after each, as numpy, and its scores, on this rank."""
    base = load_base(ModelConfig(str(folder)))
    form = Prompts(pool=4, length=2, top=2) if strategy.adapter == "prompts" else LORA
    model = grow(base, form, seed=0)
    if config.shard:
        sharded(model, device="cpu", size=world.size)
    learning = Learning(model, pad_id=0, config=config, world=world)
    memory, seen = TaskMemory(), list[Any]()
    served = None
    for number, (task, closes) in enumerate([(0, True), (1, False), (1, True)]):
        window = Window(number, f"task-{task}", (), (), seed=number, base=number, index=task, closes_task=closes)
        learning.start(served, strategy=strategy, memory=memory, seed=task)
        trained = learning.train(window, rows(task, 7 + number), rows(9, 4), strategy=strategy, memory=memory)
        served, memory = trained.served, trained.memory
        with learning.serving(served):
            told = accuracy(marks(learning.model, {"all": rows(task, 7)}, pad_id=0))
        seen.append(({name: value.numpy() for name, value in trained.params.items()}, told))
    return seen


def _rank(rank: int, size: int, port: str, answers: Queue[Any], work: Callable[[World], Any]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{port}", rank=rank, world_size=size)
    answers.put((rank, work(World(rank, size))))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def together(size: int, meeting: Path, work: Callable[[World], Any]) -> list[Any]:
    """What `work` gives on each of so many ranks."""
    context = multiprocessing.get_context("fork")
    answers: Any = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, size, str(meeting), answers, work)) for rank in range(size)]
    for process in ranks:
        process.start()
    found = dict(answers.get(timeout=240) for _ in ranks)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    return [found[rank] for rank in range(size)]


def gap(one: list[Any], other: list[Any]) -> float:
    """The largest difference between any two parameters."""
    pairs = [(a[0][name], b[0][name]) for a, b in zip(one, other, strict=True) for name in a[0]]
    return max(float(abs(a - b).max()) for a, b in pairs)


def check(folder: Path, meeting: Path, size: int, config: TrainConfig, strategy: Strategy) -> None:
    alone = lived(folder, CONFIG, strategy)
    found = together(size, meeting, lambda world: lived(folder, config, strategy, world))
    for rank in found:
        assert gap(alone, rank) < 2e-4
    assert gap(found[0], found[-1]) == 0  # ranks never drift apart
    moved = max(float(abs(alone[2][0][name] - alone[0][0][name]).max()) for name in alone[0][0])
    assert moved > 20 * gap(alone, found[0])  # and training does move what is compared


@pytest.mark.parametrize("strategy", ["dgg", "hifgo"])
def test_two_workers_give_what_one_gives(strategy: str, checkpoint: Path, tmp_path: Path) -> None:
    check(checkpoint, tmp_path / "meet", 2, replace(CONFIG, micro_batch=2), STRATEGIES[strategy])


def test_sharded_weights_give_what_whole_ones_give(checkpoint: Path, tmp_path: Path) -> None:
    check(checkpoint, tmp_path / "meet", 2, replace(CONFIG, shard=True, checkpointing=True), STRATEGIES["hifgo"])


def test_each_worker_holds_its_part_of_the_layers_alone(checkpoint: Path, tmp_path: Path) -> None:
    def held(world: World) -> dict[str, int]:
        model = grow(load_base(ModelConfig(str(checkpoint))), LORA, seed=0)
        sharded(model, device="cpu", size=world.size)
        return {
            name: (p.to_local() if isinstance(p, DTensor) else p).numel()
            for name, p in model.named_parameters()
            if "layers" in name and not p.requires_grad
        }

    (alone,), two = together(1, tmp_path / "one", held), together(2, tmp_path / "two", held)
    assert len(alone) > 30
    assert {name: sum(part[name] for part in two) for name in alone} == alone
    assert sum(two[0].values()) < 0.52 * sum(alone.values())


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_four_workers_give_what_one_gives(strategy: str, shard: bool, checkpoint: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, shard=shard, checkpointing=shard, micro_batch=1)
    check(checkpoint, tmp_path / "meet", 4, config, STRATEGIES[strategy])


def test_workers_that_do_not_average_drift_apart(checkpoint: Path, tmp_path: Path) -> None:
    """The broken twin: the comparison tells."""

    def work(world: World) -> list[Any]:
        Learning.average = lambda self, grads: grads  # type: ignore[method-assign]  # in a forked process
        return lived(checkpoint, CONFIG, DGG(), world)

    found = together(2, tmp_path / "meet", work)
    assert gap(found[0], found[1]) > 1e-3


@pytest.mark.parametrize("config", [{"micro_batch": 2}, {"checkpointing": True}, {"micro_batch": 1}])
def test_passes_and_recomputation_change_nothing(config: dict[str, Any], checkpoint: Path) -> None:
    calm, other = (lived(checkpoint, replace(CONFIG, **more), DGG()) for more in ({}, config))
    assert gap(calm, other) < 2e-5


def test_checkpointing_keeps_fewer_activations(checkpoint: Path) -> None:
    kept = {}
    for on in (False, True):
        model = grow(load_base(ModelConfig(str(checkpoint))), LORA, seed=0)
        learning = Learning(model, pad_id=0, config=replace(CONFIG, checkpointing=on))
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, into=sizes: into.append(t.numel()) or t, lambda t: t):
            learning.mean_loss(rows(0, 6))
        kept[on] = sum(sizes)
    assert kept[True] < 0.6 * kept[False]


# -- the feed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_length", [False, True])
def test_every_row_comes_once_an_epoch_and_the_seed_decides_the_order(by_length: bool) -> None:
    every = rows(0, 11)
    orders = [[[row.id for row in batch] for batch in batches(every, 4, epochs=2, seed=s, by_length=by_length)]
              for s in (0, 0, 1)]  # fmt: skip
    assert orders[0] == orders[1] != orders[2]
    assert sorted(id for batch in orders[0][:3] for id in batch) == sorted(row.id for row in every)


def test_rows_of_like_length_come_together() -> None:
    every = rows(0, 12)
    padding = {}
    for by_length in (False, True):
        made = [collate(batch, pad_id=0) for batch in batches(every, 3, epochs=1, seed=0, by_length=by_length)]
        padding[by_length] = sum(int((batch["attention_mask"] == 0).sum()) for batch in made)
    assert padding[True] < 0.6 * padding[False]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("micro", [None, 1, 2])
def test_shares_are_the_whole_batch_in_equally_many_passes(count: int, size: int, micro: int | None) -> None:
    every = rows(0, count)
    ranks = [shares(every, rank=rank, size=size, micro=micro) for rank in range(size)]
    assert len({len(passes) for passes in ranks}) == 1
    total: dict[str, float] = {}
    for part, weight in chain(*ranks):
        assert micro is None or len(part) <= micro
        for row in part:
            total[row.id] = total.get(row.id, 0.0) + weight / size
    assert total == {row.id: pytest.approx(1 / count) for row in every}


def test_the_next_item_is_made_while_one_is_used_and_errors_rise() -> None:
    made: list[int] = []

    def source() -> Any:
        for number in range(3):
            made.append(number)
            yield number
        raise ValueError("no more")

    items = ahead(source())
    assert next(items) == 0
    assert next(items) == 1
    assert next(items) == 2
    with pytest.raises(ValueError, match="no more"):
        next(items)


def test_a_model_without_layers_cannot_be_sharded() -> None:
    with pytest.raises(ConfigError, match=r"train\.shard"):
        sharded(torch.nn.Linear(2, 2), device="cpu", size=1)
