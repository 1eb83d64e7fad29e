"""Hostile input: every made-to-break record is quarantined in bounded memory, and no code of ours runs data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamcl.bench.reliability_corpus import DEADLY, run_corpus

ROOT = Path(__file__).parent.parent

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
CALLS = {
    "eval", "exec", "torch.load", "torch.jit.load", "torch.hub.load", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
    "yaml.full_load", "pandas.read_pickle", "os.system",
}  # fmt: skip
EXEMPT = ("zoo/recipe",)  # runs on its author's machine, on packages that pip verified


def forbidden(source: str) -> Iterator[str]:
    """What in this source could run code that data brought."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
            yield from (a.name for a in node.names if MODULES & {*a.name.split(".")})
        elif isinstance(node, ast.ImportFrom):
            full = {(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names}
            names |= full
            yield from (name for name in full.values() if MODULES & {*name.split(".")})
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield "allow_pickle"
        elif isinstance(node, ast.Name | ast.Attribute):
            head, dot, rest = ast.unparse(node).partition(".")
            if names.get(head, head) + dot + rest in CALLS:
                yield ast.unparse(node)


def test_no_code_loads_what_could_run() -> None:
    found = {}
    for path in sorted((ROOT / "streamcl").rglob("*.py")):
        name = path.relative_to(ROOT / "streamcl").as_posix()
        if not name.startswith(EXEMPT) and (calls := list(forbidden(path.read_text(encoding="utf-8")))):
            found[name] = calls
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "import pickle as p", "from pickle import loads", "from joblib import load",
        "import ray.cloudpickle", "from ray import cloudpickle", "exec('1')", "map(eval, lines)",
        "import torch; torch.load('x')", "import torch as t; t.load('x')", "from torch import load; load('x')",
        "import numpy as np; np.load('x', allow_pickle=True)", "f(allow_pickle=flag)",
        "import yaml; yaml.load('x', yaml.SafeLoader)", "import yaml as y; y.unsafe_load('x')",
    ],
)  # fmt: skip
def test_the_walk_finds_each_way_to_run_data(source: str) -> None:
    assert list(forbidden(source))


HARMLESS = ["model.eval()", "np.load('x', allow_pickle=False)", "yaml.safe_load('x')", "json.load(f)"]


@pytest.mark.parametrize("source", HARMLESS)
def test_the_walk_lets_harmless_code_pass(source: str) -> None:
    assert not list(forbidden(source))


def test_every_hostile_file_is_quarantined_with_its_reason_in_bounded_memory(tmp_path: Path) -> None:
    found = run_corpus(tmp_path)
    assert found["stderr"] == ""
    assert found["wrong"] == []
    assert found["files"] == sum(found["quarantined"].values()) >= 40
    assert found["good"] == found["good_expected"]  # one beside each bad record
    assert found["crashes"] == 0
    assert found["decoder_deaths"] == 3 * sum(reason == "crash" for reason, _ in DEADLY.values())
    assert found["decoder_rss_mb"] < 300  # with 120 to begin with; the 81 megapixels alone would take 309
