"""The write-ahead log: what was promised is read, in order, whatever was torn, cut, damaged or taken over."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.bench.push_power import lost
from streamcl.errors import SourceError, StoreError
from streamcl.registry import upkeep
from streamcl.registry.backends import LocalStore, settle
from streamcl.registry.log import Log
from streamcl.registry.versions import Registry
from streamcl.stream import Merged, Push
from streamcl.stream.base import LOOK_S
from streamcl.stream.frames import MAGIC, framed, place
from streamcl.stream.push import IDLE_S, record_bytes
from streamcl.stream.segments import Segments, segment_name, spent
from streamcl.stream.wal import BucketShard, FolderShard, Wal
from streamcl.types import from_batch


def entry(id: str, *, producer: str = "") -> bytes:
    messages = [{"role": "user", "content": "what is this?"}, {"role": "assistant", "content": "a fox"}]
    return record_bytes({"id": id, "messages": messages}, producer)


def read(root: Path, start: int = 0, shard: str = "0") -> list[str]:
    """Ids, and reasons of dead letters, from a position on; every row with a new reader."""
    found: list[str] = []
    while len(polled := (reader := Push(str(root)).open(shard, start)).poll(1)):
        found += [sample.id for sample in from_batch(polled.batch)] + [d.reason.split(":")[0] for d in polled.dead]
        assert reader.position > start
        start = reader.position
    return found


def write(root: Path, *names: str, **settings: Any) -> FolderShard:
    shard = FolderShard(root, **settings)
    for name in names:
        shard.write(framed(entry(name)))
    return shard


def die(shard: FolderShard) -> Path:
    """What the kernel does when a process is killed; the segment it wrote to."""
    os.close(shard._lock)
    os.close(shard._file)
    return shard.folder / segment_name(max(shard.sizes))


def test_a_writer_that_starts_again_goes_on_in_its_shard_in_a_new_segment(tmp_path: Path) -> None:
    die(write(tmp_path, "a", "b"))
    write(tmp_path, "c").close()
    assert [*Segments(str(tmp_path)).sizes("0")] == [1, 2]
    assert read(tmp_path) == ["a", "b", "c"]


def test_two_living_writers_have_a_shard_each(tmp_path: Path) -> None:
    first, second = write(tmp_path, "a"), write(tmp_path, "b")
    first.write(framed(entry("c")))
    assert (first.name, second.name) == ("0", "1")
    assert (read(tmp_path, shard="0"), read(tmp_path, shard="1")) == (["a", "c"], ["b"])
    assert Push(str(tmp_path)).partitions() == ["0", "1"]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_what_a_dying_writer_left_at_the_end_is_cut(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Its last entry up to any byte, with or without garbage behind it; met before and after the next writer."""
    root = tmp_path_factory.mktemp("wal")
    torn = die(write(root, "a"))
    whole, lost = torn.read_bytes(), framed(entry("lost"))
    torn.write_bytes(whole + lost[: data.draw(st.integers(0, len(lost) - 1))] + data.draw(st.binary(max_size=12)))
    reader = Push(str(root)).open("0", 0)
    assert [sample.id for sample in from_batch(reader.poll(9).batch)] == ["a"]
    assert len(reader.poll(9)) == 0, "perhaps its writer is still at it"
    write(root, "b").close()
    assert [sample.id for sample in from_batch(reader.poll(9).batch)] == ["b"]
    assert read(root) == ["a", "b"]


@settings(max_examples=60, deadline=None)
@given(at=st.integers(len(MAGIC), 10**6), mask=st.integers(1, 255))
def test_a_damaged_byte_is_a_dead_letter_and_the_others_are_read(
    tmp_path_factory: pytest.TempPathFactory, at: int, mask: int
) -> None:
    root = tmp_path_factory.mktemp("wal")
    write(root, "a", "b", "c").close()
    file = root / "0" / segment_name(1)
    data = bytearray(file.read_bytes())
    at = len(MAGIC) + at % (len(data) - len(MAGIC) - 12)  # END itself is nobody's sample
    data[at] ^= mask
    file.write_bytes(data)
    write(root, "d").close()
    found = read(root)
    assert found[-1] == "d"
    assert sorted(found[:-1]) in [sorted({"a", "b", "c"} - {lost} | {"damaged"}) for lost in "abc"]


def test_segments_end_at_their_size(tmp_path: Path) -> None:
    names = [str(number) for number in range(40)]
    write(tmp_path, *names, segment_bytes=1_000).close()
    sizes = Segments(str(tmp_path)).sizes("0")
    assert len(sizes) > 5
    assert all(size <= 1_000 + 12 for size in sizes.values())
    assert read(tmp_path) == names


def test_many_appends_share_one_sync(tmp_path: Path) -> None:
    going, syncs = threading.Event(), []

    def sync(handle: int) -> None:
        syncs.append(handle)
        going.wait()

    going.set()
    wal = Wal(FolderShard(tmp_path, sync=sync))
    wal.append([entry("first")]).result(10)
    going.clear()
    before = len(syncs)
    done = [wal.append([entry(f"{number}/0"), entry(f"{number}/1")]) for number in range(50)]
    assert not any(one.done() for one in done), "nothing is promised before the sync"
    going.set()
    for one in done:
        one.result(10)
    assert len(syncs) - before <= 3
    wal.close()
    assert read(tmp_path) == ["first", *(f"{number}/{part}" for number in range(50) for part in range(2))]


def test_a_failed_sync_promises_nothing_and_is_never_repeated_on_the_same_segment(tmp_path: Path) -> None:
    failing: list[OSError] = []

    def sync(handle: int) -> None:
        if failing:
            raise failing.pop()

    wal = Wal(FolderShard(tmp_path, sync=sync))
    wal.append([entry("a")]).result(10)
    failing.append(OSError("no space left"))
    with pytest.raises(StoreError, match="no space left"):
        wal.append([entry("b")]).result(10)
    wal.append([entry("c")]).result(10)
    wal.close()
    assert [*Segments(str(tmp_path)).sizes("0")] == [1, 2]
    assert [name for name in read(tmp_path) if name != "b"] == ["a", "c"]


def test_a_writer_that_was_taken_over_says_so(tmp_path: Path) -> None:
    shard = write(tmp_path, "a")
    (tmp_path / "0" / segment_name(2)).write_bytes(MAGIC + framed(entry("thief")))
    with pytest.raises(StoreError, match="taken over"):
        shard.write(framed(entry("b")))
    shard.write(framed(entry("b")))
    shard.close()
    assert read(tmp_path)[-1] == "b"


def test_a_power_cut_takes_nothing_that_was_promised(tmp_path: Path) -> None:
    assert sum(lost(tmp_path, seed) for seed in range(12)) == 0


def test_a_writer_that_promises_before_it_has_synced_is_caught(tmp_path: Path) -> None:
    assert sum(lost(tmp_path, seed, honest=False) > 0 for seed in range(12)) > 6


def test_a_position_stays_true_when_a_power_cut_took_what_it_counts(tmp_path: Path) -> None:
    torn = die(write(tmp_path, "a", "b"))
    reader = Push(str(tmp_path)).open("0", 0)
    reader.poll(9)
    torn.write_bytes(torn.read_bytes()[: len(MAGIC) + len(framed(entry("a")))])
    write(tmp_path, "c").close()
    assert read(tmp_path, reader.position) == ["c"]


def test_pending_is_what_no_commit_holds(tmp_path: Path) -> None:
    wal = Wal(FolderShard(tmp_path, segment_bytes=300))
    for number in range(6):
        wal.append([entry(str(number))]).result(10)
    whole = wal.pending({})
    assert whole == sum(Segments(str(tmp_path)).sizes("0").values())
    reader = Push(str(tmp_path)).open("0", 0)
    reader.poll(3)
    assert 0 < wal.pending({"0": reader.position}) < whole
    reader.poll(9)
    assert wal.pending({"0": reader.position}) == 0
    wal.close()


def test_only_what_the_oldest_commit_kept_has_read_is_collected(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    registry = Registry(Log(store), "model")
    registry.log.acquire("test")
    write(tmp_path / "wal", *map(str, range(9)), segment_bytes=300).close()
    reader = Push(str(tmp_path / "wal")).open("0", 0)
    positions = []
    for _ in range(9):
        reader.poll(1)
        positions.append(reader.position)
        registry.log.append("data", state={"sources": {"0": reader.position}})
    assert upkeep.collect(registry, keep=9) == []
    upkeep.collect(registry, keep=3)
    assert place(positions[6])[0] > 1
    assert min(Segments(str(tmp_path / "wal")).sizes("0")) == place(positions[6])[0]
    assert read(tmp_path / "wal", positions[6]) == ["7", "8"]
    assert upkeep.collect(registry, keep=3) == [], "again, it finds nothing to do"


def test_nothing_of_another_source_is_spent() -> None:
    assert not spent("wal/0/0000000001.seg", {"part-0.parquet": 2**40})
    assert not spent("data/0/x.arrow", {"0": 2**40})
    assert spent("wal/0/0000000001.seg", {"0": 2 << 32})


@pytest.mark.parametrize("harm", ["all", "old", "new", "between"])
def test_a_log_that_changed_under_a_position_is_an_error(tmp_path: Path, harm: str) -> None:
    write(tmp_path, *map(str, range(9)), segment_bytes=300).close()
    reader = Push(str(tmp_path)).open("0", 0)
    reader.poll(5)
    segment, _ = place(reader.position)
    for number in Segments(str(tmp_path)).sizes("0"):
        gone = {"all": True, "old": number <= segment, "new": number >= segment, "between": number == segment + 1}
        if gone[harm]:
            (tmp_path / "0" / segment_name(number)).unlink()
    with pytest.raises(SourceError, match="Restore"):
        Push(str(tmp_path)).open("0", reader.position)


def test_writers_may_share_a_shard_of_a_bucket(tmp_path: Path) -> None:
    store, segments = LocalStore(tmp_path), Segments(str(tmp_path / "wal"))

    def put(key: str, data: bytes) -> bytes:
        return settle(store, f"wal/{key}", data)

    writers = [BucketShard(put, segments) for _ in range(2)]
    for number in range(6):
        writers[number % 2].write(framed(entry(str(number))))
    assert [*segments.sizes("0")] == [1, 2, 3, 4, 5, 6]
    assert read(tmp_path / "wal") == list("012345")
    assert BucketShard(put, segments).sizes == segments.sizes("0")


def test_a_lost_reply_of_a_bucket_loses_and_doubles_nothing(tmp_path: Path) -> None:
    store, segments = LocalStore(tmp_path), Segments(str(tmp_path / "wal"))
    failing = [True]

    def put(key: str, data: bytes) -> bytes:
        found = settle(store, f"wal/{key}", data)
        if failing and failing.pop():
            raise StoreError("no reply")
        return found

    shard = BucketShard(put, segments)
    with pytest.raises(StoreError, match="no reply"):
        shard.write(framed(entry("a")))
    shard.write(framed(entry("b")))
    assert read(tmp_path / "wal") == ["a", "b"]


def test_shards_that_come_later_are_taken_in_and_none_waits_for_another(tmp_path: Path) -> None:
    now = [0.0]
    merged = Merged(Push(str(tmp_path)), {}, clock=lambda: now[0])

    def next_ids() -> list[str]:
        polled = merged.poll(100)
        assert polled is not None, "it never ends"
        return [sample.id for sample in from_batch(polled.batch)]

    assert next_ids() == []
    first = write(tmp_path, "a")
    now[0] += LOOK_S
    assert next_ids() == ["a"]
    second = write(tmp_path, "b")
    now[0] += LOOK_S
    assert next_ids() == ["b"], "the first has had nothing for longer than it may hold others back"
    first.write(framed(entry("c")))
    second.write(framed(entry("d")))
    found = next_ids()
    now[0] += IDLE_S
    assert sorted(found + next_ids()) == ["c", "d"]
    assert {*merged.positions} == {"0", "1"}


def test_poison_is_a_dead_letter_that_names_its_producer(tmp_path: Path) -> None:
    shard = write(tmp_path, "a")
    shard.write(framed(record_bytes({"id": "bad", "messages": [{"role": "user", "content": "?"}]}, "robots")))
    shard.close()
    polled = Push(str(tmp_path)).open("0", 0).poll(9)
    assert [(d.id, d.source, d.reason.split(":")[0]) for d in polled.dead] == [("bad", "push/robots", "answer")]
    assert [sample.source for sample in from_batch(polled.batch)] == ["push"]
