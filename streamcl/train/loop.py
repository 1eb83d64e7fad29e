"""One window's training: stages of steps, then, at a task's end, consolidation. Pure PyTorch.

A worker keeps one `Learning` for its life and trains window after window on it. With several workers every batch is
split over the ranks; the loss is scaled so that the averaged gradient is exactly the whole batch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamcl.errors import ConfigError
from streamcl.store.memory import TaskMemory
from streamcl.strategies.base import Params, Stage, Strategy
from streamcl.train.batch import IGNORED, Row, answer_logits, collate
from streamcl.train.model import params_of, write
from streamcl.train.step import StepLog, train_step
from streamcl.types import Window


@dataclass(frozen=True)
class TrainConfig:
    """How a window is trained."""

    epochs: int = 2
    """Passes over the window, at least 1."""
    batch_size: int = 16
    """Samples a step, over all workers."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises from 0; then it falls to 0 as a cosine. In [0, 1)."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest gradient norm, > 0."""
    workers: int = 1
    """Ray Train workers, at least 1; they share each batch."""
    use_gpu: bool = False
    idle_s: float = 300.0
    """Seconds without a window after which the workers are released; they start again on demand."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} {getattr(self, name)}: at least 1")


@dataclass(frozen=True)
class World:
    """Which worker this is, of how many."""

    rank: int = 0
    size: int = 1


ALONE = World()


@dataclass(frozen=True)
class Trained:
    """What training a window gave."""

    params: Params
    """The adapter, float32, on the CPU."""
    memory: TaskMemory
    """What tasks leave; changed only when the window closed its task."""
    steps: int
    loss: float
    """Mean loss of the last tenth of the steps; 0.0 without a step."""


class AnswerLoss(nn.Module):
    """Mean cross-entropy of the answer's tokens, summed over samples: [N] → scalar."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor], weight_N: Tensor) -> Tensor:
        logits, labels = answer_logits(self.model, batch)
        loss_NK = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return (loss_NK.sum(1) / (labels != IGNORED).sum(1) * weight_N).sum()


class Learning:
    """A worker's model and the adapter parameters it trains. `train` changes the parameters in place."""

    def __init__(
        self,
        model: Any,
        *,
        pad_id: int,
        config: TrainConfig,
        world: World = ALONE,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> None:
        self.model, self.pad_id, self.config, self.world = model, pad_id, config, world
        self.params = params_of(model)
        self.loss = wrap(AnswerLoss(model))

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device

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
        probe = WindowProbe(self, rows, replay)
        losses: list[float] = []
        data = [*rows, *replay]
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(window.seed)).tolist()
        first = 0
        for number, stage in enumerate(strategy.stages):
            last = len(data) if number == len(strategy.stages) - 1 else first + round(stage.share * len(data))
            part = [data[i] for i in order[first:last]]
            losses += self._stage(stage, part, window.seed + number, strategy, memory, probe, on_step)
            first = last
        params = {name: value.detach().float().cpu().clone() for name, value in self.params.items()}
        if window.closes_task:
            memory = strategy.consolidate(params, memory, probe)
        tail = losses[-max(1, len(losses) // 10) :]
        return Trained(params, memory, len(losses), sum(tail) / len(tail) if tail else 0.0)

    def _stage(
        self,
        stage: Stage,
        rows: Sequence[Row],
        seed: int,
        strategy: Strategy,
        memory: TaskMemory,
        probe: WindowProbe,
        on_step: Callable[[int, int, StepLog], None],
    ) -> list[float]:
        """One stage with its own optimizer; the losses of its steps."""
        config = self.config
        plan = strategy.prepare(stage, dict(self.params), memory, probe)
        optimizer = torch.optim.AdamW(self.params.values(), lr=config.lr, weight_decay=config.weight_decay)
        steps = config.epochs * math.ceil(len(rows) / config.batch_size)
        losses = []
        for step, batch in enumerate(batches(rows, config.batch_size, epochs=config.epochs, seed=seed)):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate(step, steps, config.warmup)
            draw = torch.Generator().manual_seed((seed << 20) + step)
            log = train_step(
                lambda batch=batch: self.mean_loss(batch),  # type: ignore[misc]  # mypy cannot infer a bound default
                self.params, optimizer, strategy=strategy, plan=plan, draw=draw, clip=config.clip,
            )  # fmt: skip
            losses.append(log.loss)
            on_step(step + 1, steps, log)
        return losses

    def mean_loss(self, rows: Sequence[Row]) -> Tensor:
        """This rank's part of the batch's mean loss, times the number of ranks (DDP averages)."""
        mine = rows[self.world.rank :: self.world.size]
        weight = self.world.size / len(rows)
        if not mine:  # fewer samples than ranks: take part in the reduction with weight zero
            mine, weight = rows[:1], 0.0
        batch = collate(mine, pad_id=self.pad_id, device=self.device)
        loss: Tensor = self.loss(batch, torch.full((len(mine),), weight, device=self.device))
        return loss


class WindowProbe:
    """A Probe on the window's data: at most `limit` rows, the same on every rank, without gradient reduction."""

    def __init__(self, learning: Learning, rows: Sequence[Row], replay: Sequence[Row], *, limit: int = 256) -> None:
        self.learning, self.rows, self.replay = learning, rows[:limit], replay[:limit]

    def gradient(self, params: Params) -> Params:
        return self._gradient(params, self.rows)

    def replay_gradient(self, params: Params) -> Params | None:
        return self._gradient(params, self.replay) if self.replay else None

    def _gradient(self, params: Params, rows: Sequence[Row]) -> Params:
        """Mean gradient over `rows` at `params`; the model's own parameters are put back."""
        live = self.learning.params
        kept = {name: value.detach().clone() for name, value in live.items()}
        write(live, params)
        total = {name: torch.zeros_like(value) for name, value in kept.items()}
        loss = AnswerLoss(self.learning.model)
        for batch in batches(rows, self.learning.config.batch_size, epochs=1, seed=0):
            weight = torch.full((len(batch),), 1.0 / len(rows), device=self.learning.device)
            value = loss(collate(batch, pad_id=self.learning.pad_id, device=self.learning.device), weight)
            for name, grad in zip(live, torch.autograd.grad(value, [*live.values()]), strict=True):
                total[name] += grad
        write(live, kept)
        return total


def batches(rows: Sequence[Row], size: int, *, epochs: int, seed: int) -> Iterator[list[Row]]:
    """Every row once an epoch, in an order drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(rows), size):
            yield [rows[i] for i in order[start : start + size]]


def rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear rise, then a cosine to zero."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, steps - rising)))
