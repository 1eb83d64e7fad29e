"""HiFGO's theorems, in float64, against finite differences, with twins that look at the wrong model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from quadratics import SCALE, Linear, State, adapter, learn, update, weights

from streamcl.errors import ConfigError
from streamcl.store.memory import TaskMemory
from streamcl.strategies import HiFGO, Params, Probe, Stage, Strategy
from streamcl.strategies.closed import FORMS, Directions, pulls
from streamcl.strategies.hifgo import Plan
from streamcl.strategies.stacked import LAST, stacked

OLD = [adapter(seed) for seed in (11, 12, 13)]
NEW = adapter(20)
RAW = HiFGO(orth=1.0, norm=0.0, unit=False, form="signed")
PAPER = HiFGO(stage2=0.2, chain=True)
SECOND = Stage(0.8)


def remembering(old: list[Params]) -> TaskMemory:
    return TaskMemory({f"adapter/{number}": params for number, params in enumerate(old)})


def orth(strategy: HiFGO, old: list[Params], task: Linear, params: Params) -> float:
    return strategy.penalty(params, strategy.prepare(SECOND, params, remembering(old), task))["orth"].item()


def moved(params: Params, by: Params, step: float) -> Params:
    return {name: value + step * by[name] for name, value in params.items()}


def scaled(params: Params, step: float) -> Params:
    """The adapter whose update is `step` times that of `params`."""
    return {name: value * (step if "lora_B" in name else 1) for name, value in params.items()}


class TooOld(HiFGO):
    """The broken twin: looks at the model before the newest."""

    def _direction(self, old: list[Params], probe: Probe) -> Params:
        grads = probe.gradient({n: torch.zeros_like(v) for n, v in old[-1].items()}, stacked(old[:-1]))
        return probe.weight_gradient(stacked(old[:-1])) if self.space == "weights" else grads


class Doubled(HiFGO):
    """The broken twin: the newest old adapter is in the forward pass twice."""

    def _direction(self, old: list[Params], probe: Probe) -> Params:
        return super()._direction([*old, old[-1]], probe)


def taylor_error(strategy: HiFGO) -> float:
    """How far the penalty is from Σ_j of the change of loss along the new adapter at each old model, relative."""
    task, zero, step, changes = Linear.task(4), adapter(0, size=0.0), 1e-5, []
    for j in range(len(OLD)):
        if strategy.space == "weights":
            loss = [task.loss(zero, stacked([*OLD[: j + 1], scaled(NEW, d)])) for d in (step, -step)]
        else:
            loss = [task.loss(moved(OLD[j], NEW, d), stacked(OLD[:j])) for d in (step, -step)]
        changes.append((loss[0] - loss[1]).item() / (2 * step))
    found = orth(strategy, OLD, task, NEW) * (SCALE if strategy.space == "weights" else 1)
    return abs(found - sum(changes)) / abs(sum(changes))


@pytest.mark.parametrize("space", ["factors", "weights"])
def test_the_penalty_is_the_first_order_change_of_the_old_models_losses(space: str) -> None:
    assert taylor_error(replace(RAW, space=space)) < 1e-7
    twins = [kind(orth=1.0, norm=0.0, unit=False, form="signed", space=space) for kind in (TooOld, Doubled)]
    assert min(taylor_error(twin) for twin in twins) > 1e-2


def test_the_factors_term_is_the_weight_gradient_along_both_products() -> None:
    task, G = Linear.task(4), Linear.task(4).weight_gradient(stacked(OLD[:1]))
    expected = sum(
        (G[f"{layer}.lora_A.weight"] * (OLD[0][b] @ NEW[a] + NEW[b] @ OLD[0][a])).sum()
        for layer in weights()
        for a, b in [(f"{layer}.lora_A.weight", f"{layer}.lora_B.weight")]
    )
    assert orth(RAW, OLD[:1], task, NEW) == pytest.approx(SCALE * expected.item(), rel=1e-12)


class Thousandfold(Linear):
    """The same task with a loss in other units."""

    def gradient(self, params: Params, extra: Params | None = None) -> Params:
        return {name: 1000 * value for name, value in super().gradient(params, extra).items()}


@pytest.mark.parametrize("unit", [True, False])
def test_the_units_of_the_loss_do_not_matter_when_directions_have_length_one(unit: bool) -> None:
    strategy, task = HiFGO(unit=unit), Linear.task(4)
    large = Thousandfold(task.x_NI, task.y_NO, [])
    grown = orth(strategy, OLD, large, NEW) / orth(strategy, OLD, task, NEW)
    assert grown == pytest.approx(1 if unit else 1000, rel=1e-12)


def test_directions_have_length_one() -> None:
    directions = HiFGO().prepare(SECOND, NEW, remembering(OLD), Linear.task(4)).directions
    assert directions.rows_JP.norm(dim=1).tolist() == pytest.approx([1, 1, 1])


def test_dagger_is_the_last_term_alone() -> None:
    whole = HiFGO().prepare(SECOND, NEW, remembering(OLD), Linear.task(4)).directions.rows_JP
    last = HiFGO(dagger=True).prepare(SECOND, NEW, remembering(OLD), Linear.task(4)).directions.rows_JP
    assert (len(whole), len(last)) == (3, 1)
    assert torch.equal(whole[-1], last[0])


@pytest.mark.parametrize(("form", "value"), [("absolute", 0.5), ("square", 0.25), ("signed", -0.5)])
def test_forms(form: str, value: float) -> None:
    whole = torch.cat([v.flatten() for v in NEW.values()])
    plan = Plan(directions=Directions(-0.5 * whole[None] / whole.square().sum()))
    terms = HiFGO(form=form, orth=2.0, norm=3.0).penalty(NEW, plan)
    assert terms["orth"].item() == pytest.approx(2 * value)
    assert terms["norm"].item() == pytest.approx(3 * sum(v.norm().item() for v in NEW.values()))


@pytest.mark.parametrize("form", ["absolute", "square", "signed"])
def test_the_penalties_gradient_is_autograds_own(form: str) -> None:
    draw = torch.Generator().manual_seed(1)
    sizes = [(3, 4), (2, 5), (6,)]
    theirs = [torch.randn(size, generator=draw, dtype=torch.float64, requires_grad=True) for size in sizes]
    with torch.no_grad():
        theirs[1].zero_()  # a new adapter's B: the norm's gradient is 0 there
    ours = [value.detach().clone().requires_grad_() for value in theirs]
    directions_JP = torch.randn(4, 28, generator=draw, dtype=torch.float64)
    along_J = directions_JP @ torch.cat([value.flatten() for value in theirs])
    orth, norm = FORMS[form](along_J).sum(), torch.stack([value.norm() for value in theirs]).sum()
    (0.3 * orth + 0.7 * norm).backward()
    found = pulls(Directions(directions_JP), form, ours)
    (0.3 * found[0] + 0.7 * found[1]).backward()
    assert [value.item() for value in found] == pytest.approx([orth.item(), norm.item()])
    for our, their in zip(ours, theirs, strict=True):
        assert torch.allclose(our.grad, their.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["absolute", "square", "signed"])
def test_slopes_that_change_one_by_one_are_followed(form: str) -> None:
    draw = torch.Generator().manual_seed(2)
    directions = Directions(torch.randn(6, 10, generator=draw, dtype=torch.float64))
    at_P, flips, before_J = torch.randn(10, generator=draw, dtype=torch.float64), [], None
    for _ in range(200):
        at_P = (at_P + 0.1 * torch.randn(10, generator=draw, dtype=torch.float64)).requires_grad_()
        (grad_P,) = torch.autograd.grad(pulls(directions, form, [at_P])[0], at_P)
        at_P = at_P.detach()
        along_J = directions.rows_JP @ at_P
        slope_J = {"absolute": along_J.sign(), "square": 2 * along_J, "signed": torch.ones_like(along_J)}[form]
        assert torch.allclose(grad_P, slope_J @ directions.rows_JP, rtol=1e-12, atol=1e-12)
        flips.append(6 if before_J is None else int((slope_J != before_J).sum()))
        before_J = slope_J
    assert set(flips) == {"absolute": {0, 1, 2, 6}, "square": {6}, "signed": {0, 6}}[form]


def test_orthogonal_to_parameters_is_their_scalar_product() -> None:
    along = [sum((old[n] * NEW[n]).sum().item() for n in NEW) for old in OLD]
    task = Linear.task(4)
    raw = replace(RAW, to="parameters", form="absolute")
    assert orth(raw, OLD, task, NEW) == pytest.approx(sum(map(abs, along)))
    assert task.asked == []  # it needs no gradient


def three_tasks(strategy: HiFGO) -> tuple[list[State], list[Linear], list[list[bool]]]:
    """States and tasks, and for each step of each task whether it was penalised."""
    states, tasks, penalised = [State()], [Linear.task(seed) for seed in (1, 2, 3)], []
    for number, task in enumerate(tasks):
        penalised.append([])
        seen = penalised[-1]
        states.append(
            learn(strategy, task, states[-1], seed=number, seen=lambda log, s=seen: s.append(bool(log.penalty)))
        )
    return states[1:], tasks, penalised


def test_old_models_gradients_are_taken_once_and_only_the_second_stage_of_later_tasks_is_penalised() -> None:
    _, tasks, penalised = three_tasks(HiFGO())
    assert [task.asked for task in tasks] == [[], ["gradient"], ["gradient"] * 2]
    assert penalised == [[False] * 12, [False] * 12 + [True] * 12, [False] * 12 + [True] * 12]


def test_one_stage_has_the_old_adapters_in_and_the_penalty_on_throughout() -> None:
    memory = remembering(OLD)
    assert HiFGO(two_stages=False).stages(memory, closes_task=True) == (Stage(),)
    _, _, penalised = three_tasks(HiFGO(two_stages=False))
    assert penalised[1] == [True] * 12


@pytest.mark.parametrize("on_all", [False, True])
def test_the_first_stage_leaves_old_adapters_out_and_the_second_has_them_in(on_all: bool) -> None:
    first, second = HiFGO(stage1_on_all=on_all, stage2=0.2).stages(remembering(OLD), closes_task=True)
    assert (first.start, first.stop, first.old_adapters) == (0.0, 1.0 if on_all else 0.8, False)
    assert (second.start, second.stop, second.old_adapters) == (0.8, 1.0, True)
    assert HiFGO().stages(TaskMemory(), closes_task=True) == (Stage(),)


def test_each_first_stage_starts_where_the_last_first_stage_ended_if_they_are_chained() -> None:
    strategy, task = PAPER, Linear.task(2)
    first = learn(strategy, Linear.task(1))
    state = learn(strategy, task, first, seed=1)
    alone = learn(Strategy(), task.part(0, 0.8), State(first.params), seed=1)
    kept = state.memory.group(LAST)
    begun = strategy.begin(state.served, task.fresh(2), state.memory)
    assert all(torch.equal(begun[n], kept[n]) and not torch.equal(kept[n], state.params[n]) for n in kept)
    assert all(torch.equal(kept[n], alone.params[n]) for n in kept)  # plain training, without old adapters, on 80 %


def test_a_first_stage_starts_afresh_if_they_are_not_chained() -> None:
    strategy, task = HiFGO(chain=False), Linear.task(2)
    state = learn(strategy, Linear.task(1))
    begun = strategy.begin(state.served, task.fresh(2), state.memory)
    assert all(torch.equal(begun[name], value) for name, value in task.fresh(2).items())


@pytest.mark.parametrize("chain", [True, False])
def test_the_windows_of_a_task_after_its_first_are_stage_two_and_keep_the_first_stages_end(chain: bool) -> None:
    strategy, task = replace(PAPER, chain=chain), Linear.task(2)
    known = learn(strategy, Linear.task(1))
    first = learn(strategy, task, known, seed=1, closes_task=False)
    seen: list[bool] = []
    second = learn(strategy, task, first, seed=1, seen=lambda log: seen.append(bool(log.penalty)))
    assert seen
    assert all(seen)
    assert set(second.memory.tensors) == {"adapter/0", "adapter/1"} | ({LAST} if chain else set())
    assert not chain or all(torch.equal(second.memory.group(LAST)[n], v) for n, v in first.memory.group(LAST).items())
    assert all(torch.equal(second.memory.group("adapter/1")[n], v) for n, v in second.params.items())


@pytest.mark.parametrize("rank", [64, 2])
def test_what_is_served_is_the_sum_or_what_is_nearest_to_it(rank: int) -> None:
    served = HiFGO(served_rank=rank).served(NEW, remembering(OLD), closes_task=True)
    for layer in weights():
        whole = sum(update(layer, params) for params in [*OLD, NEW])
        left_out = torch.linalg.svdvals(whole)[rank:].norm()
        assert (whole - update(layer, served)).norm().item() == pytest.approx(left_out.item(), abs=1e-12)
        assert len(served[f"{layer}.lora_A.weight"]) == min(rank, 8)
        assert rank > 8 or left_out > 0.01


def old_loss(strategy: HiFGO, seed: int) -> float:
    """Loss of the first task's data on what is served after the second."""
    old = Linear.task(seed)
    first = learn(strategy, old, steps=60)
    assert old.loss(first.served) < 0.1
    return old.loss(learn(strategy, Linear.task(seed + 50), first, seed=1, steps=60).served).item()


def test_the_penalties_keep_old_losses_down_and_without_them_they_rise() -> None:
    without, orth, both = (
        sum(old_loss(replace(PAPER, orth=orth, norm=norm), seed) for seed in (1, 2, 3)) / 3
        for orth, norm in [(0.0, 0.0), (0.1, 0.0), (0.1, 0.05)]
    )
    assert without > 1.5
    assert orth < 0.85 * without
    assert both < 0.6 * without


@pytest.mark.parametrize("stage2", [0.0, 1.0, -0.1])
def test_a_second_stage_that_is_none_or_all_is_refused(stage2: float) -> None:
    with pytest.raises(ConfigError, match=r"stage2 .* \(0, 1\)"):
        HiFGO(stage2=stage2)
