"""Ten times too much: what waits is bounded in bytes, on disk and in memory, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from overload import BATCH, FEATURES, MOST

from streamcl.bench.reliability_corpus import line, record

ROWS = 800


def test_a_slow_trainer_bounds_bytes_and_memory_and_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "stream").mkdir()
    lines = [line(record(text=f"question {i}", id=str(i), task="a")) for i in range(ROWS)]
    (tmp_path / "stream" / "a.jsonl").write_bytes(b"\n".join(lines))
    program = Path(__file__).parent / "overload.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(program), str(tmp_path / "stream"), str(tmp_path / "store")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found["trained"] == [str(i) for i in range(ROWS)]
    assert found["counters"] == {"in": ROWS, "accepted": ROWS, "dup": 0, "late": 0, "dead": 0, "pending": 0}
    assert found["peak"] <= 2 * (MOST + FEATURES + 1000) + 2 * BATCH * (FEATURES + 1000)
    assert found["passed"] > 10 * found["peak"]
    assert found["grown_mb"] < 20  # while 160 MB went through; a window has 4
    assert found["windows"] > 30
