"""One window's training: stages of steps, then, at a task's end, consolidation. Pure PyTorch.

A worker keeps one `Learning` for its life and trains window after window on it. With several workers every batch is
split over the ranks; the loss is scaled so that the averaged gradient is exactly the whole batch's. One all-reduce of
the adapter's gradients a step averages them: they are few, the same whether the frozen weights are sharded or not, and
accumulated first where a batch takes several passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from streamcl.store.memory import TaskMemory
from streamcl.strategies.base import Params, Strategy
from streamcl.train.batch import Row, collate
from streamcl.train.feed import ahead, batches, repeated, shares
from streamcl.train.model import adapted, added, check_finite, fresh, params_of, write
from streamcl.train.probe import AnswerLoss, WindowProbe
from streamcl.train.prompts import pool_of
from streamcl.train.settings import TrainConfig
from streamcl.train.sharding import checkpointed
from streamcl.train.step import StepLog, train_step
from streamcl.types import Window


@dataclass(frozen=True)
class World:
    """Which worker this is, of how many."""

    rank: int = 0
    size: int = 1


ALONE = World()


@dataclass(frozen=True)
class Trained:
    """What training a window gave. Tensors are float32, on the CPU."""

    params: Params
    """The parameters as they were left."""
    served: Params
    """The adapter to publish; most strategies publish `params`."""
    memory: TaskMemory
    """What the window leaves for those to come."""
    steps: int
    loss: float
    """Mean loss of the last tenth of the steps; 0.0 without a step."""
    penalties: Mapping[str, float]
    """Each penalty term over the loss, mean of the first ten steps that had it."""
    leak: float
    """Largest ‖UᵀΔ‖ / ‖Δ‖ of a stage's whole update Δ, for the protected directions U; 0.0 where none are."""


class Learning:
    """A worker's model and the adapter parameters it trains. `train` changes the parameters in place."""

    def __init__(
        self,
        model: Any,
        *,
        pad_id: int,
        config: TrainConfig,
        world: World = ALONE,
    ) -> None:
        """With several workers a process group must be there. `model` may be sharded."""
        self.model, self.pad_id, self.config, self.world = model, pad_id, config, world
        self.params = params_of(model)
        weights = [] if pool_of(model) else [*adapted(model).values()]
        self.merges = bool(weights) and all(w.dtype == torch.float32 and w.device.type == "cpu" for w in weights)
        """Whether any adapter is scored as part of the weights: faster, but lower precision would round it, and a GPU
        may have no room for the copy of the weights that it takes."""
        if config.checkpointing:
            checkpointed(model)
        loss = AnswerLoss(model, bfloat16=config.precision == "bfloat16")
        self.loss: Callable[..., Tensor] = torch.compile(loss, dynamic=True) if config.compile else loss

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device

    def start(self, served: Params | None, *, strategy: Strategy, memory: TaskMemory, seed: int) -> None:
        """Sets the parameters to what a window starts from; `served`: the version before it, None before the first.

        `seed` is that of an untrained adapter, another one for each task.
        """
        untrained = fresh(self.params, seed=seed)
        write(self.params, strategy.begin(untrained if served is None else served, untrained, memory))

    def train(
        self,
        window: Window,
        rows: Sequence[Row],
        replay: Sequence[Row],
        *,
        strategy: Strategy,
        memory: TaskMemory,
        on_step: Callable[[int, int, StepLog], None] = lambda step, steps, log: None,
    ) -> Trained:
        """Trains the current parameters on `rows` and `replay`, as `window` says.  Raises NotFinite."""
        probe = WindowProbe(
            self.model, self.params, rows, replay, pad_id=self.pad_id, size=self.config.batch_size,
            limit=self.config.probe_rows, bfloat16=self.config.precision == "bfloat16",
        )  # fmt: skip
        data = [*rows, *repeated(replay, beside=len(rows), share=strategy.replay_share)]
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(window.seed)).tolist()
        plan, logs, leak = None, list[StepLog](), 0.0
        for number, stage in enumerate(strategy.stages(memory, closes_task=window.closes_task)):
            first, last = round(stage.start * len(data)), round(stage.stop * len(data))
            own = len(data) if stage.old_adapters else len(rows)
            if part := [data[i] for i in order[first:last] if i < own]:
                plan = strategy.prepare(stage, dict(self.params), memory, probe)
                before = self._copy()
                with added(self.model, strategy.frozen(memory) if stage.old_adapters else {}):
                    logs += self._stage(part, window.seed + number, strategy, plan, on_step)
                leak = max(
                    leak, strategy.leak({name: p.detach() - before[name] for name, p in self.params.items()}, plan)
                )
        params = {name: value.float().cpu() for name, value in self._copy().items()}
        served = strategy.served(params, memory, closes_task=window.closes_task)
        memory = strategy.consolidate(params, memory, probe, plan, closes_task=window.closes_task)
        return Trained(params, served, memory, len(logs), _tail(logs), _shares(logs), leak)

    @contextmanager
    def serving(self, served: Params) -> Iterator[None]:
        """The model as it answers with a published adapter; afterwards its parameters are as before."""
        if self.merges or any(served[name].shape != value.shape for name, value in self.params.items()):
            with added(self.model, served), self.model.disable_adapter():
                yield
            return
        kept = self._copy()
        write(self.params, served)
        try:
            yield
        finally:
            write(self.params, kept)

    def _copy(self) -> Params:
        return {name: value.detach().clone() for name, value in self.params.items()}

    def _stage(
        self,
        rows: Sequence[Row],
        seed: int,
        strategy: Strategy,
        plan: Any,
        on_step: Callable[[int, int, StepLog], None],
    ) -> list[StepLog]:
        """One stage with its own optimizer.  Raises NotFinite."""
        config, logs = self.config, list[StepLog]()
        optimizer = torch.optim.AdamW(self.params.values(), lr=config.lr, weight_decay=config.weight_decay)
        steps = config.epochs * math.ceil(len(rows) / config.batch_size)
        order = batches(rows, config.batch_size, epochs=config.epochs, seed=seed, by_length=config.by_length)
        for step, parts in enumerate(ahead(map(self._passes, order))):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate(step, steps, config.warmup)
            draw = torch.Generator().manual_seed((seed << 20) + step)
            log = train_step(
                lambda parts=parts: self._loss_of(parts),  # type: ignore[misc]  # mypy cannot infer a bound default
                self.params, optimizer, strategy=strategy, plan=plan, draw=draw, clip=config.clip, average=self.average,
            )  # fmt: skip
            logs.append(log)
            on_step(step + 1, steps, log)
        check_finite(self.params)
        return logs

    def mean_loss(self, rows: Sequence[Row]) -> Tensor:
        """This rank's part of the batch's mean loss, times the number of ranks.

        The gradients of all passes but the last are accumulated already: only the last one's are yet to come.
        """
        return self._loss_of(self._passes(rows))

    def _passes(self, rows: Sequence[Row]) -> list[tuple[dict[str, Tensor], Tensor]]:
        """This rank's passes of a batch: inputs, and what each row weighs [N]."""
        parts = shares(rows, rank=self.world.rank, size=self.world.size, micro=self.config.micro_batch)
        device = self.device
        return [
            (collate(part, pad_id=self.pad_id, device=device), torch.full((len(part),), weight, device=device))
            for part, weight in parts
        ]

    def _loss_of(self, parts: Sequence[tuple[dict[str, Tensor], Tensor]]) -> Tensor:
        done = torch.zeros((), device=self.device)
        for batch, weight_N in parts[:-1]:
            loss = self.loss(batch, weight_N)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            done += loss.detach()
        return self.loss(*parts[-1]) + done

    def average(self, grads: Params) -> Params:
        """The mean of all ranks' gradients, in one reduction."""
        if self.world.size == 1:
            return grads
        flat = torch.cat([grad.flatten() for grad in grads.values()])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat / self.world.size, [grad.numel() for grad in grads.values()])
        return {name: part.view_as(grads[name]) for name, part in zip(grads, parts, strict=True)}


def _tail(logs: Sequence[StepLog]) -> float:
    """Mean loss of the last tenth."""
    losses = [log.loss for log in logs[-max(1, len(logs) // 10) :]]
    return sum(losses) / len(losses) if losses else 0.0


def _shares(logs: Sequence[StepLog]) -> dict[str, float]:
    """Each penalty over the loss as its stage begins, where a strategy wants them at 0.01 to 0.1."""
    begins = [log for log in logs if log.penalty][:10]
    loss = sum(log.loss for log in begins)
    return (
        {name: sum(log.penalty[name] for log in begins) / max(loss, 1e-12) for name in begins[0].penalty}
        if begins
        else {}
    )


def rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear rise, then a cosine to zero."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, steps - rising)))
