"""Problems in float64 that are their own probe, and the loop that leads a strategy through their windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from streamcl.store.memory import TaskMemory
from streamcl.strategies import Params, Strategy
from streamcl.train.step import StepLog, train_step

SCALE = 2.0
"""alpha / r of the linear problem's adapters."""
RANK = 2


class Quadratic:
    """Task with loss ½‖w − centre‖²; it has no adapters."""

    def __init__(self, *centre: float) -> None:
        self.centre = torch.tensor(centre, dtype=torch.float64)

    def fresh(self, seed: int) -> Params:
        return {"w": torch.zeros_like(self.centre)}

    def part(self, start: float, stop: float) -> Quadratic | None:
        return self if stop > start else None

    def loss(self, params: Params, extra: Params | None = None) -> Tensor:
        return 0.5 * (params["w"] - self.centre).square().sum()

    def gradient(self, params: Params, extra: Params | None = None) -> Params:
        return {"w": params["w"].detach() - self.centre}

    def replay_gradient(self, params: Params) -> Params | None:
        return None

    def squared_gradient(self, params: Params, extra: Params | None = None) -> Params:
        return {"w": self.gradient(params)["w"].square()}

    def weight_gradient(self, extra: Params) -> Params:
        return {}

    def moments(self) -> Params:
        return {}

    def prior(self) -> Params:
        return {}


@dataclass
class Linear:
    """Mean over samples of ½‖down(tanh(mid(tanh(up(x))))) − y‖²; the layers, which tasks share, carry adapters.

    Keeps a list of what it was asked as a probe.  Shapes: N samples, I inputs, O outputs, R rank.
    """

    x_NI: Tensor
    y_NO: Tensor
    asked: list[str]

    @staticmethod
    def task(seed: int, *, samples: int = 24) -> Linear:
        """Inputs near a plane of the task's own, and a teacher of its own."""
        x_NI = normal(samples, 2, seed=seed) @ normal(2, 6, seed=seed + 100) + 0.3 * normal(samples, 6, seed=seed + 200)
        return Linear(x_NI, torch.tanh(x_NI @ normal(6, 3, seed=seed + 300)), [])

    def fresh(self, seed: int) -> Params:
        """A uniform, B zero, as in training."""
        params = adapter(seed)
        return {name: value * ("lora_A" in name) for name, value in params.items()}

    def part(self, start: float, stop: float) -> Linear | None:
        first, last = (round(share * len(self.x_NI)) for share in (start, stop))
        return replace(self, x_NI=self.x_NI[first:last], y_NO=self.y_NO[first:last]) if last > first else None

    def loss(self, params: Params, extra: Params | None = None) -> Tensor:
        return self.at({name: w + update(name, params) + update(name, extra or {}) for name, w in weights().items()})

    def at(self, weight: Params) -> Tensor:
        """The loss at whole weights."""
        hidden_NH = torch.tanh(torch.tanh(self.x_NI @ weight["up"].T) @ weight["mid"].T)
        errors_NO = hidden_NH @ weight["down"].T - self.y_NO
        return 0.5 * errors_NO.square().sum() / max(1, len(self.x_NI))

    def gradient(self, params: Params, extra: Params | None = None) -> Params:
        self.asked.append("gradient")
        live = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
        return dict(zip(live, torch.autograd.grad(self.loss(live, extra), [*live.values()]), strict=True))

    def replay_gradient(self, params: Params) -> Params | None:
        return None

    def squared_gradient(self, params: Params, extra: Params | None = None) -> Params:
        self.asked.append("squared_gradient")
        pairs = zip(self.x_NI, self.y_NO, strict=True)
        grads = [Linear(x_I[None], y_O[None], []).gradient(params, extra) for x_I, y_O in pairs]
        return {n: sum((g[n] ** 2 for g in grads), torch.zeros_like(p)) / max(1, len(grads)) for n, p in params.items()}

    def weight_gradient(self, extra: Params) -> Params:
        self.asked.append("weight_gradient")
        live = {name: (w + update(name, extra)).requires_grad_() for name, w in weights().items()}
        grads = torch.autograd.grad(self.at(live), [*live.values()])
        return {f"{name}.lora_A.weight": grad for name, grad in zip(live, grads, strict=True)}

    def moments(self) -> Params:
        return {"up.lora_A.weight": self.x_NI.T @ self.x_NI} if len(self.x_NI) else {}

    def prior(self) -> Params:
        return {"up.lora_A.weight": weights()["up"].T @ weights()["up"]}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights() -> Params:
    """The frozen base, [O, I] by layer."""
    shapes = {"up": (5, 6), "mid": (5, 5), "down": (3, 5)}
    return {name: 0.4 * normal(*shape, seed=number) for number, (name, shape) in enumerate(shapes.items())}


def adapter(seed: int, *, rank: int = RANK, size: float = 0.3) -> Params:
    """A random adapter of both layers."""
    params = {}
    for number, (name, weight) in enumerate(weights().items()):
        params[f"{name}.lora_A.weight"] = size * normal(rank, weight.shape[1], seed=1000 * seed + 2 * number)
        params[f"{name}.lora_B.weight"] = size * normal(weight.shape[0], rank, seed=1000 * seed + 2 * number + 1)
    return params


def update(layer: str, params: Params) -> Tensor | float:
    """s B A of one layer; 0 without an adapter."""
    return SCALE * params[f"{layer}.lora_B.weight"] @ params[f"{layer}.lora_A.weight"] if params else 0.0


@dataclass(frozen=True)
class State:
    """What passes from window to window."""

    served: Params | None = None
    memory: TaskMemory = field(default_factory=TaskMemory)
    params: Params | None = None


Task = Quadratic | Linear


def learn(
    strategy: Strategy, task: Task, state: State | None = None, *, closes_task: bool = True, steps: int = 12,
    lr: float = 0.05, seed: int = 0, seen: Callable[[StepLog], None] = lambda log: None,
) -> State:  # fmt: skip
    """One window, as `Learning` trains it, without a model and with all samples of a stage in every step."""
    state = state or State()
    memory, untrained = state.memory, task.fresh(seed)
    begun = strategy.begin(state.served or untrained, untrained, memory)
    params = {name: nn.Parameter(value.clone()) for name, value in begun.items()}
    plan = None
    for stage in strategy.stages(memory, closes_task=closes_task):
        if (part := task.part(stage.start, stage.stop)) is None:
            continue
        plan = strategy.prepare(stage, dict(params), memory, task)
        extra = strategy.frozen(memory) if stage.old_adapters else {}
        optimizer = torch.optim.AdamW(params.values(), lr=lr, weight_decay=0.01)
        for step in range(steps):
            draw = torch.Generator().manual_seed(seed * 1000 + step)
            seen(train_step(lambda part=part, extra=extra: part.loss(params, extra), params, optimizer,
                            strategy=strategy, plan=plan, draw=draw, clip=1e9))  # fmt: skip
    left = {name: value.detach().clone() for name, value in params.items()}
    served = strategy.served(left, memory, closes_task=closes_task)
    return State(served, strategy.consolidate(left, memory, task, plan, closes_task=closes_task), left)
