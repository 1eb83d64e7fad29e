"""What an operator does without a learner, on the store of a whole small run: lineage, purge, rollback, export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamcl import lineage
from streamcl.bench.reliability_learner import NAME, config_of, learn
from streamcl.bench.reliability_stream import write_stream
from streamcl.compare import difference, export
from streamcl.errors import NoSuchVersion, Refused
from streamcl.operate import Run, go_back, make_live, purge
from streamcl.registry import requests
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.registry.versions import CANDIDATE, Registry
from streamcl.store import snapshot


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(requests, "SILENT_S", 0.1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    learn(write_stream(tmp_path / "stream"), tmp_path / "store", lambda point: None)
    config = config_of(tmp_path / "stream", tmp_path / "store")
    return Run(config, Registry(Log(open_store(config.store.path)), NAME))


def test_a_version_leads_to_its_windows_and_a_sample_back_to_its_versions(run: Run) -> None:
    numbers = [version.number for version in run.registry.versions()]
    steps = list(lineage.of_version(run.registry, numbers[-1]))
    assert [step.version for step in steps] == numbers[::-1]
    assert [step.base for step in steps] == [*numbers[-2::-1], 0]
    assert not any(step.gone for step in steps)
    assert steps[0].positions != steps[-1].positions
    fresh = [used.id for step in steps for used in step.samples if used.part == "samples"]
    assert len(fresh) == len(set(fresh)) >= 20  # an accepted sample is new in one window only
    replayed = next(used for used in steps[0].samples if used.part == "replay")
    windows, versions, gone = lineage.of_sample(run.registry, replayed.id)
    assert windows[0][1] == "samples"
    assert (windows[-1][0].version, windows[-1][1], gone) == (numbers[-1], "replay", [])
    first = next(step.version for step, _ in windows if step.version)  # one before may have been abandoned
    assert versions == [number for number in numbers if number >= first]
    assert lineage.of_sample(run.registry, "never") == ([], [], [])
    with pytest.raises(NoSuchVersion):
        list(lineage.of_version(run.registry, 99))


def test_what_was_collected_is_said_to_be_gone(run: Run) -> None:
    step = next(lineage.of_version(run.registry, 1))
    windows = [record.state["refs"]["window"]["key"] for record in run.log.back() if record.kind == "window"]
    run.log.store.delete(windows[-1])
    gone = next(lineage.of_version(run.registry, 1))
    assert (step.gone, gone.gone, gone.samples) == ((), (windows[-1],), ())
    assert lineage.about_sample(run.registry, "never")["gone"] == [windows[-1]]


def test_a_rollback_needs_no_learner_and_twice_goes_back_two_steps(run: Run) -> None:
    newest = run.live
    assert f"v{newest - 1} is live" in go_back(run, why="worse")
    again = Run(run.config, Registry(Log(run.log.store), NAME))
    assert f"v{newest - 2} is live" in go_back(again, why="still worse")
    assert again.registry.standing() == again.registry.standing_of(newest - 2)
    assert make_live(again, newest, why="no, it was fine").startswith(f"v{newest} is live")
    moves = [record for record in again.log.back() if record.alias and record.alias["who"]]
    assert [record.why for record in moves] == ["no, it was fine", "still worse", "worse"]


def test_a_purge_drops_the_rows_keeps_the_thresholds_and_names_what_is_tainted(run: Run) -> None:
    def replayed() -> list[snapshot.Part]:
        head = run.log.head()
        assert head is not None
        refs = [ref for name, ref in head.state["refs"].items() if name.startswith("replay/")]
        return [part for ref in refs for part in snapshot.unpack(run.log.get_object(ref))[1]]

    before = replayed()
    source = str(before[0].rows.source[0])
    held = sum(int((part.rows.source == source).sum()) for part in before)
    run.log.acquire("test")
    run.registry.promote(1, CANDIDATE, "not sure")
    said, stained, clean = purge(run, source, why="poisoned")
    assert CANDIDATE not in run.registry.aliases(), "a trial ends: the candidate may have been trained on these rows"
    assert run.registry.resolve(CANDIDATE) is None
    assert said == f"{held} rows of {source!r} dropped from replay"
    after = replayed()
    assert not any((part.rows.source == source).any() for part in after)
    assert [part.bound for part in after] == [part.bound for part in before]
    first = next(step.version for step in reversed(list(lineage.steps(run.registry))) if source in step.sources)
    assert stained == [version.number for version in run.registry.versions() if version.number >= (first or 0)]
    assert clean is None or clean.number not in stained
    assert purge(run, "nobody", why="")[1] == []


def test_an_export_is_the_version_with_its_lineage(run: Run, tmp_path: Path) -> None:
    said = export(run.registry, 2, tmp_path / "out")
    files = run.registry.read(run.registry.get(2))
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files
    assert "PEFT" in said
    told = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert (told["number"], [step["window"] for step in told["lineage"]][-1]) == (2, 1)
    with pytest.raises(Refused, match="not empty"):
        export(run.registry, 2, tmp_path / "out")


def test_two_versions_are_compared_by_scores_settings_and_layers(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save

    registry = Registry(Log(open_store(str(tmp_path))), "model")
    registry.log.acquire("a")
    a, b = torch.ones(2, 3), torch.ones(4, 2)
    for window, (scale, alpha) in enumerate([(1.0, 4), (1.5, 4), (1.0, 8)], start=1):
        weights = save({"layer.lora_A.weight": a, "layer.lora_B.weight": scale * b})
        config = json.dumps({"r": 2, "lora_alpha": alpha}).encode()
        files = {"adapter_config.json": config, "adapter_model.safetensors": weights}
        registry.publish(files, window=window, task="t", base_digest="b", scores={"t": window / 10})
    found = difference(registry, 1, 2)
    assert found["layers"] == {"layer": pytest.approx(0.5)}
    assert (found["scores"], found["config"]) == ({"t": [0.1, 0.2]}, {})
    doubled = difference(registry, 1, 3)
    assert doubled["layers"] == {"layer": pytest.approx(1.0)}  # the same tensors, scaled twice as much
    assert doubled["config"] == {"lora_alpha": [4, 8]}
    assert difference(registry, 1, 1)["layers"] == {"layer": 0.0}
