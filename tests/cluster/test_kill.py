"""SIGKILL of the whole process tree in the middle of the third window, then the same command again."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from runs import settings, start, write_yaml

from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.testing import kill_tree

pytestmark = pytest.mark.chaos
TRAIN, WINDOW = 48, 32


def finished(run: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = run.communicate(timeout=400)
    assert run.returncode == 0, err[-3000:]
    result: dict[str, Any] = json.loads(out)
    return result


def prepare(folder: Path) -> Path:
    return write_yaml(folder, settings(folder, train=TRAIN, window={"samples": WINDOW}))


def wait_for_window(store: Path, number: int, run: subprocess.Popen[str]) -> None:
    """Until window `number` is in the log and unanswered: it is being trained."""
    log = Log(open_store(str(store)))
    for _ in range(3000):
        assert run.poll() is None, "the run ended before the window came"
        head = log.head()
        if head is not None and head.kind == "window" and head.window and head.window["id"] == number:
            return
        time.sleep(0.1)
    raise AssertionError(f"window {number} never came")


def test_a_killed_run_goes_on_and_ends_with_the_counts_of_an_undisturbed_one(tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    (tmp_path / "killed").mkdir()
    calm = finished(start(prepare(tmp_path / "calm")))
    command = prepare(tmp_path / "killed")
    run = start(command)
    wait_for_window(tmp_path / "killed" / "store", 3, run)
    time.sleep(1.0)
    assert kill_tree(run.pid) >= 10
    result = finished(start(command))
    assert result["counters"] == calm["counters"]
    assert result["counters"]["accepted"] == 2 * TRAIN
    windows = [version["window"] for version in result["versions"]]
    assert windows == [version["window"] for version in calm["versions"]] == list(range(1, calm["windows"] + 1))
    assert [v["scores"] for v in result["versions"]] == [v["scores"] for v in calm["versions"]]
    log = Log(open_store(str(tmp_path / "killed" / "store")))
    assert [record.epoch for record in log.records() if record.kind == "fence"] == [1, 2]


def test_ctrl_c_commits_what_was_taken_in_and_ends_cleanly(tmp_path: Path) -> None:
    values = settings(tmp_path, train=200)
    values["train"]["epochs"] = 500  # a window of an hour: it must be left in the middle
    command = write_yaml(tmp_path, values)
    run = start(command)
    wait_for_window(tmp_path / "store", 1, run)
    time.sleep(20.0)  # the workers start and take it
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0, err[-2000:]
    counters = json.loads(out)["counters"]
    assert counters["in"] == sum(counters[fate] for fate in ("accepted", "dup", "late", "dead", "pending"))
    head = Log(open_store(str(tmp_path / "store"))).head()
    assert head is not None
    assert head.kind == "data"
    assert "Traceback" not in err
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
