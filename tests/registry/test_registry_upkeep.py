"""Collection keeps what is needed and nothing else; recovery goes back past what is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamcl.errors import Corrupt, Fenced
from streamcl.registry.backends import LocalStore, uuid7
from streamcl.registry.log import Log, commit_key
from streamcl.registry.upkeep import collect, recover
from streamcl.registry.versions import Registry
from streamcl.store.reservoir import Reservoir
from streamcl.testing.stores import FaultyStore, quick


def writer(store: FaultyStore) -> Registry:
    registry = Registry(quick(store), "model")
    registry.log.acquire("a")
    return registry


def grown(count: int) -> tuple[FaultyStore, Registry]:
    """`count` data commits, a second apart: each with an object that names another, which no record names."""
    store = FaultyStore()
    store.now = 1.0
    registry = writer(store)
    for i in range(count):
        add(store, registry, i)
    return store, registry


def add(store: FaultyStore, registry: Registry, i: int) -> None:
    assert store.now is not None
    store.now += 1
    leaf = registry.log.put_object("", b"leaf %d" % i, "arrow")["key"]
    ref = registry.log.put_object("learner", json.dumps({"rows": [leaf]}).encode(), "json")
    registry.log.append("data", state={"refs": {"learner": ref}, "i": i})


def publish(registry: Registry, window: int) -> int:
    files = {"adapter_model.safetensors": b"weights %d" % window}
    return registry.publish(files, window=window, task="t", base_digest="b", scores={}).number


def test_the_last_commits_and_what_their_objects_name_are_kept() -> None:
    store, registry = grown(10)
    leaves = store.list("data")
    swept = collect(registry, keep=4)
    assert len(swept) == 12
    assert store.list("data") == sorted(set(leaves) - set(swept))
    for record in list(registry.log.back())[1:5]:
        learner = json.loads(registry.log.get_object(record.state["refs"]["learner"]))
        assert store.get(learner["rows"][0]) == b"leaf %d" % record.state["i"]
    assert collect(registry, keep=4) == []


def test_what_is_on_its_way_into_a_commit_is_kept() -> None:
    store, registry = grown(3)
    early = registry.log.put_object("adapter", b"trained", "safetensors")["key"]
    add(store, registry, 3)
    assert early not in collect(registry, keep=2)
    add(store, registry, 4)
    add(store, registry, 5)
    assert early in collect(registry, keep=2), "and goes once it is older than the last commits"


def test_the_rows_of_a_reservoir_snapshot_are_found_in_it() -> None:
    store = FaultyStore()
    store.now = 1.0
    registry = writer(store)
    media = [registry.log.put_object("", b"media %d" % i, "arrow")["key"] for i in range(20)]
    reservoir = Reservoir(100, key=b"k" * 32)
    reservoir.offer("t", [f"id {i}" for i in range(20)], media, [0] * 20, [""] * 20)
    ref = registry.log.put_object("replay", reservoir.snapshot(), "arrow")
    for i in range(3):
        store.now += 1
        registry.log.append("data", state={"refs": {"replay/0": ref}, "i": i})
    assert collect(registry, keep=1) == []
    assert all(store.get(key) for key in media)


def test_versions_in_use_are_kept_and_the_others_are_swept() -> None:
    store, registry = grown(0)
    for window in range(1, 7):
        registry.promote(publish(registry, window))
    registry.promote(2, alias="pinned")
    add(store, registry, 0)
    swept = collect(registry, keep=1)
    left = [v.number for v in registry.versions() if store.get(f"{v.path}/manifest.json")]
    assert left == [2, 5, 6], "pinned; what a rollback goes to; live"
    assert len(swept) == 3 * 2
    assert registry.rollback().number == 5
    with pytest.raises(Corrupt, match="manifest"):
        registry.read(registry.get(1))


def test_a_version_that_comes_again_after_a_collection_gets_a_folder_of_its_own() -> None:
    store, registry = grown(0)
    publish(registry, 1)
    publish(registry, 2)
    add(store, registry, 0)
    collect(registry, keep=1)
    files = {"adapter_model.safetensors": b"weights 1"}
    again = registry.publish(files, window=3, task="t", base_digest="b", scores={})
    assert again.digest == registry.get(1).digest
    assert again.path != registry.get(1).path, "the collector may have been stopped half-way"
    assert registry.read(again) == files


def test_only_the_writer_collects_and_a_zombie_deletes_nothing() -> None:
    store, zombie = grown(5)
    with pytest.raises(Fenced):
        collect(Registry(quick(store), "model"), keep=1)
    for fault in ("preceded", "overtaken"):
        zombie.log.acquire("a")
        store.faults, store.intruder = [fault], lambda: quick(store).acquire("heir")
        there = set(store.list("data"))
        with pytest.raises(Fenced):
            collect(zombie, keep=1)
        assert set(store.list("data")) == there


def test_recovery_never_goes_below_what_was_kept() -> None:
    store, registry = grown(6)
    collect(registry, keep=2)
    collect(registry, keep=6)
    for record in [record for record in registry.log.back() if record.n >= 6]:
        store.delete(record.state["refs"]["learner"]["key"])
    with pytest.raises(Corrupt, match="no commit of 6 to 11 is intact"):
        recover(registry)


def test_a_damaged_commit_of_the_collection_does_not_make_recovery_forget_what_was_kept() -> None:
    store, registry = grown(6)
    collect(registry, keep=2)
    head = registry.log.head()
    assert head is not None
    assert head.kind == "gc"
    store.objects[commit_key(head.n)] = b"{"
    record = recover(writer(store))
    assert record is not None
    assert record.state["collected"] == head.state["collected"] > 1


def test_temporary_files_of_killed_writers_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    times = iter([100.0, 200.0, *[3e9] * 9])
    registry = Registry(Log(LocalStore(tmp_path), clock=lambda: next(times)), "model")
    registry.log.acquire("a")
    registry.log.append("data")
    stale = tmp_path / ".tmp" / f"{1:012x}7{'0' * 19}"
    fresh = tmp_path / ".tmp" / uuid7()
    stale.write_bytes(b"half")
    fresh.write_bytes(b"half")
    collect(registry, keep=1)
    assert not stale.exists()
    assert fresh.exists()


@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_recovery_goes_back_past_a_damaged_newest_version_and_off_its_alias(damage: str) -> None:
    store, registry = grown(2)
    registry.promote(publish(registry, 1))
    add(store, registry, 2)
    registry.promote(publish(registry, 2))
    key = f"{registry.get(2).path}/adapter_model.safetensors"
    data = store.objects.pop(key)
    if damage == "flip":
        store.objects[key] = data[:-1] + b"?"
    heir = writer(store)
    record = recover(heir)
    assert record is not None
    assert (record.kind, record.state["i"]) == ("rollback", 2)
    live = heir.resolve()
    assert live is not None
    assert live.number == 1
    number = publish(heir, 2)
    assert number == 3, "the window is open again"
    assert heir.read(heir.get(number)) == {"adapter_model.safetensors": b"weights 2"}
    again = recover(heir)
    assert again is not None
    assert (again.kind, again.version and again.version["number"]) == ("version", 3), "nothing more to recover"
