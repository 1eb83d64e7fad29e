from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.errors import ConfigError, Corrupt
from streamcl.store.reservoir import Reservoir, equal_quotas
from streamcl.types import Rows

KEY = b"a secret of this stream"


def ids(n: int, prefix: str = "s") -> list[str]:
    return [f"{prefix}/{i}" for i in range(n)]


def offered(names: list[str], *, capacity: int = 40, task: str = "t", **kinds: object) -> Reservoir:
    reservoir = Reservoir(capacity, key=KEY, **kinds)  # type: ignore[arg-type]
    give(reservoir, names, task=task)
    return reservoir


def give(reservoir: Reservoir, names: list[str], *, task: str = "t", batch: int = 64) -> None:
    for at in range(0, len(names), batch):
        some = names[at : at + batch]
        rows = [int(name.split("/")[1]) for name in some]
        keys = [f"{name.split('/')[0]}-{row // 100}" for name, row in zip(some, rows, strict=True)]
        reservoir.offer(task, some, keys, rows, [name.split("/")[0] for name in some])


def pairs(rows: list[Rows]) -> set[tuple[str, int]]:
    return {(part.key, row) for part in rows for row in part.rows}


def everything(reservoir: Reservoir) -> set[tuple[str, int]]:
    return pairs(reservoir.sample(len(reservoir), seed=0))


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 400),
    shards=st.sampled_from([1, 3, 8]),
    repeats=st.integers(1, 4),
    per_source=st.sampled_from([1.0, 0.3]),
    capacity=st.sampled_from([4, 40]),
    seed=st.integers(0, 2**32),
)
def test_state_is_the_same_for_any_shards_order_repeats_and_restarts(
    n: int, shards: int, repeats: int, per_source: float, capacity: int, seed: int
) -> None:
    names = [f"{'abcde'[i % 5]}/{i}" for i in range(n)]
    chance = random.Random(seed)
    parts = [Reservoir(capacity, key=KEY, per_source=per_source) for _ in range(shards)]
    deliveries = [name for name in names for _ in range(chance.randint(1, repeats))]
    chance.shuffle(deliveries)
    for at in range(0, len(deliveries), 50):
        some = deliveries[at : at + 50]
        for shard, part in enumerate(parts):
            give(part, [name for name in some if int(name.split("/")[1]) % shards == shard])
        if chance.random() < 0.3:  # one shard dies and comes back from its snapshot
            dead = chance.randrange(shards)
            again = Reservoir(capacity, key=KEY, per_source=per_source)
            again.restore(parts[dead].snapshot())
            parts[dead] = again
    chance.shuffle(parts)
    for part in parts[1:]:
        parts[0].merge(part)
    assert parts[0].snapshot() == offered(names, capacity=capacity, per_source=per_source).snapshot()


@pytest.mark.parametrize("per_source", [1.0, 0.3])
def test_resharding_from_two_to_five_loses_nothing_and_goes_on_as_if_unsharded(per_source: float) -> None:
    early, late = ids(2000, "a") + ids(500, "b"), ids(1000, "c") + ids(1500, "b")
    two = [Reservoir(200, key=KEY, per_source=per_source) for _ in range(2)]
    route(two, early)
    two[0].merge(two[1])
    five = two[0].split(5)
    assert min(map(len, five)) > 10
    route(five, late)
    for part in five[1:]:
        five[0].merge(part)
    assert five[0].snapshot() == offered(early + late, capacity=200, per_source=per_source).snapshot()
    names = ids(20_000)
    assert (two[0].shards_of(names, 2) != two[0].shards_of(names, 5)).mean() <= 0.65


def route(shards: list[Reservoir], names: list[str]) -> None:
    owners = shards[0].shards_of(names, len(shards))
    for shard, reservoir in enumerate(shards):
        give(reservoir, [name for name, owner in zip(names, owners, strict=True) if owner == shard])


def test_offering_again_changes_nothing() -> None:
    reservoir = offered(ids(1000))
    before = reservoir.snapshot()
    give(reservoir, ids(1000)[::-1])
    assert reservoir.snapshot() == before


def test_an_id_twice_in_one_batch_counts_once() -> None:
    reservoir = Reservoir(10, key=KEY, heldout=0.0)
    reservoir.offer("t", ["x", "x", "y"], ["f", "f", "f"], [0, 0, 1])
    assert len(reservoir) == 2


def test_another_secret_keeps_other_rows() -> None:
    other = Reservoir(40, key=b"another")
    give(other, ids(1000))
    assert len(everything(other) & everything(offered(ids(1000)))) < 12


def test_snapshot_does_not_hold_the_secret_and_restores_bit_equal() -> None:
    reservoir = offered(ids(1000))
    data = reservoir.snapshot()
    assert KEY not in data
    again = Reservoir(40, key=KEY)
    again.restore(data)
    assert again.snapshot() == data
    assert again.sample(25, 3) == reservoir.sample(25, 3)


def test_a_snapshot_of_another_secret_or_heldout_share_is_refused() -> None:
    data = offered(ids(100)).snapshot()
    with pytest.raises(ConfigError, match="fixed for the life"):
        Reservoir(40, key=b"another").restore(data)
    with pytest.raises(ConfigError, match="heldout"):
        Reservoir(40, key=KEY, heldout=0.2).restore(data)


@pytest.mark.parametrize("cut", [0, 10, 500])
def test_a_damaged_snapshot_is_corrupt(cut: int) -> None:
    with pytest.raises(Corrupt):
        Reservoir(40, key=KEY).restore(offered(ids(100)).snapshot()[:cut])


def test_heldout_rows_are_never_sampled_and_are_the_asked_share() -> None:
    names = ids(5000)
    reservoir = offered(names, capacity=5000)
    held = reservoir.is_heldout(names)
    assert abs(held.mean() - 0.1) < 0.02
    expected = {(f"s-{i // 100}", i) for i in np.flatnonzero(held)}
    assert pairs(reservoir.heldout("t", 5000, 0)) == expected
    assert not everything(reservoir) & expected
    assert reservoir.heldout("unknown", 5, 0) == []


def test_tasks_share_a_draw_equally_and_small_ones_give_all_they_have() -> None:
    reservoir = Reservoir(100, key=KEY, heldout=0.0)
    for task, n in [("a", 1000), ("b", 1000), ("c", 5)]:
        give(reservoir, ids(n, task), task=task)
    drawn = pairs(reservoir.sample(50, 1))
    sizes = {task: sum(key.startswith(task) for key, _ in drawn) for task in "abc"}
    assert sizes["c"] == 5
    assert sorted((sizes["a"], sizes["b"])) == [22, 23]
    assert not any(key.startswith("a") for key, _ in pairs(reservoir.sample(50, 1, exclude="a")))
    assert reservoir.tasks() == {"a": 100, "b": 100, "c": 5}


@given(n=st.integers(0, 500), sizes=st.lists(st.integers(0, 90), max_size=9), seed=st.integers(0, 99))
def test_quotas_give_all_that_can_be_given_and_differ_by_one_at_most(n: int, sizes: list[int], seed: int) -> None:
    tasks = {f"t{i}": size for i, size in enumerate(sizes)}
    quotas = equal_quotas(n, tasks, seed)
    assert sum(quotas.values()) == min(n, sum(sizes))
    assert all(quotas[task] <= size for task, size in tasks.items())
    free = [quotas[task] for task, size in tasks.items() if quotas[task] < size]
    assert not free or max(free) - min(free) <= 1
    assert not free or all(quotas[task] <= max(free) for task in tasks)


def test_a_draw_is_grouped_sorted_without_repeats_and_moves_with_the_seed() -> None:
    reservoir = offered(ids(3000), capacity=1000)
    drawn = reservoir.sample(300, 7)
    assert [part.key for part in drawn] == sorted({part.key for part in drawn})
    assert all(list(part.rows) == sorted(set(part.rows)) for part in drawn)
    assert sum(map(len, drawn)) == 300
    assert reservoir.sample(300, 7) == drawn
    assert reservoir.sample(300, 8) != drawn
    assert reservoir.sample(0, 7) == []


def test_one_source_cannot_take_more_than_its_share() -> None:
    reservoir = offered(ids(5000, "loud") + ids(50, "quiet"), capacity=100, per_source=0.25, heldout=0.0)
    kept = everything(reservoir)
    assert sum(key.startswith("loud") for key, _ in kept) == 25
    assert sum(key.startswith("quiet") for key, _ in kept) == 25


def test_purge_drops_a_source_and_keeps_the_threshold() -> None:
    reservoir = offered(ids(2000, "a") + ids(2000, "b"), capacity=100, heldout=0.0)
    before = everything(reservoir)
    gone = reservoir.purge("b")
    assert gone == sum(key.startswith("b") for key, _ in before) > 0
    assert everything(reservoir) == {(key, row) for key, row in before if key.startswith("a")}
    give(reservoir, ids(2000, "a"))  # let go before, so not let in now
    assert len(reservoir) == 100 - gone
    give(reservoir, ids(500, "c"))
    assert 100 - gone < len(reservoir) < 100
    never_b = offered(ids(2000, "a") + ids(500, "c"), capacity=len(reservoir), heldout=0.0)
    assert everything(reservoir) == everything(never_b)  # the newcomers did not simply fill the gap


def test_a_merge_keeps_the_lower_threshold() -> None:
    full = offered(ids(2000, "a"), capacity=100, heldout=0.0)
    full.purge("a")
    empty = Reservoir(100, key=KEY, heldout=0.0)
    empty.merge(full)
    give(empty, ids(2000, "a"))
    assert everything(empty) == everything(offered(ids(2000, "a"), capacity=100, heldout=0.0))
    assert len(empty) == 100  # and not the next hundred, which were let go
    above = offered(ids(200, "c"), capacity=1000, heldout=0.0)
    above.merge(full)
    assert 0 < len(above) < 50  # rows above the threshold of the other cannot stay


def test_heavier_rows_are_kept_more_often() -> None:
    reservoir = Reservoir(1000, key=KEY, heldout=0.0)
    names = ids(10_000)
    weights = np.where(np.arange(10_000) < 5000, 3.0, 1.0)
    reservoir.offer("t", names, ["f"] * 10_000, range(10_000), weights=weights)
    heavy = sum(row < 5000 for _, row in everything(reservoir))
    assert abs(heavy / 1000 - 0.74) < 0.05  # 3 : 1, a little less as the heavy ones run out
    with pytest.raises(ValueError, match="above 0"):
        reservoir.offer("t", ["z"], ["f"], [0], weights=np.array([0.0]))


@pytest.mark.parametrize("kinds", [{"capacity": 0}, {"heldout": 1.0}, {"per_source": 0.0}])
def test_settings_out_of_range_are_refused(kinds: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="capacity"):
        Reservoir(**{"capacity": 4, "key": KEY, **kinds})  # type: ignore[arg-type]
