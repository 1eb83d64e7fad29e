"""The doctor finds what is planted, and nothing in a sound installation."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streamcl import doctor
from streamcl.cli import app
from streamcl.cluster.survey import Node, look
from streamcl.config import load
from streamcl.doctor import Finding, Seen
from streamcl.registry.stores import open_store
from streamcl.sections import Config

QUICKSTART = str(Path(__file__).parents[1] / "examples" / "quickstart.yaml")
GIB = 2**30
NODE = Node(
    name="a",
    versions={"python": "3.11.9", "ray": "2.60.0", "torch": "2.13.0", "streamcl": "0.1.0"},
    cpus=8,
    memory=64 * GIB,
    shm=16 * GIB,
    files=1_048_576,
    gpus=(24 * GIB, 24 * GIB),
    model="5eed",
)
SEEN = Seen([NODE, replace(NODE, name="b")], dashboard="127.0.0.1:8265", parameters=7_000_000_000, joined=True)
GPUS = ("train.use_gpu=true", "train.workers=4", "model.dtype=bfloat16")


def config(*overrides: str) -> Config:
    return load(QUICKSTART, ["ray.address=10.0.0.1:6379", *overrides])


def node(**changes: Any) -> Seen:
    return replace(SEEN, nodes=[NODE, replace(NODE, name="b", **changes)])


@pytest.mark.parametrize("check", doctor.CHECKS, ids=lambda check: check.__name__)
def test_nothing_is_wrong_with_a_sound_cluster(check: Any) -> None:
    found = check(config("model.path=/m", *GPUS), replace(SEEN, parameters=3_000_000_000))
    assert (found.level, found.todo) == ("ok", "")


PLANTED = {
    "open dashboard": (doctor.auth, replace(SEEN, dashboard="10.0.0.1:8265"), (), "fail", "runs code"),
    "another Ray": (doctor.versions, node(versions={**NODE.versions, "ray": "2.59.0"}), (), "fail", "2.59.0, 2.60.0"),
    "another torch": (doctor.versions, node(versions={**NODE.versions, "torch": "2.8.0"}), (), "warn", "torch"),
    "little shared memory": (doctor.shared_memory, node(shm=GIB), (), "warn", "1.0 GiB"),
    "Docker's shared memory": (doctor.shared_memory, node(shm=64 * 2**20), (), "fail", "64 MiB"),
    "few files": (doctor.open_files, node(files=1024), (), "fail", "1,024"),
    "some files": (doctor.open_files, node(files=20_000), (), "warn", "20,000"),
    "a blind node": (doctor.store_everywhere, node(store="/data has no mark"), (), "fail", "b: /data has no mark"),
    "another model": (doctor.model, node(model="0dd"), (), "fail", "b: 0dd"),
    "a missing model": (doctor.model, node(model=""), (), "fail", "b: missing"),
    "no model": (doctor.model, replace(SEEN, nodes=[replace(NODE, model="")]), ("model.path=/no",), "fail", "/no"),
    "a hub id": (doctor.model, replace(SEEN, nodes=[replace(NODE, model="")]), ("model.path=a/b",), "warn", "hub id"),
    "another base": (doctor.model, replace(SEEN, trained_on="0ther"), (), "fail", "trained on 0ther"),
    "a model too large": (doctor.memory, node(gpus=(8 * GIB, 8 * GIB)), GPUS, "fail", "has 8.0 GiB"),
    "a tight fit": (doctor.memory, SEEN, GPUS, "warn", "has 24.0 GiB"),
    "too few GPUs": (doctor.memory, node(gpus=()), GPUS, "fail", "there are 2 GPUs"),
    "too little RAM": (doctor.memory, node(), ("train.workers=4",), "fail", "156.5 GiB in all processes"),
    "unknown size": (doctor.memory, replace(SEEN, parameters=None), (), "warn", "unknown"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_failure_is_found_with_what_to_do(name: str) -> None:
    check, seen, overrides, level, what = PLANTED[name]
    found: Finding = check(config(*overrides), seen)
    assert found.level == level
    assert what in found.what
    assert found.todo


def test_a_token_closes_the_dashboard() -> None:
    assert doctor.auth(config(), replace(SEEN, dashboard="10.0.0.1:8265", auth="token")).level == "ok"


def test_a_port_in_use_is_found() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = f"serve.port={taken.getsockname()[1]}"
        assert doctor.ports(load(QUICKSTART, [port])).level == "fail"
        assert doctor.ports(config(port)).level == "warn"
    assert doctor.ports(load(QUICKSTART, [port])).level == "ok"


def test_a_source_and_a_store_that_are_not_there_are_found(tmp_path: Path) -> None:
    assert doctor.source(config(f"source.path={tmp_path}/gone")).level == "fail"
    (tmp_path / "file").write_text("no folder")
    assert doctor.store(config(f"store.path={tmp_path}/file/store")).level == "fail"


def test_a_node_that_does_not_see_the_mark_says_so(tmp_path: Path) -> None:
    mark = open_store(str(tmp_path / "a")).put_unique("probe", b"x", "mark")
    assert look(str(tmp_path / "a"), mark, "none").store == ""
    assert "another folder" in look(str(tmp_path / "b"), mark, "none").store


def test_the_command_ends_with_1_if_something_would_fail(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = f"serve.port={taken.getsockname()[1]}"
        arguments = ["doctor", QUICKSTART, f"store.path={tmp_path}", port, "--json"]
        failed = CliRunner().invoke(app, arguments)
    assert failed.exit_code == 1
    found = {one["check"]: one["level"] for one in json.loads(failed.stdout)}
    assert found.pop("ports") == "fail"
    assert "fail" not in found.values()
    assert not [key for key in open_store(str(tmp_path)).list("") if key.startswith("probe")]
    passed = CliRunner().invoke(app, arguments[:-1])
    assert passed.exit_code == 0
    assert "ports           127.0.0.1:" in passed.stdout
