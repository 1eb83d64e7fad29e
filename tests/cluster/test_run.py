"""The whole path on real Ray, twice over one store: stream, two encoders, windows, workers, versions, endpoint."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import TASKS, add_bad_samples, settings, write_yaml

from streamcl import config as configuration
from streamcl import events as e
from streamcl.cluster import survey
from streamcl.cluster.metrics import exporters
from streamcl.cluster.survey import Node
from streamcl.learner import Learner
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.run import run_to_the_end
from streamcl.status import status_of
from streamcl.stream import from_jsonl
from streamcl.testing.dashboard import metrics, panels, rules
from streamcl.testing.scrape import Scraper

TRAIN = 72
DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "streamcl.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    values = settings(folder, train=TRAIN)
    values["train"]["workers"] = [1, 2]
    values["encoders"] = 2
    values["ray"] = {"json_logs": True}
    add_bad_samples(folder)
    write_yaml(folder, values)
    return folder


@pytest.fixture(scope="module")
def said() -> io.StringIO:
    """Standard error of the run."""
    return io.StringIO()


@pytest.fixture(scope="module")
def scraped() -> Iterator[Scraper]:
    """What Prometheus would have read during the run."""
    scraper = Scraper(exporters)
    scraper.start()
    yield scraper
    scraper.stop()


@pytest.fixture(scope="module")
def first(folder: Path, said: io.StringIO, scraped: Scraper) -> dict[str, Any]:
    """The summary of an undisturbed run, which exports what it says more often than every ten seconds: it is short."""
    with contextlib.redirect_stderr(said), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
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


def test_metrics_say_what_the_log_says(first: dict[str, Any], scraped: Scraper) -> None:
    assert set(scraped.of("ray_streamcl_unaccounted_samples", run="small")) == {0}
    accepted = scraped.of("ray_streamcl_samples", fate="accepted")
    assert TRAIN <= max(accepted) <= first["counters"]["accepted"]
    assert max(scraped.of("ray_streamcl_samples", fate="dead")) == first["counters"]["dead"]
    assert max(scraped.of("ray_streamcl_live_version")) >= 1
    assert max(scraped.of("ray_streamcl_replica_version")) >= 1
    assert 0 < max(scraped.of("ray_streamcl_window_seconds", stage="train")) < first["seconds"]["train"]
    assert 0 < max(scraped.of("ray_streamcl_swap_seconds")) <= first["seconds"]["swap"]
    for shard in "01":
        assert max(scraped.of("ray_streamcl_reservoir_rows", shard=shard)) > 0
        assert max(scraped.of("ray_streamcl_memory_bytes", shard=shard)) > 0


@pytest.mark.parametrize(("panel", "queries"), panels(DASHBOARD).items(), ids=panels(DASHBOARD))
def test_a_panel_shows_what_a_run_exports(
    panel: str, queries: list[str], first: dict[str, Any], scraped: Scraper
) -> None:
    for query in queries:
        assert metrics(query) <= scraped.values.keys()


def test_alerts_watch_what_a_run_exports(first: dict[str, Any], scraped: Scraper) -> None:
    alerts = rules(DEPLOY / "prometheus" / "rules.yaml")
    wanted = {name for query in alerts.values() for name in metrics(query)} - alerts.keys()
    assert wanted - scraped.values.keys() <= {"ray_serve_num_http_error_requests_total"}  # begins with the first error


def test_few_series_are_exported(first: dict[str, Any], scraped: Scraper) -> None:
    tags = {(name, tuple(sorted(has.items()))) for name, many in scraped.values.items() for has, _ in many}
    ours = [name for name, _ in tags if name.startswith("ray_streamcl_")]
    assert len(ours) < 150


def test_logs_are_json_with_run_window_and_version(first: dict[str, Any], said: io.StringIO) -> None:
    lines = [json.loads(line) for line in said.getvalue().splitlines() if line.startswith("{")]
    live = [line for line in lines if line["message"] == "version is live"]
    assert [(line["run"], line["window"], line["version"]) for line in live] == [("small", 1, 1), ("small", 2, 2)]
    assert {line["reason"].split(":")[0] for line in lines if line["message"] == "dead letter"} == {
        "image",
        "answer",
        "too_large",
    }


def again(folder: Path) -> tuple[list[object], list[object], list[Node], str]:
    """The same command once more: what it learned, all that happened, and meanwhile the nodes and the dashboard."""
    learner = Learner(configuration.load(folder / "run.yaml", ["ray.json_logs=false"]))
    happened: list[object] = []
    nodes: list[Node] = []
    dashboards: list[str] = []

    def watch(happening: object) -> None:
        happened.append(happening)
        if not nodes:
            nodes.extend(survey.survey(str(folder / "store"), "secret/none", str(folder)))
            dashboards.append(survey.dashboard())

    return [*learner.run(watch)], happened, nodes, dashboards[0]


def test_the_same_command_again_learns_nothing_twice(
    folder: Path, first: dict[str, Any], apart: Callable[..., Any]
) -> None:
    versions, happened, nodes, dashboard = apart(again, folder)
    assert versions == []
    assert dashboard == ""
    assert [(node.versions["ray"], "has no secret/none" in node.store) for node in nodes] == [
        (importlib.metadata.version("ray"), True)
    ]
    assert happened
    assert not any(isinstance(one, e.Train) for one in happened)
    status = status_of(str(folder / "run.yaml"), ())
    assert status["counters"] == first["counters"]
    assert len(status["versions"]) == len(first["versions"])
    assert [shard["shard"] for shard in status["shards"]] == [0, 1]
    assert sum(shard["replay_rows"] for shard in status["shards"]) >= 2 * 16  # each keeps what a merge may need
    assert all(shard["memory_groups"] == ["anchor"] and shard["memory_bytes"] > 0 for shard in status["shards"])


def test_what_was_written_is_what_is_reported(folder: Path, first: dict[str, Any]) -> None:
    assert json.loads((folder / "store" / "summary.json").read_text())["last"] == first["last"]
    assert (folder / "store" / "matrix.png").stat().st_size > 5_000
