from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.errors import Corrupt, NotFinite
from streamcl.store.memory import TaskMemory
from streamcl.store.sharding import shards_of, split


def memory(tasks: int = 2) -> TaskMemory:
    chance = torch.Generator().manual_seed(0)
    names = [f"layers.{i}.{part}" for i in range(4) for part in ("q.lora_A", "q.lora_B")]
    kept = TaskMemory(meta={"tasks": ["a", "b"], "embedding": [0.5, 1.0]})
    for task in range(tasks):
        tensors = {name: torch.randn(3, 5, generator=chance) for name in names}
        kept = kept.with_group(f"adapter/{task}", tensors)
    kept = kept.with_group("anchor", {names[0]: torch.randn(7, generator=chance).to(torch.bfloat16)})
    kept = kept.with_group("subspace/0", {"layers.0.q:sketch": torch.zeros(0, 5, dtype=torch.float64)})
    return kept.with_group("empty", {})


def same(one: TaskMemory, two: TaskMemory) -> bool:
    assert one.meta == two.meta
    assert {group: sorted(some) for group, some in one.tensors.items()} == {
        group: sorted(some) for group, some in two.tensors.items()
    }
    return all(
        torch.equal(t, two.tensors[group][name]) and t.dtype == two.tensors[group][name].dtype
        for group, some in one.tensors.items()
        for name, t in some.items()
    )


def test_memory_comes_back_bit_equal() -> None:
    data = memory().to_bytes()
    assert same(TaskMemory.from_bytes(data), memory())
    assert TaskMemory.from_bytes(data).to_bytes() == data
    assert TaskMemory.from_bytes(data).nbytes == memory().nbytes


def test_reading_does_not_copy() -> None:
    data = np.frombuffer(memory().to_bytes(), dtype=np.uint8)
    tensor = TaskMemory.from_bytes(memoryview(data)).group("adapter/0")["layers.0.q.lora_A"]
    assert data.ctypes.data <= tensor.data_ptr() < data.ctypes.data + data.nbytes


def test_adding_a_group_leaves_the_old_memory_alone() -> None:
    old = memory()
    new = old.with_group("anchor", {}).with_meta(tasks=[])
    assert new.meta["tasks"] == []
    assert old.meta["tasks"] == ["a", "b"]
    assert len(old.group("anchor")) == 1
    with pytest.raises(KeyError, match="no group 'x'"):
        old.group("x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_neither_written_nor_read(bad: float) -> None:
    with pytest.raises(NotFinite, match="layer"):
        TaskMemory({"anchor": {"layer": torch.tensor([1.0, bad])}}).to_bytes()
    data = bytearray(TaskMemory({"anchor": {"layer": torch.tensor([1.0, 2.0])}}).to_bytes())
    data[-4:] = struct.pack("<f", bad)
    with pytest.raises(Corrupt, match="NaN or infinity"):
        TaskMemory.from_bytes(bytes(data))


def test_large_finite_numbers_are_no_infinity() -> None:
    kept = TaskMemory({"anchor": {"layer": torch.full((9,), 3e38)}})
    assert same(TaskMemory.from_bytes(kept.to_bytes()), kept)


@settings(deadline=None)
@given(cut=st.integers(0, 3000))
def test_a_cut_file_is_corrupt(cut: int) -> None:
    data = memory().to_bytes()
    with pytest.raises(Corrupt):
        TaskMemory.from_bytes(data[: min(cut, len(data) - 1)])


@pytest.mark.parametrize(
    "change",
    [{"shape": [3, 6]}, {"shape": [-3, -5]}, {"data_offsets": [0, 10**9]}, {"dtype": "F8_E4M3"}, {"shape": "x"}],
)
def test_a_header_that_lies_is_corrupt(change: dict[str, object]) -> None:
    data = TaskMemory({"anchor": {"layer": torch.zeros(3, 5)}}).to_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header["anchor|layer"].update(change)
    text = json.dumps(header).encode()
    with pytest.raises(Corrupt):
        TaskMemory.from_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_tensors_that_share_memory_are_written_both() -> None:
    shared = torch.arange(4.0)
    kept = TaskMemory({"a": {"x": shared, "y": shared}})
    assert same(TaskMemory.from_bytes(kept.to_bytes()), kept)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_join_to_the_whole_and_keep_a_parameters_groups_together(shards: int) -> None:
    parts = memory().split(shards)
    assert same(TaskMemory.join(parts), memory())
    assert TaskMemory.join(parts[::-1]).to_bytes() == memory().to_bytes()
    for part in parts:
        assert set(part.group("adapter/0")) == set(part.group("adapter/1"))


def test_two_to_five_shards_moves_at_most_65_percent_and_only_to_new_ones() -> None:
    names = [f"model.layers.{i}.{m}.lora_{x}" for i in range(200) for m in "qkvogud" for x in "AB"]
    before, after = shards_of(names, 2), shards_of(names, 5)
    moved = before != after
    assert moved.mean() <= 0.65
    assert (after[moved] >= 2).all()
    assert np.bincount(after).min() > 0.8 * len(names) / 5


def test_parts_of_one_parameters_state_stay_together() -> None:
    assert len(set(shards_of(["q.weight", "q.weight:sketch", "q.weight:certificate"], 64).tolist())) == 1


def test_splitting_keeps_every_item_once() -> None:
    items = {f"p{i}": i for i in range(50)}
    parts = split(items, 3)
    assert {name: value for part in parts for name, value in part.items()} == items
    assert sum(map(len, parts)) == 50
    with pytest.raises(ValueError, match="at least 1"):
        split(items, 0)
