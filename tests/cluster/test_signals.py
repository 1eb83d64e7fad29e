"""Who stops a run by a signal is heard, although Ray brings handlers of its own."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import os, signal, sys
from streamcl.cluster import runtime
from streamcl.config import parse

def heard(*_):
    print("heard", flush=True)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, heard)
    START
    os.kill(os.getpid(), signal.SIGTERM)
    runtime.stop_ray()
"""
OURS = 'runtime.start_ray(parse({"store": "none", "model": "none", "source": {"kind": "files", "path": "none"}}))'
RAYS = 'import ray; ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")'


def said(start: str) -> tuple[int, str]:
    script = SCRIPT.replace("START", start)
    quiet = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=quiet, timeout=300)
    return done.returncode, done.stdout.strip()


def test_sigterm_reaches_the_run_and_with_rays_own_handler_it_does_not() -> None:
    assert said(OURS) == (0, "heard")
    code, output = said(RAYS)
    assert code != 0
    assert "heard" not in output
