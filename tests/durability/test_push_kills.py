"""Pushed samples from the producer to the learner's log, with the endpoint and the learner killed on the way (6.3)."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamcl.bench.push import WRONG, killed
from streamcl.bench.push_clients import Process
from streamcl.testing import free_port


@pytest.mark.chaos
def test_what_was_answered_is_in_the_log_once(tmp_path: Path) -> None:
    found = killed(Process(tmp_path, free_port()), tmp_path, 8)
    print(found)
    assert {name: found[name] for name in WRONG} == dict.fromkeys(WRONG, 0)
    assert found["requests"] > found["keys"] > 100, "some came again"


@pytest.mark.chaos
def test_an_endpoint_that_answers_before_it_has_written_is_caught(tmp_path: Path) -> None:
    assert killed(Process(tmp_path, free_port(), "early"), tmp_path, 3)["missing"] > 0
