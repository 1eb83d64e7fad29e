"""Versions and aliases: never half a version, at most one a window, and the log has the last word on who is live."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from streamcl.errors import BadName, Corrupt, Fenced, NoSuchVersion
from streamcl.registry.backends import LocalStore
from streamcl.registry.log import Log
from streamcl.registry.versions import Registry
from streamcl.testing.stores import FaultyStore, quick


def files(i: int) -> dict[str, bytes]:
    return {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights %d" % i}


def publish(registry: Registry, i: int, **options) -> object:
    return registry.publish(
        files(i), window=i, task="birds", base_digest="base", scores={"accuracy": 0.5, "forgetting": i / 10}, **options
    )


def promoted(count: int) -> tuple[FaultyStore, Registry]:
    """A registry in which versions 1 to `count` were published and promoted in turn."""
    store = FaultyStore()
    registry = Registry(quick(store), "model")
    registry.log.acquire("a")
    for i in range(1, count + 1):
        registry.promote(publish(registry, i).number)
    return store, registry


def follower(store: FaultyStore) -> Registry:
    return Registry(quick(store), "model")


def test_a_published_version_is_read_back_with_its_lineage() -> None:
    store, registry = promoted(0)
    version = publish(registry, 1, state={"sources": {"p": 7}}, extra={"rank": 16})
    assert (version.number, version.window, version.task, version.scores["accuracy"]) == (1, 1, "birds", 0.5)
    assert version.path == f"versions/model/{version.digest}"
    assert follower(store).read(version) == files(1)
    assert follower(store).get(1) == version
    record = follower(store).log.head()
    assert record.state["sources"] == {"p": 7}
    assert record.version["extra"] == {"rank": 16}


def test_a_version_is_invisible_until_its_commit() -> None:
    store, registry = promoted(1)
    store.intruder = lambda: seen.append(([v.number for v in follower(store).versions()], len(store.list("versions"))))
    seen: list[object] = []
    store.faults = ["preceded"]
    publish(registry, 2)
    assert seen == [([1], 6)], "all files lie there, and nobody knows"
    assert [v.number for v in follower(store).versions()] == [1, 2]


def test_a_window_has_at_most_one_version_and_asking_again_writes_nothing() -> None:
    store, registry = promoted(0)
    registry.log.append("window", window={"id": 1})
    version = publish(registry, 1)
    before = dict(store.objects)
    again = registry.publish(files(99), window=1, task="other", base_digest="x", scores={})
    assert again == version
    assert store.objects == before
    heir = follower(store)
    heir.log.acquire("b")
    assert publish(heir, 1) == version


def test_a_window_that_a_rollback_undid_may_be_answered_again_under_a_new_number() -> None:
    _, registry = promoted(0)
    registry.log.append("data", state={"sources": {"p": 1}})
    registry.log.append("window", window={"id": 1}, state={"sources": {"p": 2}})
    first = publish(registry, 1)
    registry.log.recover(lambda record: record.state.get("sources") != {"p": 2})
    second = registry.publish(files(2), window=1, task="birds", base_digest="base", scores={})
    assert (first.number, second.number) == (1, 2)
    assert registry.publish(files(3), window=1, task="birds", base_digest="base", scores={}) == second


def test_equal_files_of_two_windows_share_a_folder_and_keep_their_own_scores() -> None:
    store, registry = promoted(0)
    one = publish(registry, 1)
    two = registry.publish(files(1), window=2, task="fish", base_digest="base", scores={"accuracy": 0.9})
    assert one.path == two.path
    assert (two.number, two.task, one.scores["accuracy"], two.scores["accuracy"]) == (2, "fish", 0.5, 0.9)
    assert len(store.list("versions")) == 3


def test_lost_replies_publish_and_promote_once() -> None:
    store, registry = promoted(0)
    store.faults = ["lost", "delayed"]
    registry.promote(publish(registry, 1).number)
    store.land()
    assert [record.kind for record in quick(store).records()] == ["fence", "version", "alias"]


def test_promote_moves_the_alias_and_repeating_it_commits_nothing() -> None:
    store, registry = promoted(2)
    n = registry.log.head().n
    assert registry.promote(2).n == n
    assert follower(store).resolve().number == 2
    pointer = json.loads(store.get("aliases/live.json"))
    assert pointer == {"number": 2, "digest": registry.get(2).digest, "path": registry.get(2).path, "n": n}
    assert follower(store).resolve("candidate") is None
    registry.promote(1, alias="candidate", why="try the old one")
    assert (follower(store).resolve().number, follower(store).resolve("candidate").number) == (2, 1)


def test_rolling_back_goes_one_step_each_time_and_only_to_intact_versions() -> None:
    store, registry = promoted(4)
    assert registry.rollback(why="worse").number == 3
    assert registry.rollback().number == 2
    assert registry.log.head().why == ""
    assert follower(store).resolve().number == 2
    assert registry.rollback(to=4).number == 4
    assert registry.rollback().number == 3
    store.objects[f"{registry.get(2).path}/adapter_config.json"] = b"{]"
    with pytest.raises(Corrupt, match=r"adapter_config.json.*sha256"):
        registry.rollback()
    assert follower(store).resolve().number == 3


def test_what_does_not_exist_is_named_with_what_does() -> None:
    _, registry = promoted(2)
    with pytest.raises(NoSuchVersion, match=r"no version 9 in memory://versions/model; have 1-2"):
        registry.promote(9)
    with pytest.raises(NoSuchVersion, match="none was published"):
        Registry(quick(FaultyStore()), "model").get(1)
    registry.rollback()
    with pytest.raises(NoSuchVersion, match=r"no version before 1: give `to`, one of \[1, 2\]"):
        registry.rollback()
    with pytest.raises(BadName):
        registry.promote(1, alias="../live")
    with pytest.raises(BadName, match=r"manifest\.json"):
        registry.publish({"manifest.json": b"x"}, window=5, task="t", base_digest="b", scores={})
    with pytest.raises(BadName):
        registry.publish({"../x": b"x"}, window=5, task="t", base_digest="b", scores={})


@pytest.mark.parametrize("pointer", [None, b"", b"{]", b"[]", b'{"n": 1, "number": 1}', b'{"n": 99}', "old"])
def test_a_missing_broken_or_old_pointer_is_mended_from_the_log(pointer: bytes | str | None) -> None:
    store, registry = promoted(2)
    registry.promote(1, alias="candidate")
    right = dict(store.objects)
    store.delete("aliases/live.json")
    if pointer == "old":
        old = registry.log.get(3)
        registry._point(old)
    elif isinstance(pointer, bytes):
        store.put("aliases/live.json", pointer)
    if pointer != "old":  # an old pointer is a good version, until somebody repairs it
        assert follower(store).resolve().number == 2
    assert follower(store).repair() == ["live"]
    assert store.objects == right
    assert follower(store).repair() == []


def test_an_old_pointer_never_takes_a_reader_back() -> None:
    store, registry = promoted(1)
    old, reader = store.get("aliases/live.json"), follower(store)
    registry.promote(publish(registry, 2).number)
    assert reader.resolve().number == 2
    store.put("aliases/live.json", old)
    assert reader.resolve().number == 2


@pytest.mark.parametrize("fault", ["preceded", "overtaken"])
def test_a_zombie_never_touches_the_pointer(fault: str) -> None:
    store, zombie = promoted(2)
    heir = follower(store)
    store.faults, store.intruder = [fault], lambda: heir.log.acquire("heir")
    pointer = store.get("aliases/live.json")
    with pytest.raises(Fenced):
        zombie.promote(1)
    assert store.get("aliases/live.json") == pointer
    with pytest.raises(Fenced):
        publish(zombie, 3)
    heir.promote(publish(heir, 3).number)
    assert follower(store).resolve().number == 3


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "swap"])
def test_a_damaged_version_is_never_read(name: str, damage: str) -> None:
    store, registry = promoted(2)
    version = registry.get(2)
    key = f"{version.path}/{name}"
    data = store.objects.pop(key)
    if damage == "swap":
        data = store.objects[f"{registry.get(1).path}/{name}"]
        store.objects[key] = data if name != "adapter_config.json" else b"[]"
    elif damage != "delete":
        store.objects[key] = data[:-1] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:]
    with pytest.raises(Corrupt, match=name):
        follower(store).read(version)
    again = registry.publish(files(2), window=9, task="birds", base_digest="base", scores={})
    assert follower(store).read(again) == files(2), "beside it, or mended where a file was missing"


def test_a_broken_version_commit_never_frees_its_number() -> None:
    store, registry = promoted(0)
    publish(registry, 1)
    publish(registry, 2)
    store.objects["commits/00000000000000000003.json"] = b"{"
    heir = follower(store)
    heir.log.acquire("b")
    assert publish(heir, 3).number > 2
    assert follower(store).versions()[0].number == 1


READER = """
import sys
from streamcl.registry.backends import LocalStore
from streamcl.registry.log import Log
from streamcl.registry.versions import Registry
registry, reads, last = Registry(Log(LocalStore(sys.argv[1])), "model"), 0, 0
print("ready", flush=True)
while last < 50:
    version = registry.resolve()
    if version is not None:
        weights = registry.read(version)["adapter_model.safetensors"]
        assert weights == b"weights %d" % version.window * 1000 and version.number >= last, (version, last)
        reads, last = reads + 1, version.number
print(reads)
"""


def test_readers_never_see_half_a_version_while_fifty_are_published(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
    registry = Registry(Log(LocalStore(tmp_path)), "model")
    registry.log.acquire("a")
    for i in range(1, 51):
        weights = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights %d" % i * 1000}
        version = registry.publish(weights, window=i, task="t", base_digest="b", scores={})
        registry.promote(version.number)
    reads = [int(reader.communicate(timeout=120)[0]) for reader in readers]
    assert all(reader.returncode == 0 for reader in readers)
    print(f"{sum(reads)} reads during 50 publications, 0 halves: at most {3 / sum(reads):.2%} at 95 %")
    assert sum(reads) > 100
