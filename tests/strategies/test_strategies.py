"""Claims that hold for every strategy, and DGG's own, in float64 on small problems that play the probe."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from quadratics import Linear, Quadratic, State, adapter, learn
from torch import Tensor, nn

from streamcl.errors import ConfigError, NotFinite
from streamcl.store.memory import TaskMemory
from streamcl.strategies import DGG, KINDS, HiFGO, Params, Strategy
from streamcl.train.step import train_step

STRATEGIES = {name: kind() for name, kind in KINDS.items()} | {
    "hifgo, weights": HiFGO(space="weights"),
    "hifgo, dagger": HiFGO(dagger=True),
    "hifgo, chained": HiFGO(chain=True),
}
every = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def same(ours: Params, theirs: Params) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def two_tasks(strategy: Strategy) -> State:
    return learn(strategy, Linear.task(2), learn(strategy, Linear.task(1)), seed=1)


@every
def test_a_strategy_is_a_value(strategy: Strategy) -> None:
    assert pickle.loads(pickle.dumps(strategy)) == strategy
    with pytest.raises(FrozenInstanceError):
        setattr(strategy, fields(strategy)[0].name, 1)


@every
def test_the_first_task_equals_fine_tuning(strategy: Strategy) -> None:
    ours, plain = (learn(one, Linear.task(1)) for one in (strategy, Strategy()))
    assert same(ours.params, plain.params)
    assert same(ours.served, plain.served)


@every
def test_training_is_deterministic_and_state_survives_save_and_load(strategy: Strategy) -> None:
    straight, first = two_tasks(strategy), learn(strategy, Linear.task(1))
    loaded = replace(first, memory=TaskMemory.from_bytes(first.memory.to_bytes()))
    resumed = learn(strategy, Linear.task(2), loaded, seed=1)
    assert same(straight.params, resumed.params)
    assert same(straight.served, resumed.served)
    assert straight.memory.to_bytes() == resumed.memory.to_bytes()
    assert not same(straight.served, first.served)  # there was something to learn


@every
@pytest.mark.parametrize("closes", [True, False])
def test_arguments_are_not_changed(strategy: Strategy, closes: bool) -> None:
    task, memory, params = Linear.task(3), two_tasks(strategy).memory, adapter(7)
    ones = {name: torch.ones_like(value) for name, value in params.items()}
    before = pickle.dumps((memory, params, ones))
    strategy.begin(params, ones, memory)
    strategy.frozen(memory)
    for stage in strategy.stages(memory, closes_task=closes):
        plan = strategy.prepare(stage, params, memory, task)
        planned = pickle.dumps(plan)
        strategy.penalty(params, plan)
        strategy.guide(ones, params, plan, torch.Generator().manual_seed(0))
        strategy.project(ones, plan)
        strategy.leak(ones, plan)
        strategy.served(params, memory, closes_task=closes)
        strategy.consolidate(params, memory, task, plan, closes_task=closes)
        assert pickle.dumps(plan) == planned
    assert pickle.dumps((memory, params, ones)) == before


@every
def test_a_task_of_two_windows_goes_on_where_it_was_and_an_empty_last_one_changes_no_adapter(
    strategy: Strategy,
) -> None:
    task, before = Linear.task(2), learn(strategy, Linear.task(1))
    half = learn(strategy, task.part(0, 0.5), before, closes_task=False, seed=1)
    assert same(strategy.begin(half.served, task.fresh(1), half.memory), half.params)
    whole = learn(strategy, task.part(0.5, 1), half, seed=1)
    assert not same(whole.params, half.params)
    ended = learn(strategy, replace(task, x_NI=task.x_NI[:0], y_NO=task.y_NO[:0]), half, seed=1)
    assert same(ended.params, half.params)
    assert same(ended.served, half.served)


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
    ours, plain, always = (two_tasks(strategy) for strategy in (DGG(alpha=0.0), Strategy(), DGG(alpha=1.0)))
    assert same(ours.served, plain.served)
    assert not same(always.served, plain.served)


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
    old, task = {}, Quadratic(1.0, 0.0)
    for strategy in (Strategy(), DGG(alpha=1.0)):
        state = learn(strategy, Quadratic(0.0, 1.0), learn(strategy, task, steps=400), steps=15)
        old[type(strategy)] = task.loss(state.served).item()
    assert old[DGG] < 0.85 * old[Strategy]
    assert old[Strategy] > 0.2  # without guidance much of the old task is gone by then


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_an_impossible_probability_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"probability in \[0, 1\]"):
        replace(DGG(), alpha=alpha)


class Outside(Strategy):
    """Keeps updates out of the direction (1, 0): a projection in its smallest form."""

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
        here = State({"w": torch.tensor([2.0, 0.0], dtype=torch.float64)})
        w = learn(strategy, Quadratic(0.0, 1.0), here, steps=100).params["w"]
        moved[type(strategy)] = abs(w[0].item() - 2.0)
        assert w[1].item() > 0.5
    assert moved[Outside] == 0.0
    assert moved[OutsideGradient] > 1e-3


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_any_parameter_changes(poison: float) -> None:
    params = {"w": nn.Parameter(torch.tensor([1.0, 2.0]))}
    optimizer = torch.optim.AdamW(params.values(), lr=0.1)
    with pytest.raises(NotFinite, match="before the update"):
        train_step(
            lambda: params["w"].sum() * poison, params, optimizer,
            strategy=Strategy(), plan=None, draw=torch.Generator(), clip=1.0,
        )  # fmt: skip
    assert params["w"].tolist() == [1.0, 2.0]
