"""The configuration: what it says is what is built, and a mistake is told by its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamcl import config, detect, strategies
from streamcl.config import apply, dump, load, parse
from streamcl.errors import ConfigError
from streamcl.learner import resolve
from streamcl.sections import Config, StoreConfig
from streamcl.stream import Files

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").rglob("*.yaml"))


def tree(**sections: Any) -> dict[str, Any]:
    """The least that a run needs, and more."""
    return {"store": "runs/x", "model": {"path": "m"}, "source": {"kind": "files", "path": "data"}, **sections}


def refused(**sections: Any) -> str:
    """What is said of these sections."""
    with pytest.raises(ConfigError) as caught:
        parse(tree(**sections))
    return str(caught.value)


RUNS = {
    "defaults": tree(),
    "replay": tree(strategy={"kind": "replay", "replay_rows": 5}, detector={"kind": "never"}),
    "dgg": tree(strategy={"kind": "dgg", "alpha": 0.25, "norm_scope": "global"}, seed=7),
    "nested": tree(
        model={"path": "m", "lora": {"r": 4}}, source={"kind": "files", "path": "x", "limits": {"images": 2}}
    ),
    "words that YAML takes for other things": tree(
        name="1e3", store="no", evaluate={"path": "null"}, ray={"address": "1:2"}
    ),
    "small numbers": tree(train={"lr": 1e-05, "weight_decay": 1e-10}),
}


@pytest.mark.parametrize("run", RUNS)
def test_what_is_dumped_parses_to_the_same(run: str, tmp_path: Path) -> None:
    parsed = parse(RUNS[run])
    path = tmp_path / "run.yaml"
    path.write_text(dump(parsed))
    assert load(path) == parsed
    assert dump(load(path)) == dump(parsed)


def test_a_dump_names_every_default() -> None:
    shown = yaml.safe_load(dump(parse(tree())))
    assert shown["window"] == {
        "samples": 1000, "max_bytes": 2**30, "age_s": 600.0, "late": "accept", "late_s": 3600.0
    }  # fmt: skip
    assert shown["strategy"]["kind"] == "dgg"
    assert shown["source"]["limits"]["images"] == 8


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_parses(path: Path) -> None:
    assert parse(yaml.safe_load(dump(load(path)))) == load(path)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"strategi": "dgg"}, "unknown strategi: did you mean 'strategy'?"),
        ({"window": {"sample": 3}}, "unknown window.sample: did you mean 'samples'?"),
        ({"model": {"path": "m", "lora": {"alfa": 3}}}, "unknown model.lora.alfa: did you mean 'alpha'?"),
        ({"strategy": {"kind": "dgg", "alhpa": 1}}, "unknown strategy.alhpa: did you mean 'alpha'?"),
        ({"strategy": {"kind": "replay", "alpha": 1}}, "unknown strategy.alpha: It may be replay_rows"),
    ],
)
def test_an_unknown_key_names_the_nearest(sections: dict[str, Any], said: str) -> None:
    assert said in refused(**sections)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"strategy": {"kind": "dg"}}, "unknown strategy.kind 'dg': did you mean 'dgg'?"),
        ({"strategy": {"alpha": 0.1}}, "unknown strategy.kind None: It may be dgg, ewc, finetune"),
        ({"detector": "label"}, "unknown detector.kind 'label': did you mean 'labels'?"),
        ({"source": {"kind": "kinesis", "path": "x"}}, "unknown source.kind 'kinesis'"),
        ({"strategy": {"kind": ["dgg"]}}, "unknown strategy.kind ['dgg']"),
        ({"source": [1]}, "source"),
    ],
)
def test_an_unknown_kind_names_the_known(sections: dict[str, Any], said: str) -> None:
    assert said in refused(**sections)


def test_a_kind_alone_is_enough() -> None:
    assert parse(tree(strategy="replay", detector="never")) == parse(
        tree(strategy={"kind": "replay"}, detector={"kind": "never"})
    )


@pytest.mark.parametrize("kinds", config.KINDS.values())
def test_every_kind_is_its_own_class(kinds: dict[str, Any]) -> None:
    assert len(set(kinds.values())) == len(kinds)  # dump finds the kind by the class


@pytest.mark.parametrize("missing", ["store", "model", "source"])
def test_a_missing_section_is_named(missing: str) -> None:
    sections = tree()
    del sections[missing]
    with pytest.raises(ConfigError, match=f"^{missing} is missing"):
        parse(sections)


def test_a_missing_setting_is_named_with_its_section() -> None:
    assert "model.path is missing" in refused(model={})
    assert "source.path is missing" in refused(source="files")


@pytest.mark.parametrize(
    ("sections", "path", "value"),
    [
        ({"window": {"samples": "many"}}, "window.samples", "'many'"),
        ({"window": {"samples": 5.5}}, "window.samples", "5.5"),
        ({"model": {"path": 3}}, "model.path", "3"),
        ({"model": {"path": "m", "lora": {"r": [1]}}}, "model.lora.r", "[1]"),
        ({"train": {"use_gpu": "perhaps"}}, "train.use_gpu", "'perhaps'"),
        ({"replay": {"key": "mine"}}, "replay.key", "'mine'"),
        ({"window": 5}, "window", "5"),
        ({"window": None}, "window", "None"),
        ({"source": {"kind": "files", "path": "x", "limits": {"images": "x"}}}, "source.limits.images", "'x'"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_path(sections: dict[str, Any], path: str, value: str) -> None:
    assert refused(**sections).startswith(f"{path} is {value}")


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"name": "Bad Name"}, "'Bad Name'"),
        ({"strategy": {"kind": "dgg", "alpha": 3}}, "strategy.alpha 3"),
        ({"model": {"path": "m", "dtype": "float8"}}, "float8"),
        ({"train": {"epochs": 0}}, "train.epochs 0"),
        ({"window": {"samples": 0}}, "samples"),
        ({"batch": 0}, "batch"),
        ({"replay": {"capacity": 0}}, "capacity"),
        ({"replay": {"heldout": 1.0}}, "heldout"),
        ({"replay": {"per_source": 0.0}}, "per_source"),
    ],
)
def test_a_value_out_of_its_range_is_refused(sections: dict[str, Any], said: str) -> None:
    assert said in refused(**sections)


@pytest.mark.parametrize("key", [1, True, None])
def test_a_key_that_is_no_text_is_unknown(key: object) -> None:
    with pytest.raises(ConfigError, match=f"unknown {key}"):
        parse({**tree(), key: 2})


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", "is not YAML"), ("- a", "holds a list"), ("just text", "holds a str"), ("", "is missing")],
)
def test_a_file_that_is_no_configuration_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load(path)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            load(path)


# -- overrides ---------------------------------------------------------------------------------------------------------


def overridden(*overrides: str, **sections: Any) -> Config:
    found = tree(**sections)
    for override in overrides:
        apply(found, override)
    return parse(found)


def test_an_override_replaces_one_value_and_nothing_beside_it() -> None:
    changed = overridden(
        "strategy.alpha=0.5", "model.lora.r=2", strategy={"kind": "dgg", "alpha": 0.1, "replay_rows": 3}
    )
    assert changed.strategy == strategies.DGG(alpha=0.5, replay_rows=3)
    assert (changed.model.path, changed.model.lora.r) == ("m", 2)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=3", 3),
        ("name=x-1", "x-1"),
        ("batch=0x10", 16),
        ("store=s3://b/x=y", StoreConfig("s3://b/x=y")),
        ("store=a.b", StoreConfig("a.b")),
    ],
)
def test_an_override_is_read_as_yaml_after_its_first_equals_sign(override: str, value: object) -> None:
    assert getattr(overridden(override), override.partition("=")[0]) == value


def test_an_override_reaches_a_section_that_the_file_leaves_out() -> None:
    assert overridden("window.samples=5").window.samples == 5
    assert overridden("train.lr=1e-4").train.lr == 1e-4


def test_another_kind_drops_the_settings_of_the_old_one() -> None:
    old = {"kind": "dgg", "alpha": 0.5, "replay_rows": 3}
    assert overridden("strategy.kind=replay", strategy=dict(old)).strategy == strategies.Replay()
    assert overridden("strategy.kind=dgg", strategy=dict(old)).strategy == strategies.DGG(alpha=0.5, replay_rows=3)
    assert overridden("strategy.alpha=0.9", "strategy.kind=replay", strategy=dict(old)).strategy == strategies.Replay()
    assert overridden("detector.kind=never").detector == detect.Never()


@pytest.mark.parametrize("override", ["seed", "=3", "", "seed.x=3", "store.kind=3", "name={"])
def test_an_override_that_cannot_be_understood_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        overridden(override, seed=1)


def test_an_unknown_override_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown window\.sampels: did you mean 'samples'"):
        overridden("window.sampels=3")


def test_overrides_apply_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree()))
    assert load(path, ["seed=5", "strategy.kind=finetune"]) == replace(
        load(path), seed=5, strategy=strategies.Strategy()
    )


# -- what the learner makes of it --------------------------------------------------------------------------------------


def test_a_store_in_a_folder_becomes_absolute_and_a_url_stays() -> None:
    assert resolve(parse(tree())).store.path == str(Path.cwd() / "runs/x")
    assert resolve(parse(tree(store="/runs/x"))).store.path == "/runs/x"
    for url in ("s3://bucket/run", "memory://run", "gs://bucket/a/../b"):
        assert resolve(parse(tree(store=url))).store.path == url


def test_only_zoo_names_are_turned_into_paths() -> None:
    plain = parse(tree(store="/x", evaluate={"path": "data/test#1"}))
    assert resolve(plain) == plain
    model = resolve(parse(tree(model={"path": "zoo:small", "lora": {"r": 4}}))).model
    assert (Path(model.path) / "config.json").is_file()
    assert (model.register, model.lora.r) == ("streamcl.zoo.tower", 4)


def test_an_unknown_zoo_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="zoo:smal"):
        resolve(parse(tree(model={"path": "zoo:smal"})))


def test_a_resolved_configuration_is_resolved() -> None:
    once = resolve(parse(tree(model={"path": "zoo:small"}, source={"kind": "files", "path": "a"})))
    assert resolve(once) == once
    assert once.source == Files("a")


# -- placement ---------------------------------------------------------------------------------------------------------


def test_what_a_placement_does_not_say_stays() -> None:
    parsed = parse(tree(placement={"ingest": {"custom": {"disk": 1}}, "trainer": {"gpus": 0.5, "spread": True}}))
    assert parsed.placement.ingest.options() == {
        "num_cpus": 0.5, "num_gpus": 0.0, "resources": {"disk": 1.0}, "scheduling_strategy": "DEFAULT"
    }  # fmt: skip
    assert (parsed.trainer.cpus, parsed.trainer.gpus, parsed.trainer.device) == (1.0, 0.5, "cuda")
    assert parsed.trainer.options()["scheduling_strategy"] == "SPREAD"
    assert parsed.placement.replicas == parse(tree()).placement.replicas


def test_use_gpu_is_the_short_form_of_one_gpu_a_worker() -> None:
    assert parse(tree(train={"use_gpu": True})).trainer.gpus == 1.0
    assert parse(tree(train={"use_gpu": True}, placement={"trainer": {"gpus": 0.25}})).trainer.gpus == 0.25
    assert parse(tree()).trainer.device == "cpu"


def test_resources_below_zero_are_refused() -> None:
    assert "none below 0" in refused(placement={"shards": {"cpus": -1}})
    assert "custom" in refused(placement={"shards": {"custms": {"a": 1}}})
