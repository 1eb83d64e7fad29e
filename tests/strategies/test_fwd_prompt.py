"""Fwd-Prompt's theorems, in float64 under AdamW with weight decay; a linear task plays model, data and probe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from streamcl.errors import ConfigError
from streamcl.store.memory import TaskMemory
from streamcl.strategies import FwdPrompt, Params, Stage
from streamcl.strategies.fwd_prompt import OLD, grown, leading, orth, without
from streamcl.train.step import train_step

D, VALUES, KEYS = 12, "prompts.values", "prompts.keys_text"


def rows(seed: int, rank: int, count: int = 40) -> Tensor:
    """Inputs [count, D] in a random subspace of `rank` dimensions."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(count, rank, generator=generator, dtype=torch.float64)
    return left @ torch.randn(rank, D, generator=generator, dtype=torch.float64)


@dataclass
class Linear:
    """Old and new answers are inputs [n, D] times parameters: what a projection must hold still."""

    inputs: Tensor
    generic: Tensor = field(default_factory=lambda: torch.eye(D, dtype=torch.float64)[:6])

    def loss(self, params: Params) -> Tensor:
        return sum(((self.outputs(value) - 1) ** 2).mean() for value in params.values())

    def outputs(self, value: Tensor) -> Tensor:
        return value.reshape(-1, D) @ self.inputs.T

    def moments(self) -> Params:
        return dict.fromkeys((VALUES, KEYS), self.inputs.T @ self.inputs)

    def prior(self) -> Params:
        return {VALUES: self.generic.T @ self.generic}


def start(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {VALUES: (3, 2, D), KEYS: (3, D)}
    return {n: nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for n, s in shapes.items()}


def learn(strategy: FwdPrompt, task: Linear, params: dict[str, nn.Parameter], memory: TaskMemory) -> TaskMemory:
    """Trains `params` on `task`, in place."""
    probe: Any = task
    plan = strategy.prepare(Stage(), dict(params), memory, probe)
    optimizer = torch.optim.AdamW(params.values(), lr=0.05, weight_decay=0.1)
    for step in range(40):
        draw = torch.Generator().manual_seed(step)
        train_step(
            lambda: task.loss(dict(params)), params, optimizer, strategy=strategy, plan=plan, draw=draw, clip=1e9
        )
    values = {name: value.detach() for name, value in params.items()}
    return strategy.consolidate(values, memory, probe, plan, closes_task=True)


class OnTheGradient(FwdPrompt):
    """The broken twin: the same projection, before AdamW."""

    projects: ClassVar[bool] = False

    def guide(self, grads: Params, params: Params, plan: Any, draw: torch.Generator) -> Params:
        return {**grads, **FwdPrompt.project(self, grads, plan)}


EXACT: dict[str, Any] = {"energy": 1.0, "energy_keys": 1.0, "least": 1}


def second_task(strategy: FwdPrompt) -> tuple[Params, float, dict[str, float]]:
    """The second task's update, the leak that the strategy tells, and how far the first task's outputs moved."""
    params, old, new = start(), Linear(rows(1, 4)), Linear(rows(2, 6))
    memory = learn(strategy, old, params, TaskMemory())
    before = {name: value.detach().clone() for name, value in params.items()}
    plan = strategy.prepare(Stage(), dict(params), memory, new)  # type: ignore[arg-type]
    learn(strategy, new, params, memory)
    update = {name: value.detach() - before[name] for name, value in params.items()}
    moved = {n: float(old.outputs(u).norm() / (old.inputs.norm() * u.norm())) for n, u in update.items()}
    return update, strategy.leak(update, plan), moved


@pytest.mark.parametrize("projection", ["residual", "both"])
def test_old_outputs_do_not_move_under_adamw_and_do_when_the_gradient_is_projected(projection: Any) -> None:
    update, leak, moved = second_task(FwdPrompt(projection=projection, **EXACT))
    assert leak < 1e-10
    assert max(moved.values()) < 1e-10
    assert all(value.norm() > 0.1 for value in update.values())  # and yet there is learning
    _, leak, moved = second_task(OnTheGradient(projection=projection, **EXACT))
    assert leak > 1e-2
    assert min(moved.values()) > 1e-3


def test_without_projection_old_outputs_move_and_nothing_is_kept() -> None:
    strategy = FwdPrompt(projection="none")
    _, leak, moved = second_task(strategy)
    assert min(moved.values()) > 1e-2
    assert leak == 0.0
    assert not learn(strategy, Linear(rows(1, 4)), start(), TaskMemory()).tensors


def test_both_stays_within_what_pre_training_knows_and_residual_does_not() -> None:
    outside = torch.eye(D, dtype=torch.float64)[:, 6:]
    beyond = {}
    for projection in ("residual", "both"):
        update, _, _ = second_task(FwdPrompt(projection=projection, energy_prior=1.0, **EXACT))  # type: ignore[arg-type]
        values = update[VALUES]
        reused = orth(without(torch.eye(D, dtype=torch.float64)[:, :6], orth(rows(1, 4).T)))
        beyond[projection] = float((values - values @ reused @ reused.T).norm() / values.norm())
        assert float((update[KEYS] @ outside).norm()) > 1e-3  # keys have no pre-trained space
    assert beyond["both"] < 1e-10
    assert beyond["residual"] > 1e-2


def test_both_falls_back_to_residual_where_little_is_left_to_reuse() -> None:
    few = FwdPrompt(projection="both", energy=1.0, energy_keys=1.0, least=10)
    residual = FwdPrompt(projection="residual", energy=1.0, energy_keys=1.0)
    ours, theirs = second_task(few)[0], second_task(residual)[0]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    enough = second_task(FwdPrompt(projection="both", **EXACT))[0]
    assert not torch.equal(enough[VALUES], theirs[VALUES])


def test_exempt_frees_the_directions_that_pre_training_shares_and_holds_the_others() -> None:
    strategy = FwdPrompt(projection="exempt", energy_prior=1.0, **EXACT)
    update, leak, _ = second_task(strategy)
    old, prior = orth(rows(1, 4).T), torch.eye(D, dtype=torch.float64)[:, :6]
    held = orth(without(old, prior))
    assert 0 < held.shape[1] < D
    assert float((update[VALUES] @ held).norm()) < 1e-10
    assert leak < 1e-10
    assert float((update[VALUES] @ old).norm()) > 1e-2  # what is shared is free


@pytest.mark.parametrize("projection", ["both", "residual", "exempt"])
def test_the_first_task_is_plain_prompt_tuning_bit_for_bit(projection: Any) -> None:
    ours, plain, confined = start(), start(), start()
    learn(FwdPrompt(projection=projection), Linear(rows(1, 4)), ours, TaskMemory())
    learn(FwdPrompt(projection="none"), Linear(rows(1, 4)), plain, TaskMemory())
    assert all(torch.equal(ours[name], plain[name]) for name in ours)
    learn(FwdPrompt(projection="both", first=True, least=1), Linear(rows(1, 4)), confined, TaskMemory())
    moved = (confined[VALUES] - start()[VALUES]).detach()
    assert not torch.equal(confined[VALUES], plain[VALUES])
    assert float(moved[..., 6:].norm()) < 1e-10  # to what pre-training knows


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.97, 1.0])
def test_the_old_space_grows_as_a_reference_svd_of_the_rows_says(energy: float) -> None:
    """GPM's rule on H itself: the fewest right singular vectors of H − H U Uᵀ that, with U, hold `energy` of ‖H‖²."""
    old = torch.empty(D, 0, dtype=torch.float64)
    for seed in range(3):
        h_ND = rows(seed, 5) * 0.6 ** torch.arange(D)
        rest = h_ND - h_ND @ old @ old.T
        _, sizes, directions = torch.linalg.svd(rest, full_matrices=False)
        held = h_ND.norm() ** 2 - rest.norm() ** 2 + torch.cat([torch.zeros(1), sizes.square()]).cumsum(0)
        need = int((held < energy * h_ND.norm() ** 2 * (1 - 1e-9)).sum())
        expected = torch.linalg.qr(torch.cat([old, directions[:need].T], 1))[0]
        old = grown(old, h_ND.T @ h_ND, energy, most=D - 1)
        assert old.shape == expected[:, : D - 1].shape
        assert torch.allclose(old.T @ old, torch.eye(old.shape[1], dtype=torch.float64), atol=1e-12)
        if old.shape[1] == expected.shape[1]:
            assert torch.allclose(old @ old.T, expected @ expected.T, atol=1e-6)


def test_the_old_space_never_fills_the_whole_and_old_directions_stay() -> None:
    strategy, memory, params = FwdPrompt(energy=1.0, energy_keys=1.0, cap=0.5), TaskMemory(), start()
    seen = []
    for seed in range(4):
        memory = learn(strategy, Linear(rows(seed, 4)), params, memory)
        seen.append(memory.group(OLD)[VALUES])
    assert [basis.shape[1] for basis in seen] == [4, 6, 6, 6]
    assert float(without(seen[0], seen[-1]).norm()) < 1e-10


def test_the_fewest_directions_hold_the_share() -> None:
    moment = torch.diag(torch.tensor([6.0, 3.0, 1.0, 0.0], dtype=torch.float64))
    assert [leading(moment, share).shape[1] for share in (0.5, 0.6, 0.61, 0.9, 1.0)] == [1, 1, 2, 2, 3]


def test_only_a_closed_task_counts_and_state_survives_save_and_load() -> None:
    strategy, params = FwdPrompt(), start()
    task: Any = Linear(rows(1, 4))
    values = {name: value.detach() for name, value in params.items()}
    assert not strategy.consolidate(values, TaskMemory(), task, None, closes_task=False).tensors
    memory = strategy.consolidate(values, TaskMemory(), task, None, closes_task=True)
    again = TaskMemory.from_bytes(memory.to_bytes())
    results = []
    for some in (memory, again, memory):
        params = start()
        learn(strategy, Linear(rows(2, 6)), params, some)
        results.append(params[VALUES].detach())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_arguments_are_not_changed() -> None:
    strategy, params, task = FwdPrompt(**EXACT), start(), Linear(rows(1, 4))
    memory = learn(strategy, task, params, TaskMemory())
    kept = {name: value.clone() for name, value in memory.group(OLD).items()}
    plan = strategy.prepare(Stage(), dict(params), memory, task)  # type: ignore[arg-type]
    update = {name: torch.ones_like(value) for name, value in params.items()}
    strategy.project(update, plan)
    learn(strategy, Linear(rows(2, 6)), params, memory)
    assert all(torch.equal(value, torch.ones_like(value)) for value in update.values())
    assert all(torch.equal(kept[name], value) for name, value in memory.group(OLD).items())


@pytest.mark.parametrize(
    "wrong", [{"energy": 0.0}, {"energy_keys": 1.1}, {"energy_prior": -1.0}, {"cap": 1.0}, {"least": 0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FwdPrompt(**wrong)
