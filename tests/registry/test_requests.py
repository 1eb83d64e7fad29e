"""What an operator asks for: answered by a learner that lives, done once, refused when things stand otherwise."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamcl.errors import Corrupt, NoSuchVersion, Refused
from streamcl.registry import requests
from streamcl.registry.backends import LocalStore
from streamcl.registry.log import Log
from streamcl.registry.requests import Answer, Beat, Request, answer, ask, move, pending
from streamcl.registry.versions import Registry


def learned(root: Path, count: int = 3) -> Registry:
    """A registry whose versions were made live in turn, each with a task memory of its own."""
    registry = Registry(Log(LocalStore(root)), "model")
    registry.log.acquire("learner")
    for window in range(1, count + 1):
        memory = registry.log.put_object("memory", b"memory %d" % window, "safetensors")
        files = {"adapter_model.safetensors": b"weights %d" % window}
        extra = {"memory": [memory], "learned": [f"task-{n}" for n in range(1, window + 1)]}
        state = {"refs": {"memory/0": memory, "learner": memory}}
        version = registry.publish(files, window=window, task="t", base_digest="b", scores={}, extra=extra, state=state)
        registry.promote(version.number)
    return registry


@contextmanager
def living(store: LocalStore) -> Iterator[None]:
    beat = Beat(store, "learner")
    beat.start()
    yield
    beat.close()


def test_a_move_is_one_commit_that_says_who_from_where_to_and_why(tmp_path: Path) -> None:
    registry = learned(tmp_path)
    _, record = move(registry, Request("move", number=1, expects=3, why="v3 is rude", who="kim@desk"))
    assert record is not None
    assert record.alias is not None
    assert (record.kind, record.why) == ("alias", "v3 is rude")
    moved = record.alias
    assert (moved["who"], moved["from"], moved["version"]["number"], record.time > 0) == ("kim@desk", 3, 1, True)
    standing = registry.standing()
    assert (standing.number, standing.learned) == (1, ("task-1",))
    assert registry.log.get_object(record.state["refs"]["memory/0"]) == b"memory 1"
    assert record.state["refs"]["learner"] != record.state["refs"]["memory/0"]  # the rest of the state stays


def test_a_request_that_comes_twice_moves_once(tmp_path: Path) -> None:
    registry, request = learned(tmp_path), Request("move", number=2, expects=3)
    move(registry, request)
    end = registry.log.head()
    assert move(registry, request)[1] is None
    assert registry.log.head() == end


def test_nothing_moves_when_the_version_cannot_answer_or_another_is_live(tmp_path: Path) -> None:
    registry = learned(tmp_path)
    with pytest.raises(Refused, match="v3 is live, and not v2"):
        move(registry, Request("move", number=1, expects=2))
    with pytest.raises(NoSuchVersion):
        move(registry, Request("move", number=9))
    (tmp_path / registry.get(2).path / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(Corrupt):
        move(registry, Request("move", number=2))
    memory = registry.standing_of(1).memory
    assert memory is not None
    registry.log.store.delete(memory[0]["key"])
    with pytest.raises(Corrupt, match="missing"):
        move(registry, Request("move", number=1))
    live = registry.resolve()
    assert live is not None
    assert live.number == 3


def test_a_learner_that_lives_answers_and_the_request_is_gone(tmp_path: Path) -> None:
    store, request, heard = LocalStore(tmp_path), Request("move", number=1), []

    def obey() -> None:
        while not (found := pending(store)):
            pass
        heard.extend(found)
        answer(store, found[0], Answer(True, "v1 is live"))

    thread = threading.Thread(target=obey)
    thread.start()
    with living(store):
        assert ask(store, request) == Answer(True, "v1 is live")
    thread.join()
    assert heard == [request]
    assert pending(store) == store.list("answers") == []


def test_where_nobody_lives_the_request_is_withdrawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "SILENT_S", 0.2)
    store = LocalStore(tmp_path)
    assert ask(store, Request("move", number=1)) is None
    assert pending(store) == []


def test_a_learner_that_lives_and_is_busy_keeps_its_fence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BEAT_S", 0.05)
    monkeypatch.setattr(requests, "SILENT_S", 0.5)
    store = LocalStore(tmp_path)
    with living(store), pytest.raises(Refused, match="lives but did not answer"):
        ask(store, Request("move", number=1), patience_s=1.5)
    assert pending(store) == []
