"""Claims that hold for every strategy, and DGG's own, in float64 on a quadratic that plays the probe."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from torch import Tensor, nn

from streamcl.errors import ConfigError, NotFinite
from streamcl.store.memory import TaskMemory
from streamcl.strategies import DGG, KINDS, Params, Strategy
from streamcl.train.step import train_step

STRATEGIES = [kind() for kind in KINDS.values()]


class Quadratic:
    """Task with loss ½‖θ − centre‖², which is also its own probe."""

    def __init__(self, *centres: float) -> None:
        self.centre = torch.tensor(centres, dtype=torch.float64)

    def loss(self, params: dict[str, nn.Parameter]) -> Tensor:
        return 0.5 * sum(((value - self.centre) ** 2).sum() for value in params.values())

    def gradient(self, params: Params) -> Params:
        return {name: value.detach() - self.centre for name, value in params.items()}

    def replay_gradient(self, params: Params) -> Params | None:
        return None


def start(*values: float) -> dict[str, nn.Parameter]:
    return {"w": nn.Parameter(torch.tensor(values, dtype=torch.float64))}


def learn(strategy: Strategy, task: Quadratic, params: dict[str, nn.Parameter], memory: TaskMemory, *, steps: int = 60,
          lr: float = 0.05, seed: int = 0) -> TaskMemory:  # fmt: skip
    """Trains `params` on `task`, in place, and consolidates."""
    for stage in strategy.stages:
        plan = strategy.prepare(stage, dict(params), memory, task)
        optimizer = torch.optim.AdamW(params.values(), lr=lr, weight_decay=0.01)
        for step in range(steps):
            draw = torch.Generator().manual_seed(seed * 1000 + step)
            train_step(lambda: task.loss(params), params, optimizer, strategy=strategy, plan=plan, draw=draw, clip=1e9)
    return strategy.consolidate({name: value.detach() for name, value in params.items()}, memory, task)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=KINDS)
def test_a_strategy_is_a_value(strategy: Strategy) -> None:
    assert pickle.loads(pickle.dumps(strategy)) == strategy
    with pytest.raises(FrozenInstanceError):
        setattr(strategy, fields(strategy)[0].name, 1)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=KINDS)
def test_the_first_task_equals_fine_tuning(strategy: Strategy) -> None:
    ours, plain = start(1.0, -2.0), start(1.0, -2.0)
    learn(strategy, Quadratic(3.0, 3.0), ours, TaskMemory())
    learn(Strategy(), Quadratic(3.0, 3.0), plain, TaskMemory())
    assert torch.equal(ours["w"], plain["w"])


@pytest.mark.parametrize("strategy", STRATEGIES, ids=KINDS)
def test_training_is_deterministic_and_state_survives_save_and_load(strategy: Strategy) -> None:
    results = []
    for reload in (False, True):
        params = start(0.0, 0.0)
        memory = learn(strategy, Quadratic(1.0, 0.0), params, TaskMemory())
        if reload:
            memory = TaskMemory.from_bytes(memory.to_bytes())
        learn(strategy, Quadratic(0.0, 1.0), params, memory, seed=1)
        results.append(params["w"].detach().clone())
    assert torch.equal(*results)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=KINDS)
def test_arguments_are_not_changed(strategy: Strategy) -> None:
    task, params = Quadratic(1.0, 0.0), start(0.5, 0.5)
    memory = strategy.consolidate({"w": params["w"].detach() - 1}, TaskMemory(), task)
    kept = {group: {name: value.clone() for name, value in part.items()} for group, part in memory.tensors.items()}
    plan = strategy.prepare(strategy.stages[0], dict(params), memory, task)
    grads, update = {"w": torch.ones(2, dtype=torch.float64)}, {"w": torch.ones(2, dtype=torch.float64)}
    before = params["w"].detach().clone()
    strategy.guide(grads, dict(params), plan, torch.Generator().manual_seed(0))
    strategy.project(update, plan)
    strategy.consolidate({"w": params["w"].detach()}, memory, task)
    assert torch.equal(params["w"], before)
    assert torch.equal(grads["w"], torch.ones(2, dtype=torch.float64))
    assert torch.equal(update["w"], torch.ones(2, dtype=torch.float64))
    assert all(torch.equal(kept[g][n], memory.tensors[g][n]) for g in kept for n in kept[g])


def guided(g: float, **settings: object) -> Tensor:
    """DGG's gradient for d = (3, 4) and a gradient of norm `g` along (1, 0)."""
    strategy = DGG(alpha=1.0, **settings)
    params = {"w": torch.tensor([3.0, 4.0], dtype=torch.float64)}
    anchor = {"w": torch.zeros(2, dtype=torch.float64)}
    grads = {"w": torch.tensor([g, 0.0], dtype=torch.float64)}
    return strategy.guide(grads, params, anchor, torch.Generator())["w"] - grads["w"]


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_guidance_is_the_papers_hand_example(scope: str) -> None:
    assert torch.allclose(guided(2.0, norm_scope=scope), torch.tensor([1.2, 1.6], dtype=torch.float64))
    assert torch.allclose(guided(10.0, norm_scope=scope), torch.tensor([3.0, 4.0], dtype=torch.float64))


def test_guidance_is_never_longer_than_the_gradient_and_is_without_scaling() -> None:
    assert all(guided(g).norm() <= g + 1e-12 for g in (0.0, 0.1, 1.0, 4.9, 5.0, 50.0))
    assert guided(0.1, scaled=False).norm() == pytest.approx(5.0)


def test_no_way_back_is_no_guidance() -> None:
    here = {"w": torch.ones(2, dtype=torch.float64)}
    grads = {"w": torch.ones(2, dtype=torch.float64)}
    assert torch.equal(DGG(alpha=1.0).guide(grads, here, here, torch.Generator())["w"], grads["w"])


def test_alpha_zero_is_plain_training_bit_for_bit() -> None:
    ours, plain = start(0.0, 0.0), start(0.0, 0.0)
    memory = learn(DGG(alpha=0.0), Quadratic(1.0, 0.0), ours, TaskMemory())
    learn(DGG(alpha=0.0), Quadratic(0.0, 1.0), ours, memory)
    for task in (Quadratic(1.0, 0.0), Quadratic(0.0, 1.0)):
        learn(Strategy(), task, plain, TaskMemory())
    assert torch.equal(ours["w"], plain["w"])


def test_steps_are_guided_as_often_as_alpha_says() -> None:
    strategy, params = DGG(alpha=0.3), {"w": torch.ones(1)}
    grads, anchor = {"w": torch.ones(1)}, {"w": torch.zeros(1)}
    hits = [
        not torch.equal(strategy.guide(grads, params, anchor, torch.Generator().manual_seed(s))["w"], grads["w"])
        for s in range(4000)
    ]
    assert sum(hits) / len(hits) == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 4000) ** 0.5)


def test_on_its_way_to_the_new_task_guidance_stays_nearer_to_the_old_one() -> None:
    """The old optimum is (1, 0), the new (0, 1). Guidance fades with the gradient, so only the way there differs."""
    old = {}
    for strategy in (Strategy(), DGG(alpha=1.0)):
        params = start(0.0, 0.0)
        memory = learn(strategy, Quadratic(1.0, 0.0), params, TaskMemory(), steps=400)
        learn(strategy, Quadratic(0.0, 1.0), params, memory, steps=15)
        old[type(strategy)] = Quadratic(1.0, 0.0).loss(params).item()
    assert old[DGG] < 0.85 * old[Strategy]
    assert old[Strategy] > 0.2  # without guidance much of the old task is gone by then


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_an_impossible_probability_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"probability in \[0, 1\]"):
        replace(DGG(), alpha=alpha)


class Outside(Strategy):
    """Keeps updates out of the direction (1, 0): the projection that later strategies do."""

    projects = True

    def project(self, update: Params, plan: None) -> Params:
        return {name: value * torch.tensor([0.0, 1.0], dtype=value.dtype) for name, value in update.items()}


class OutsideGradient(Strategy):
    """The broken twin: projects the gradient, and Adam with weight decay walks back in."""

    def guide(self, grads: Params, params: Params, plan: None, draw: torch.Generator) -> Params:
        return {name: value * torch.tensor([0.0, 1.0], dtype=value.dtype) for name, value in grads.items()}


def test_projected_updates_never_enter_the_protected_direction_and_projected_gradients_do() -> None:
    moved = {}
    for strategy in (Outside(), OutsideGradient()):
        params = start(2.0, 0.0)
        learn(strategy, Quadratic(0.0, 1.0), params, TaskMemory(), steps=100)
        moved[type(strategy)] = abs(params["w"][0].item() - 2.0)
        assert params["w"][1].item() > 0.5
    assert moved[Outside] == 0.0
    assert moved[OutsideGradient] > 1e-3


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_any_parameter_changes(poison: float) -> None:
    params = start(1.0, 2.0)
    optimizer = torch.optim.AdamW(params.values(), lr=0.1)
    with pytest.raises(NotFinite, match="before the update"):
        train_step(
            lambda: params["w"].sum() * poison, params, optimizer,
            strategy=Strategy(), plan=None, draw=torch.Generator(), clip=1.0,
        )  # fmt: skip
    assert params["w"].tolist() == [1.0, 2.0]
