"""The commit log: one writer, lost replies, a zombie, broken objects. Figures are printed by the kill tests."""

from __future__ import annotations

import json
import logging

import pytest

from streamcl.errors import Corrupt, Fenced, StoreError
from streamcl.registry.backends import TRIES, LocalStore
from streamcl.registry.log import HINT, Log, commit_key
from streamcl.testing.stores import FaultyStore, MemoryStore, quick

from .twins import NoPostCommitCheck, NoTxnCheck, Overwriting


def rewrite(store: MemoryStore, n: int, **changes: object) -> None:
    """Change fields of commit n and leave its digest as it was."""
    fields = json.loads(store.objects[commit_key(n)])
    store.objects[commit_key(n)] = json.dumps({**fields, **changes}, sort_keys=True, separators=(",", ":")).encode()


def flip(store: MemoryStore, key: str) -> None:
    data = bytearray(store.objects[key])
    data[len(data) // 2] ^= 1
    store.objects[key] = bytes(data)


def written(count: int) -> tuple[FaultyStore, Log]:
    """A log with a fence and `count` data commits, each with an object of its own in `state.refs`."""
    store = FaultyStore()
    log = quick(store)
    log.acquire("a")
    for i in range(count):
        ref = log.put_object("memory", b"object %d" % i, "json")
        log.append("data", state={"refs": {"memory": ref}, "sources": {"p0": i + 1}})
    return store, log


def test_an_empty_log_has_no_head_and_nothing_to_recover() -> None:
    log = quick(MemoryStore())
    assert log.head() is None
    assert list(log.records()) == []
    assert log.last("data") is None
    assert log.recover() is None


def test_state_is_carried_on_until_a_key_is_given_again() -> None:
    log = quick(MemoryStore())
    log.acquire("a")
    log.append("data", state={"sources": {"p": 1}, "watermark": 2.5})
    record = log.append("data", state={"sources": {"p": 2}}, why="more came")
    assert record.state == {"sources": {"p": 2}, "watermark": 2.5}
    assert (record.n, record.epoch, record.owner, record.kind, record.why) == (3, 1, "a", "data", "more came")
    assert log.acquire("b").state == record.state


def test_a_follower_reads_without_a_fence_and_cannot_write() -> None:
    store, log = written(40)
    follower = quick(store)
    assert follower.head() == log.head()
    assert [record.n for record in follower.records()] == list(range(1, 42))
    assert [record.n for record in follower.records(start=39)] == [39, 40, 41]
    assert follower.last("fence").n == 1
    log.append("window", window={"id": 1})
    assert follower.head().kind == "window"
    with pytest.raises(Fenced, match="acquire"):
        follower.append("data")


@pytest.mark.parametrize("hint", [None, b"", b"nonsense", b"[]", b'{"n": "x"}', b'{"n": 999}', b'{"n": 30}'])
def test_the_hint_is_only_advice(hint: bytes | None) -> None:
    store, _ = written(40)
    store.delete(HINT)
    if hint is not None:
        store.put(HINT, hint)
    assert quick(store).head().n == 41
    assert quick(store).acquire("b").n == 42


@pytest.mark.parametrize("fault", ["lost", "repeated", "delayed", "dropped"])
def test_a_bad_reply_neither_loses_nor_doubles_a_commit(fault: str) -> None:
    store, log = written(0)
    for i in range(5):
        store.faults = [fault]
        assert log.append("data", state={"i": i}).n == i + 2
        store.land()
    assert [record.state.get("i") for record in quick(store).records()] == [None, 0, 1, 2, 3, 4]


def test_unknown_and_absent_retries_the_same_bytes_at_the_same_number() -> None:
    store, log = written(1)
    store.asked, store.faults = [], ["dropped", "delayed", "dropped"]
    record = log.append("data")
    assert store.asked == [(commit_key(3), record.encode())] * 4
    store.land()
    assert [r.n for r in quick(store).records()] == [1, 2, 3]


def test_after_giving_up_the_writer_is_in_doubt_until_it_acquires_again() -> None:
    store, log = written(1)
    store.faults = ["delayed"] * TRIES
    with pytest.raises(StoreError, match="unknown"):
        log.append("data", state={"i": 1})
    with pytest.raises(Fenced, match="in doubt"):
        log.append("data", state={"i": 2})
    store.land()
    assert log.acquire("a").state["i"] == 1, "the late commit was taken over, not skipped"
    assert [r.n for r in quick(store).records()] == [1, 2, 3, 4]


def test_two_acquirers_at_once_get_different_epochs_and_one_goes_on() -> None:
    store, first = written(0)
    second, third = quick(store), quick(store)
    store.faults, store.intruder = ["preceded"], lambda: third.acquire("third")
    assert second.acquire("second").epoch == 3
    for loser in (first, third):
        with pytest.raises(Fenced, match=r"written by '(second|third)' \(epoch"):
            loser.append("data")
    assert second.append("data").epoch == 3


def zombie_commits(kind: type[Log], store: FaultyStore, fault: str) -> Log:
    """A writer that another one replaces while it commits; raises Fenced if it notices."""
    zombie, heir = quick(store, kind), quick(store)
    zombie.acquire("zombie")
    store.faults, store.intruder = [fault], lambda: heir.acquire("heir")
    zombie.append("alias", alias={"number": 1})
    return zombie


@pytest.mark.parametrize("fault", ["preceded", "overtaken"])
def test_a_zombie_is_fenced_before_any_side_effect(fault: str) -> None:
    store = FaultyStore()
    with pytest.raises(Fenced):
        zombie_commits(Log, store, fault)
    assert quick(store).head().owner == "heir"


def test_the_broken_twins_let_the_zombie_through() -> None:
    zombie_commits(NoPostCommitCheck, FaultyStore(), "overtaken")
    zombie_commits(NoTxnCheck, FaultyStore(), "preceded")
    zombie_commits(Log, Overwriting(), "preceded")


def test_counters_that_do_not_balance_are_never_committed() -> None:
    store, log = written(0)
    counters = {"in": 10, "accepted": 5, "dup": 2, "late": 1, "dead": 1, "pending": 1}
    log.append("data", state={"counters": counters})
    with pytest.raises(AssertionError, match=r"in=11.*make 10"):
        log.append("data", state={"counters": {**counters, "in": 11}})
    assert quick(store).head().n == 2
    assert log.append("data").n == 3


def test_nan_and_unknown_kinds_are_never_committed() -> None:
    store, log = written(0)
    with pytest.raises(ValueError, match="JSON"):
        log.append("data", state={"watermark": float("nan")})
    with pytest.raises(ValueError, match="kind 'dada' is not allowed: one of fence"):
        log.append("dada")  # type: ignore[arg-type]
    assert log.append("data").n == 2 == quick(store).head().n


@pytest.mark.parametrize("n", [1, 3, 6])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "forge"])
def test_a_broken_commit_is_found_and_a_new_writer_goes_past_it(n: int, damage: str) -> None:
    store, _ = written(5)
    if damage == "flip":
        flip(store, commit_key(n))
    elif damage == "cut":
        store.objects[commit_key(n)] = store.objects[commit_key(n)][:100]
    elif damage == "delete":
        store.delete(commit_key(n))
    else:
        rewrite(store, n, owner="mallory")
    if not (damage == "delete" and n == 6):  # the newest commit, gone: as if it had never been made
        with pytest.raises(Corrupt, match=f"commit {n} "):
            list(quick(store).records())
    log = quick(store)
    fence = log.acquire("b")
    assert fence.n == (6 if damage == "delete" and n == 6 else 7)
    assert fence.epoch >= 2
    assert log.recover() is not None
    assert log.append("data").n == fence.n + 1
    assert n in (6,) or [r.n for r in quick(store).back()] == [m for m in range(8, 0, -1) if m != n]


def test_the_fence_that_goes_past_broken_commits_names_them_and_outbids_their_epochs() -> None:
    store, _ = written(3)
    flip(store, commit_key(3))
    store.objects[commit_key(4)] = b"\xff"
    log = quick(store)
    fence = log.acquire("b")
    assert (fence.n, fence.prev["n"], fence.epoch) == (5, 2, 1 + 2 + 1)
    assert "commit 4 cannot be parsed" in fence.why
    assert "commit 3" in fence.why
    assert fence.state["sources"] == {"p0": 1}
    assert [r.n for r in quick(store).records()] == [1, 2, 5], "readers follow the fence past them"


def test_a_commit_that_continues_another_history_breaks_the_chain() -> None:
    (store, _), (other, _) = written(3), written(3)
    store.objects[commit_key(3)] = other.objects[commit_key(3)]
    with pytest.raises(Corrupt, match="continues"):
        list(quick(store).records())
    with pytest.raises(Corrupt, match="continues"):
        list(quick(store).back())


@pytest.mark.parametrize("damage", ["flip", "delete"])
@pytest.mark.parametrize("n", [2, 4, 6])
def test_a_broken_object_makes_recovery_walk_back_and_say_why(n: int, damage: str) -> None:
    store, log = written(5)
    key = log.get(n).state["refs"]["memory"]["key"]
    flip(store, key) if damage == "flip" else store.delete(key)
    heir = quick(store)
    heir.acquire("b")
    record = heir.recover()
    if n < 6:
        assert record.kind == "fence", "an old object that nothing needs any more"
        return
    assert (record.kind, record.n, record.to) == ("rollback", 8, 5)
    assert record.state == heir.get(5).state
    assert record.state["sources"] == {"p0": 4}
    assert "commits 6 to 7" in record.why
    assert key in record.why
    assert heir.recover() == record, "recovering again changes nothing"
    assert [r.n for r in heir.lineage()] == [8, 5, 4, 3, 2, 1]


def test_recovery_asks_the_caller_too() -> None:
    _, log = written(4)
    record = log.recover(lambda record: record.state["sources"]["p0"] <= 2)
    assert (record.kind, record.to) == ("rollback", 3)
    with pytest.raises(Corrupt, match="no commit of 1 to 6 is intact"):
        log.recover(lambda record: False)


def test_a_reader_goes_on_past_a_broken_commit_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    store, _ = written(5)
    flip(store, commit_key(4))
    with caplog.at_level(logging.WARNING):
        assert quick(store).last("fence").n == 1
    assert "commit 4" in caplog.text


def test_a_local_log_survives_its_process(tmp_path) -> None:
    log = Log(LocalStore(tmp_path))
    log.acquire("a")
    log.append("data", state={"x": "é"})
    again = Log(LocalStore(tmp_path))
    assert again.head() == log.head()
    assert again.head().state == {"x": "é"}
