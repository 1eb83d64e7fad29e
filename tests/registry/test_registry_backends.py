"""Stores: put-if-absent has one winner, keys stay inside, and `probe` refuses what cannot keep the promise."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from streamcl.errors import BadName, StoreError
from streamcl.registry.backends import TRIES, CommitStore, LocalStore, probe, settle, uuid7
from streamcl.registry.objectstore import FsspecStore
from streamcl.registry.stores import open_store
from streamcl.testing.stores import FaultyStore, MemoryStore

from .twins import Overwriting


class Bucket(MemoryFileSystem):
    """fsspec's memory file system with its own content, which can fail once after or before it wrote."""

    cachable = False
    store: dict[str, Any]
    pseudo_dirs: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]
        self.error: Exception | None = None
        self.writes_first = True

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        error, self.error = self.error, None
        if error is None or self.writes_first:
            super().pipe_file(path, value, mode=mode, **kwargs)
        if error is not None:
            raise error


def stores(tmp_path: Path) -> list[CommitStore]:
    return [LocalStore(tmp_path), MemoryStore(), FsspecStore("memory://bucket/run", filesystem=Bucket())]


def test_every_store_keeps_the_same_contract(tmp_path: Path) -> None:
    for store in stores(tmp_path):
        assert store.get("a/b.json") is None
        assert store.list("a") == store.list("") == []
        assert store.put_if_absent("a/b.json", b"1") == "created"
        assert store.put_if_absent("a/b.json", b"2") == "exists"
        assert store.get("a/b.json") == b"1"
        store.put("a/c", b"3")
        store.put("a/c", b"4")
        key = store.put_unique("data", b"5", "arrow")
        assert key.startswith("data/")
        assert key.endswith("-ef2d127de37b.arrow")
        assert store.get("a/c") == b"4"
        assert store.get(key) == b"5"
        assert store.list("a") == ["a/b.json", "a/c"]
        assert store.list("") == ["a/b.json", "a/c", key]
        store.delete("a/c")
        store.delete("a/c")
        assert store.list("a") == ["a/b.json"]
        assert store.path("a/b.json").endswith("/a/b.json")


def test_one_of_eight_racing_threads_wins_each_of_200_keys(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for i in range(200):
        key, offers = f"commits/{i}", [b"%d" % j for j in range(8)]
        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(lambda offer, key=key: store.put_if_absent(key, offer), offers))
        assert sorted(outcomes) == ["created"] + ["exists"] * 7
        assert store.get(key) == offers[outcomes.index("created")]


@pytest.mark.parametrize(
    "key", ["../x", "a/../b", "/etc/passwd", "", "a//b", "a/", ".tmp/x", "a/.b", "a\\b", "a\n", "s3://b/x"]
)
def test_a_key_cannot_leave_the_store(tmp_path: Path, key: str) -> None:
    for store in stores(tmp_path):
        with pytest.raises(BadName, match="is not allowed"):
            store.put_if_absent(key, b"x")
        with pytest.raises(BadName):
            store.path(key)


def test_uuid7_names_sort_by_birth_and_say_version_7() -> None:
    names = [uuid7() for _ in range(200)]
    assert len(set(names)) == 200
    assert all(len(name) == 32 and name[12] == "7" and name[16] in "89ab" for name in names)
    assert [name[:12] for name in names] == sorted(name[:12] for name in names)


def test_a_failed_local_write_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    def full(point: str) -> None:
        if point == "written":
            raise OSError(errno.ENOSPC, "No space left on device")

    store = LocalStore(tmp_path, reached=full)
    with pytest.raises(StoreError, match=r"No space left.*Check space"):
        store.put_if_absent("commits/1", b"x")
    assert store.get("commits/1") is None
    assert not any(files for _, _, files in os.walk(tmp_path))
    store.reached = lambda point: None
    assert store.put_if_absent("commits/1", b"x") == "created"


def test_probe_accepts_safe_stores_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for store in (LocalStore(tmp_path), MemoryStore()):
        probe(store)
        assert store.list("") == []


def test_probe_refuses_a_store_that_overwrites() -> None:
    class Unconditional(MemoryStore):
        def put_if_absent(self, key: str, data: bytes) -> Any:
            self.objects[key] = data
            return "created"

    with pytest.raises(StoreError, match="not safe for commits"):
        probe(Unconditional())
    assert Overwriting().put_if_absent("commits/1", b"x") == "created"


def test_probe_refuses_a_store_that_looks_before_it_writes() -> None:
    class LooksFirst(MemoryStore):
        def put_if_absent(self, key: str, data: bytes) -> Any:
            if key in self.objects:
                return "exists"
            if "race" in key:
                gate.wait(timeout=10)
            self.objects[key] = data
            return "created"

    gate = threading.Barrier(8)
    with pytest.raises(StoreError, match="8 of 8 racing writers"):
        probe(LooksFirst())


def test_open_store_takes_folders_and_buckets_only(tmp_path: Path) -> None:
    assert isinstance(open_store(str(tmp_path)), LocalStore)
    assert open_store(f"file://{tmp_path}").path("a") == str(tmp_path / "a")
    for url in ("memory://x", "http://host/x", "simplecache::s3://b/x", "s3://b/x::zip://y"):
        with pytest.raises(StoreError, match=r"not supported.*s3://bucket"):
            open_store(url)


def http_error(status: int) -> OSError:
    """As s3fs translates one: an OSError whose cause holds botocore's response."""
    error = OSError(errno.EIO, f"HTTP {status}")
    error.__cause__ = ValueError()
    error.__cause__.response = {"ResponseMetadata": {"HTTPStatusCode": status}}  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize("writes_first", [True, False])
@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError(), *map(http_error, (408, 409, 429, 500, 503))])
def test_a_bucket_that_does_not_answer_leaves_the_outcome_unknown(error: Exception, writes_first: bool) -> None:
    bucket = Bucket()
    store = FsspecStore("memory://bucket/run", filesystem=bucket)
    bucket.error, bucket.writes_first = error, writes_first
    assert store.put_if_absent("commits/1", b"x") == "unknown"
    assert settle(store, "commits/1", b"x") == b"x"


def test_a_bucket_that_refuses_is_an_error_and_a_failed_condition_is_not() -> None:
    bucket = Bucket()
    store = FsspecStore("memory://bucket/run", filesystem=bucket)
    bucket.writes_first = False
    for error in (PermissionError("denied"), http_error(400), FileNotFoundError("no such bucket")):
        bucket.error = error
        with pytest.raises(StoreError, match="Check the bucket"):
            store.put_if_absent("commits/1", b"x")
    bucket.error = http_error(412)
    assert store.put_if_absent("commits/1", b"x") == "exists"


def test_a_bucket_gets_each_object_in_one_put_with_the_condition() -> None:
    calls: list[dict[str, Any]] = []
    fake = SimpleNamespace(
        protocol=("memory",),
        _strip_protocol=lambda url: "b/run",
        pipe_file=lambda path, data, **options: calls.append(options),
    )
    FsspecStore("memory://b/run", filesystem=fake).put_if_absent("commits/1", b"x" * 10)
    assert calls == [{"mode": "create", "chunksize": 11}]


def test_settle_tries_the_same_bytes_and_gives_up_with_an_error() -> None:
    store, waits = FaultyStore(), []
    store.faults = ["dropped"] * TRIES
    with pytest.raises(StoreError, match=f"unknown after {TRIES} tries"):
        settle(store, "commits/1", b"x", backoff=waits.append)
    assert store.asked == [("commits/1", b"x")] * TRIES
    assert waits == list(range(TRIES))


def test_a_folder_that_vanishes_is_not_made_anew(tmp_path: Path) -> None:
    """An unmounted disk: what is written into a new folder of that name would be a second history."""
    folder, aside = tmp_path / "store", tmp_path / "aside"
    first, second = LocalStore(folder), LocalStore(folder)
    first.put("a", b"1")
    folder.rename(aside)
    assert first.get("a") is None
    with pytest.raises(StoreError, match="is its disk mounted"):
        first.put_if_absent("b", b"2")
    assert not folder.exists()
    aside.rename(folder)
    assert first.put_if_absent("b", b"2") == "created"
    assert second.get("b") == b"2"
