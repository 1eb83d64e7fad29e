"""The whole path on real Ray, twice over one store: stream, two encoders, windows, workers, versions, endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import TASKS, add_bad_samples, settings, write_yaml

from streamcl import config as configuration
from streamcl import events as e
from streamcl.learner import Learner
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.run import run_to_the_end
from streamcl.status import status_of
from streamcl.stream import from_jsonl

TRAIN = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    values = settings(folder, train=TRAIN)
    values["train"]["workers"] = [1, 2]
    values["encoders"] = 2
    add_bad_samples(folder)
    write_yaml(folder, values)
    return folder


@pytest.fixture(scope="module")
def first(folder: Path) -> dict[str, Any]:
    """The summary of an undisturbed run."""
    return run_to_the_end(Learner(configuration.load(folder / "run.yaml")), quiet=True)


@pytest.fixture(scope="module")
def log(folder: Path, first: dict[str, Any]) -> Log:
    return Log(open_store(str(folder / "store")))


def test_every_task_becomes_a_version_that_answers(first: dict[str, Any]) -> None:
    assert [version["task"] for version in first["versions"]] == list(TASKS)
    assert first["windows"] == 2
    assert list(first["matrix"]["after"]) == list(TASKS)


def test_no_request_failed_and_no_answer_came_from_another_version(first: dict[str, Any]) -> None:
    assert first["requests"]["total"] >= 5
    assert first["requests"]["failed"] == 0
    assert first["requests"]["mismatched"] == 0


def test_bad_samples_are_dead_letters_with_reasons_and_all_others_are_learned(first: dict[str, Any], log: Log) -> None:
    counters = first["counters"]
    assert counters["dead"] == 3
    assert counters["accepted"] == 2 * TRAIN + 1
    assert counters["in"] == sum(counters[fate] for fate in ("accepted", "dup", "late", "dead", "pending"))
    head = log.head()
    assert head is not None
    letters = {letter.id: letter.reason for letter in from_jsonl(log.get_object(head.state["refs"]["dead"]))}
    assert {id: reason.split(":")[0] for id, reason in letters.items()} == {
        "bad/truncated": "image",
        "bad/unanswered": "answer",
        "bad/endless": "too_large",
    }


def test_the_log_holds_window_version_alias_in_this_order(log: Log) -> None:
    kinds = [record.kind for record in log.records()]
    assert kinds == ["fence", "window", "version", "alias", "window", "version", "alias", "data"]


def test_the_same_command_again_learns_nothing_twice(folder: Path, first: dict[str, Any]) -> None:
    learner = Learner(configuration.load(folder / "run.yaml"))
    happened: list[object] = []
    assert list(learner.run(happened.append)) == []
    assert not any(isinstance(one, e.Train) for one in happened)
    again = status_of(str(folder / "run.yaml"), ())
    assert again["counters"] == first["counters"]
    assert len(again["versions"]) == len(first["versions"])
    assert [shard["shard"] for shard in again["shards"]] == [0, 1]
    assert sum(shard["replay_rows"] for shard in again["shards"]) >= 2 * 16  # each keeps what a merge may need
    assert all(shard["memory_groups"] == ["anchor"] and shard["memory_bytes"] > 0 for shard in again["shards"])


def test_what_was_written_is_what_is_reported(folder: Path, first: dict[str, Any]) -> None:
    assert json.loads((folder / "store" / "summary.json").read_text())["last"] == first["last"]
    assert (folder / "store" / "matrix.png").stat().st_size > 5_000
