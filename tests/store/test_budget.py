from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.store.budget import Pair, fit, keep_adapters, merge_bases, pairs_of, rank_for, recompress
from streamcl.store.memory import TaskMemory


def stack(*ranks: int, seed: int = 0, inputs: int = 20, outputs: int = 30) -> list[Pair]:
    g = torch.Generator().manual_seed(seed)
    shapes = [((r, inputs), (outputs, r)) for r in ranks]
    return [(torch.randn(a, generator=g).double(), torch.randn(b, generator=g).double()) for a, b in shapes]


def total(pairs: list[Pair]) -> torch.Tensor:
    return sum((b.double() @ a.double() for a, b in pairs), torch.zeros(30, 20, dtype=torch.float64))


def test_merged_forward_equals_unmerged_at_full_rank() -> None:
    pairs = stack(3, 4, 5)
    x = torch.randn(7, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a, b, error = recompress(pairs, 12)
    assert torch.allclose(x @ a.T @ b.T, sum(x @ a.T @ b.T for a, b in pairs), atol=1e-10)
    assert error == 0.0


@settings(deadline=None, max_examples=40)
@given(ranks=st.lists(st.integers(1, 9), min_size=1, max_size=5), rank=st.integers(1, 25), seed=st.integers(0, 999))
def test_recompress_is_the_best_of_its_rank_and_says_its_error(ranks: list[int], rank: int, seed: int) -> None:
    pairs = stack(*ranks, seed=seed)
    a, b, error = recompress(pairs, rank)
    whole = total(pairs)
    assert float((whole - b @ a).norm() / whole.norm()) == pytest.approx(error, abs=1e-9)
    best = torch.linalg.svdvals(whole)[rank:].norm() / whole.norm()
    assert error == pytest.approx(float(best), abs=1e-9)
    assert len(a) <= rank


def test_float32_goes_in_and_comes_out() -> None:
    a, b, _ = recompress([(a.float(), b.float()) for a, b in stack(2, 2)], 4)
    assert a.dtype == b.dtype == torch.float32


def test_the_least_rank_keeps_the_error() -> None:
    pairs = stack(6, 6)
    rank = rank_for(pairs, 0.2)
    assert recompress(pairs, rank)[2] <= 0.2 < recompress(pairs, rank - 1)[2]


def test_nothing_is_merged_within_the_budget() -> None:
    pairs = stack(4, 4, 4)
    kept, error = fit(pairs, rank=12, error=0.0)
    assert error == 0.0
    assert all(one is two for one, two in zip(kept, pairs, strict=True))


def test_the_oldest_merge_and_the_newer_stay_as_they_are() -> None:
    pairs = stack(4, 4, 4, 4)
    kept, error = fit(pairs, rank=13, error=0.0)
    assert [len(a) for a, _ in kept] == [5, 4, 4]
    assert kept[1] is pairs[2]
    assert kept[2] is pairs[3]
    oldest = total(pairs[:2])
    assert float((total(kept[:1]) - oldest).norm() / oldest.norm()) == pytest.approx(error, abs=1e-9)


def test_pairs_that_repeat_each_other_merge_without_loss() -> None:
    (pair,) = stack(4)
    kept, error = fit([pair] * 6, rank=4, error=1e-9)
    assert [len(a) for a, _ in kept] == [4]
    assert error < 1e-12
    assert torch.allclose(total(kept), 6 * total([pair]))


@settings(deadline=None, max_examples=40)
@given(ranks=st.lists(st.integers(1, 9), min_size=1, max_size=8), rank=st.integers(1, 40))
def test_the_budget_always_holds_and_the_error_bounds_what_is_lost(ranks: list[int], rank: int) -> None:
    pairs = stack(*ranks)
    kept, error = fit(pairs, rank=rank, error=0.05)
    assert sum(len(a) for a, _ in kept) <= max(rank, 1)
    newer = len(kept) - 1
    merged = total(pairs[: len(pairs) - newer])
    assert float((total(kept[:1]) - merged).norm()) <= error * float(merged.norm()) * 1.5 + 1e-9


def test_a_thousand_tasks_take_no_more_than_the_budget() -> None:
    kept: list[Pair] = []
    for task in range(1000):
        kept, _ = fit([*kept, *stack(2, seed=task, inputs=6, outputs=6)], rank=8, error=0.01)
        assert sum(len(a) for a, _ in kept) <= 8


def test_bases_whose_span_fits_are_kept_whole() -> None:
    g = torch.Generator().manual_seed(0)
    common = torch.linalg.qr(torch.randn(20, 4, generator=g)).Q
    turned = common @ torch.linalg.qr(torch.randn(4, 4, generator=g)).Q
    basis, error = merge_bases([common, turned], 6)
    assert basis.shape == (20, 4)
    assert error == 0.0
    assert torch.allclose(basis @ basis.T, common @ common.T, atol=1e-5)


def test_bases_that_do_not_fit_say_what_they_miss() -> None:
    eye = torch.eye(8)
    basis, error = merge_bases([eye[:, :4], eye[:, 3:6]], 4)  # one direction is in both
    assert basis.shape == (8, 4)
    assert error == pytest.approx((2 / 7) ** 0.5)
    assert float((basis.T @ eye[:, 3]).norm()) == pytest.approx(1.0)


def adapter(pairs: list[Pair]) -> dict[str, torch.Tensor]:
    """Layers with PEFT's names."""
    return {f"layer.{i}.lora_{ab}.weight": t for i, pair in enumerate(pairs) for ab, t in zip("AB", pair, strict=True)}


def test_a_memory_keeps_its_adapters_within_the_rank_and_says_what_it_lost() -> None:
    layers = 60
    memory = TaskMemory({"anchor": {"x": torch.ones(2)}}, {"tasks": ["a"]})
    exact = [torch.zeros(30, 20, dtype=torch.float64) for _ in range(layers)]
    for task in range(12):
        pairs = stack(*[3] * layers, seed=task)
        if task < 9:
            exact = [whole + b @ a for whole, (a, b) in zip(exact, pairs, strict=True)]
        memory = memory.with_group(f"adapter/{task}", adapter(pairs))
        memory = keep_adapters(memory, rank=12, error=0.01)
        stacks = [pairs_of(some) for name, some in memory.tensors.items() if name.startswith("adapter/")]
        assert all(sum(len(pairs[layer][0]) for pairs in stacks) <= 12 for layer in stacks[0])
    assert sorted(memory.tensors) == ["adapter/10", "adapter/11", "adapter/8", "adapter/9", "anchor", "merged"]
    stated = memory.meta["merged"]
    assert (stated["group"], stated["oldest"], stated["adapters"]) == ("adapter/8", "adapter/0", 9)
    assert memory.meta["tasks"] == ["a"]
    kept = [b @ a for a, b in pairs_of(memory.group("adapter/8")).values()]
    missed = sum(float((k - e).norm()) ** 2 for k, e in zip(kept, exact, strict=True)) ** 0.5
    size = sum(float(e.norm()) ** 2 for e in exact) ** 0.5
    assert 0.3 < missed / size < 1
    assert stated["error"] == pytest.approx(missed / size, rel=0.15)
    assert same_bytes(TaskMemory.from_bytes(memory.to_bytes()), memory)


def test_adapters_that_share_their_directions_merge_without_loss_and_it_says_so() -> None:
    (one,) = stack(3)
    memory = TaskMemory()
    for task in range(6):
        memory = memory.with_group(f"adapter/{task}", adapter([(one[0], one[1] * (task + 1))]))
        memory = keep_adapters(memory, rank=6, error=1e-9)
    assert memory.meta["merged"]["adapters"] == 5
    assert memory.meta["merged"]["error"] < 1e-9


def same_bytes(one: TaskMemory, two: TaskMemory) -> bool:
    return one.to_bytes() == two.to_bytes()


def test_a_memory_without_adapters_or_with_one_stays_as_it_is() -> None:
    empty = TaskMemory()
    assert keep_adapters(empty, rank=1, error=0.0) is empty
    one = empty.with_group("adapter/0", adapter(stack(3, 3)))
    assert keep_adapters(one, rank=1, error=0.0) is one
