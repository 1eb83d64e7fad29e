"""UCIT- and CoIN-shaped directories, in their exact layout: read in the papers' order, trained on, scored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamcl.bench import continual_papers as papers
from streamcl.bench.continual_data import ORDERS, arena, read, through
from streamcl.errors import ConfigError


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("papers")
    return {kind: papers.write(root / kind, kind, train=4, test=2) for kind in ORDERS}


@pytest.mark.parametrize("kind", ORDERS)
def test_a_directory_is_read_in_the_papers_order(roots: dict[str, Path], kind: str) -> None:
    found, tasks = read(roots[kind])
    assert found == kind
    assert [task.name for task in tasks] == list(ORDERS[kind])
    assert all(len(task.train) == 4 and len(task.test) == 2 for task in tasks)
    assert len({sample.id for task in tasks for sample in task.train}) == 4 * len(
        tasks
    )  # theirs are "0" to "3" in each
    assert all(sample.images[0].startswith(b"\xff\xd8") for task in tasks for sample in (*task.train, *task.test))
    metrics = {task.name: task.metric for task in tasks if task.metric != "exact match"}
    assert metrics == (
        {"VizWiz": "captions", "Flickr30k": "captions"} if kind == "UCIT" else {"Grounding": "box IoU >= 0.5"}
    )


@pytest.mark.parametrize("case", ["no task", "no test file", "a picture is missing"])
def test_a_directory_that_is_not_whole_says_so(tmp_path: Path, case: str) -> None:
    root = papers.write(tmp_path / "d", "CoIN", train=1, test=1)
    messages = {"no task": "no folder of a task", "no test file": "no test", "a picture is missing": "row 1: image"}
    if case == "no task":
        root = tmp_path / "empty"
        root.mkdir()
    elif case == "no test file":
        (root / "Instruction_Type1" / "GQA" / "test.json").unlink()
    else:
        (root / "GQA" / "images" / "train_0.jpg").unlink()
    with pytest.raises(ConfigError, match=messages[case]):
        read(root)


def test_one_strategy_learns_two_tasks_and_is_scored_after_each(tmp_path: Path) -> None:
    root = papers.write(tmp_path / "d", "UCIT", train=96, test=4)
    tasks = [task for task in read(root)[1] if task.name in ("ImageNet-R", "VizWiz")]
    result = through("finetune", arena(tasks, "zoo:small"), seed=0, settings={})
    first, second = result["matrix"]
    assert None not in (*first, second[1])
    assert second[1] > result["zero_shot"]["VizWiz"]  # "a picture of the ..." was learned
    assert result["last"] == pytest.approx((first[1] + second[1]) / 2)
    assert {"avg", "imd", "bwt", "bwt_octopus", "forgetting", "fwt"} <= {*result}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ORDERS)
def test_the_command_prints_the_papers_metrics(roots: dict[str, Path], kind: str) -> None:
    command = [sys.executable, "-m", "streamcl.cli", "bench", "continual", "--data", str(roots[kind])]
    done = subprocess.run([*command, "--strategies", "dgg", "--json"], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["benchmark"] == kind
    assert list(found["tasks"]) == list(ORDERS[kind])
    (result,) = found["results"]
    assert all(0 <= result[name] <= 1.5 for name in ("last", "avg", "imd", "maa"))
