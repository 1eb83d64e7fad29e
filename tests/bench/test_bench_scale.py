"""What the scale bench makes of its measurements: timelines, the model, the choice of the node that goes."""

from __future__ import annotations

from typing import Any

import pytest

from streamcl.bench.scale import merged
from streamcl.bench.scale_model import ring_s, training
from streamcl.bench.scale_nodes import chosen, claims, digests
from streamcl.bench.scale_overhead import kind, ratios, timeline
from streamcl.registry.record import Record


def record(n: int, time: float, **parts: Any) -> Record:
    return Record(n, None, 1, "o", "t", next(iter(parts), "data"), time, **parts)


def answered(window: int, **seconds: float) -> dict[str, Any]:
    return {"window": window, "extra": {"seconds": seconds}}


def test_the_steady_part_is_cut_into_stages_that_add_up() -> None:
    found = timeline([
        record(1, 10.0, window={"id": 1}),
        record(2, 40.0, version=answered(1, load=1.0, train=14.0, score=5.0)),  # taken up at 20, not at 10
        record(3, 41.0, alias={"name": "live"}),
        record(4, 44.0, window={"id": 2}),
        record(5, 60.0, version=answered(2, load=1.0, train=9.0, score=4.0)),
        record(6, 61.5, alias={"name": "live"}),
        record(7, 99.0),  # says nothing of a window
    ])  # fmt: skip
    assert (found["began"], found["ended"], found["steady_s"], found["windows"]) == (20.0, 61.5, 41.5, 2)
    assert found["stages"] == pytest.approx(
        {"load": 2.0, "train": 23.0, "score": 9.0, "hand over": 2.0, "between": 4.0, "last commit": 1.5}
    )
    assert sum(found["stages"].values()) == pytest.approx(found["steady_s"])


def test_time_in_which_the_run_stood_still_is_not_counted() -> None:
    records = [
        record(1, 10.0, window={"id": 1}),
        record(2, 40.0, version=answered(1, load=1.0, train=14.0, score=5.0)),  # trains from 21 to 35
        record(3, 44.0, window={"id": 2}),
        record(4, 60.0, version=answered(2, load=1.0, train=9.0, score=4.0)),  # loads from 46, trains from 47 to 56
    ]
    found = timeline(records, stopped=[(0.0, 9.0), (30.0, 37.0), (41.0, 43.0), (45.0, 50.0)])
    assert found["steady_s"] == 40.0 - 7.0 - 2.0 - 5.0
    assert found["stages"] == pytest.approx(
        {"load": 1.0, "train": 9.0 + 6.0, "score": 3.0 + 4.0, "hand over": 1.0, "between": 2.0, "last commit": 0.0}
    )


def test_the_control_pays_for_every_window_but_the_first() -> None:
    pure = [{"load_s": 1.0, "train_s": 20.0, "score_s": 2.0}, {"load_s": 0.0, "train_s": 30.0, "score_s": 0.5}]
    stages = {"train": 55.0, "hand over": 1.0, "between": 0.25, "last commit": 0.25}
    row = {"pure": pure, "fit_s": [11.0, 12.0, 99.0], "stays_s": [2.0, 2.0, 9.0], "steady_s": 60.0, "windows": 2,
           "stages": stages}  # fmt: skip
    found = ratios([row])
    assert found["steady"] == 1.2
    assert found["train"] == 1.1
    assert found["fit"] == (60 + 10) / 50
    assert ratios([row, {**row, "steady_s": 70.0}])["steady"] == 1.3


def test_processes_are_counted_by_what_they_call_themselves() -> None:
    told = ["ray::RayTrainWorker.execute", "ray::Desk", "python -m streamcl.cli run x.yaml", "/ray/gcs_server --x"]
    assert [kind(name) for name in told] == ["training worker", "other actors", "driver", "ray itself"]


def test_a_ring_moves_twice_the_gradients_however_many_share_them() -> None:
    assert ring_s(1, 1e9) == 0.0
    assert ring_s(2, 1e6, link=1e6, latency=0.0) == 1.0
    assert ring_s(1000, 1e6, link=1e6, latency=0.0) == pytest.approx(2.0, rel=0.01)
    assert ring_s(3, 0.0, latency=1.0) == 4.0


def test_more_workers_are_never_more_efficient_in_the_model() -> None:
    known = {"step": 0.2, "nbytes": 1e6, "load": 1e-4, "score": 1e-2, "commit": 1e-2}
    one, *more = [training(size, **known) for size in (1, 2, 8, 64)]
    assert one["step"] == one["window"] == 1.0
    for name in ("step", "window"):
        shares = [1.0, *(found[name] for found in more)]
        assert shares == sorted(shares, reverse=True)
    assert training(64, **{**known, "load": 1e-2})["window"] < more[-1]["window"]


def test_the_node_that_goes_has_a_shard_and_a_worker_and_is_not_the_head() -> None:
    both = ["ray::MemoryShard", "ray::RayTrainWorker"]
    assert chosen([both, ["ray::MemoryShard"], both]) == 2
    with pytest.raises(RuntimeError, match="no node but the head"):
        chosen([both, ["ray::MemoryShard"]])


def test_a_run_that_ends_otherwise_is_a_missed_bar() -> None:
    calm = {"part": "nodes", "run": "two", "nodes": 2, "lost": False, "spaces": False, "total": 9, "failed": 0,
            "mismatched": 0, "versions": 4, "ending": digests({"counters": {"in": 4}})}  # fmt: skip
    lost = {**calm, "run": "three", "nodes": 3, "lost": True, "spaces": True, "recovered_s": 20.0}
    assert claims([calm, lost], "x")[0].holds
    assert not claims([calm], "x")[0].holds
    assert not claims([calm, {**lost, "ending": digests({"counters": {"in": 5}})}], "x")[0].holds


def test_new_rows_take_the_place_of_old_ones_by_part_and_run() -> None:
    old = [{"part": "nodes", "run": "a", "v": 1}, {"part": "nodes", "run": "b", "v": 1}, {"part": "weak", "v": 1}]
    new = [{"part": "nodes", "run": "a", "v": 2}, {"part": "weak", "v": 2}, {"part": "weak", "v": 3}]
    assert merged(old, new) == [old[1], *new]
