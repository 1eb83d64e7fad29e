"""EWC, O-LoRA and what strategies with one adapter a task share, in float64 against their formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from quadratics import Linear, Quadratic, State, adapter, learn, update, weights

from streamcl.errors import ConfigError
from streamcl.store.memory import TaskMemory
from streamcl.strategies import EWC, HiFGO, OLoRA, Stage, Strategy
from streamcl.strategies.ewc import ANCHOR, FISHER, OPEN
from streamcl.strategies.stacked import adapters, within

W = [f"{layer}.lora_A.weight" for layer in weights()]


def tensor(*values: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values, dtype=torch.float64)}


def test_ewc_s_penalty_is_its_formula() -> None:
    memory = TaskMemory({ANCHOR: tensor(1.0, 0.0), FISHER: tensor(4.0, 2.0)})
    for unit, scale in [(False, 1.0), (True, 1 / 3)]:  # a mean of 3 becomes 1
        strategy = EWC(strength=10.0, unit=unit)
        plan = strategy.prepare(Stage(), tensor(0.0, 0.0), memory, Quadratic(0.0, 0.0))
        found = strategy.penalty(tensor(3.0, -1.0), plan)["ewc"].item()
        assert found == pytest.approx(10 / 2 * (4 * 2**2 + 2 * 1**2) * scale)


def test_ewc_ends_where_the_new_optimum_and_the_old_one_balance() -> None:
    """½(w − c)² + λ/2 F (w − a)² is least at (c + λFa) / (1 + λF)."""
    memory = TaskMemory({ANCHOR: tensor(1.0, 0.0), FISHER: tensor(2.0, 0.0)})
    strategy = EWC(strength=3.0, unit=False)
    params = {"w": torch.tensor([(0 + 6 * 1) / 7, 1.0], dtype=torch.float64, requires_grad=True)}
    task = Quadratic(0.0, 1.0)
    plan = strategy.prepare(Stage(), params, memory, task)
    (task.loss(params) + strategy.penalty(params, plan)["ewc"]).backward()
    assert params["w"].grad.abs().max() < 1e-12


def test_fisher_is_the_sum_over_windows_and_an_empty_one_adds_nothing() -> None:
    strategy, task, params = EWC(), Linear.task(1), adapter(5)
    half, empty = task.part(0, 0.5), replace(task, x_NI=task.x_NI[:0], y_NO=task.y_NO[:0])
    memory = strategy.consolidate(params, TaskMemory(), half, None, closes_task=False)
    assert strategy.prepare(Stage(), params, memory, task) is None  # a task is not held to itself
    memory = strategy.consolidate(params, memory, task, None, closes_task=False)
    memory = strategy.consolidate(params, memory, empty, None, closes_task=True)
    assert set(memory.tensors) == {ANCHOR, FISHER}
    first, second = half.squared_gradient(params), task.squared_gradient(params)
    for name in params:
        assert torch.allclose(memory.group(FISHER)[name], first[name] + second[name], rtol=1e-12)
    later = strategy.consolidate(params, memory, task, None, closes_task=True)
    for name in params:
        assert torch.allclose(later.group(FISHER)[name], first[name] + 2 * second[name], rtol=1e-12)


def test_what_a_task_s_windows_gathered_does_not_hold_it_before_it_ends() -> None:
    strategy, task = EWC(strength=100.0), Linear.task(2)
    before = learn(strategy, Linear.task(1))
    half = learn(strategy, task.part(0, 0.5), before, closes_task=False, seed=1)
    plans = [strategy.prepare(Stage(), half.params, state.memory, task) for state in (before, half)]
    assert OPEN in half.memory.tensors
    assert all(torch.equal(plans[0][i][name], plans[1][i][name]) for i in (0, 1) for name in half.params)


def test_ewc_forgets_less_than_fine_tuning() -> None:
    rise = {}
    for strategy in (Strategy(), EWC(strength=1.0)):
        rise[type(strategy)] = 0.0
        for seed in (1, 2, 3):
            old = Linear.task(seed)
            first = learn(strategy, old, steps=60)
            second = learn(strategy, Linear.task(seed + 50), first, seed=1, steps=60)
            rise[type(strategy)] += (old.loss(second.served) - old.loss(first.served)).item()
    assert rise[EWC] < 0.5 * rise[Strategy]
    assert rise[Strategy] > 1


def test_olora_s_penalty_is_its_formula() -> None:
    old, new = [adapter(1), adapter(2)], adapter(3)
    memory = TaskMemory({f"adapter/{i}": params for i, params in enumerate(old)})
    strategy = OLoRA(orth=0.5)
    plan = strategy.prepare(Stage(), new, memory, Linear.task(1))
    expected = sum((new[name] @ params[name].T).abs().sum().item() for name in W for params in old)
    assert strategy.penalty(new, plan)["orth"].item() == pytest.approx(0.5 * expected)
    assert strategy.penalty(new, strategy.prepare(Stage(), new, TaskMemory(), Linear.task(1))) == {}


def overlap(strategy: OLoRA) -> float:
    """Mean |cosine| between rows of the second task's A and the first's."""
    state = learn(strategy, Linear.task(2), learn(strategy, Linear.task(1)), seed=1, steps=200, lr=0.01)
    old, new = (state.memory.group(f"adapter/{number}") for number in (0, 1))
    rows = [torch.nn.functional.normalize(new[n]) @ torch.nn.functional.normalize(old[n]).T for n in W]
    return torch.cat([part.flatten() for part in rows]).abs().mean().item()


def test_olora_s_new_rows_are_orthogonal_to_the_old_ones_and_without_the_penalty_they_are_not() -> None:
    assert overlap(OLoRA(orth=1.0)) < 0.05
    assert overlap(OLoRA(orth=0.0)) > 0.2


def test_olora_begins_each_task_anew() -> None:
    task = Linear.task(1)
    state = learn(OLoRA(), task)
    begun = OLoRA().begin(state.served, task.fresh(7), state.memory)
    assert all(torch.equal(begun[name], value) for name, value in task.fresh(7).items())


def test_old_adapters_are_counted_not_spelled() -> None:
    memory, strategy = TaskMemory(), HiFGO()
    for number in range(12):
        memory = strategy.consolidate(adapter(number), memory, Linear.task(1), None, closes_task=True)
    assert adapters(memory) == [f"adapter/{number}" for number in range(12)]
    assert len(strategy.frozen(memory)[W[0]]) == 12 * 2


def test_kept_adapters_stay_within_their_rank_and_near_their_sum() -> None:
    """The first adapter is strong, and whatever it merges with has as much rank as it needs."""
    strategy = HiFGO(memory_rank=6, memory_error=0.0)
    state, wholes = State(), {layer: torch.zeros_like(weight) for layer, weight in weights().items()}
    for number in range(9):
        params = {name: value * (1.0 if number < 1 else 0.01) for name, value in adapter(number).items()}
        state = State(memory=strategy.consolidate(params, state.memory, Linear.task(1), None, closes_task=True))
        wholes = {layer: whole + update(layer, params) for layer, whole in wholes.items()}
        frozen = strategy.frozen(state.memory)
        assert len(frozen[W[0]]) <= 6
    for layer, whole in wholes.items():
        assert (update(layer, frozen) - whole).norm() < 0.02 * whole.norm()


@pytest.mark.parametrize("budget", [64, 4])
def test_layers_of_unequal_rank_are_served_with_one_rank_within_the_budget(budget: int) -> None:
    """A PEFT folder states a single rank."""
    low, high = adapter(1, rank=1), adapter(2, rank=5)
    mixed = {name: (low if name.startswith("up") else high)[name] for name in low}
    kept = within(mixed, budget)
    assert {len(kept[name]) for name in W} == {min(5, budget)}
    for layer in weights():
        whole = update(layer, mixed)
        left_out = torch.linalg.svdvals(whole)[budget:].norm()
        assert (update(layer, kept) - whole).norm().item() == pytest.approx(left_out.item(), abs=1e-12)


@pytest.mark.parametrize("settings", [{"served_rank": 0}, {"memory_rank": 0}])
def test_a_rank_of_none_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        HiFGO(**settings)


def test_a_negative_strength_is_refused() -> None:
    with pytest.raises(ConfigError, match="strength -1"):
        EWC(strength=-1)
