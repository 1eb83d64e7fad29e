"""Images that kill their decoder: each is tried three times at most, and everything else arrives."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from streamcl.bench.reliability_corpus import BAD, GOOD, image, line, record
from streamcl.errors import BadSample
from streamcl.stream import Files, Limits, Merged
from streamcl.stream.images import prove
from streamcl.stream.isolate import CHILD, MEMORY_BYTES, TEST_HOOK, TRIES, Isolated
from streamcl.testing.deadly import HOOK, TRACE

LIMITS = Limits()


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where deadly attempts are told; children that start from now on have the deadly decoder."""
    path = tmp_path / "trace"
    path.touch()
    monkeypatch.setenv(TEST_HOOK, HOOK)
    monkeypatch.setenv(TRACE, str(path))
    return path


@pytest.fixture
def isolated(trace: Path) -> Iterator[Isolated]:
    isolated = Isolated()
    yield isolated
    isolated.close()


def refusal(isolated: Isolated, data: bytes) -> str | None:
    try:
        isolated.prove(data, "image 0", LIMITS)
    except BadSample as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("word", "cause"),
    [("segfault", "SIGSEGV"), ("abort", "SIGABRT"), ("exit", "exit code 3"), ("hang", "took more than 1 s"),
     ("broken", "exit code 1")],
)  # fmt: skip
def test_an_image_that_kills_its_decoder_is_tried_three_times_and_refused(
    isolated: Isolated, trace: Path, word: str, cause: str
) -> None:
    isolated.seconds = 1 if word == "hang" else 60
    reason = refusal(isolated, image() + word.encode())
    isolated.seconds = 60
    assert reason is not None
    assert reason.startswith("crash: image 0 of")
    assert cause in reason
    assert trace.read_text().split() == [word] * TRIES
    assert isolated.deaths == TRIES
    assert refusal(isolated, image()) is None  # and the next one finds a decoder


def test_memory_is_refused_and_the_decoder_lives_on(isolated: Isolated) -> None:
    assert refusal(isolated, image()) is None
    before = isolated.child
    assert "MemoryError" in (refusal(isolated, image() + b"glutton") or "")
    assert refusal(isolated, image()) is None
    assert isolated.child is before
    bytearray(2 * MEMORY_BYTES)  # the opposite: without a limit there is room


def test_a_death_of_another_cause_is_forgiven(isolated: Isolated, trace: Path) -> None:
    assert refusal(isolated, image() + b"once") is None
    assert (trace.read_text().split(), isolated.deaths) == (["once"] * 2, 1)


def test_the_child_says_what_decoding_here_says() -> None:
    isolated = Isolated()
    records = [raw for _, raw in BAD.values() if isinstance(raw, dict)] + list(GOOD.values())
    for raw in records:
        for given in raw.get("images") or ():
            if isinstance(given, str) and given[:4] in ("iVBO", "/9j/", "UklG"):
                data = base64.b64decode(given)
                try:
                    prove(data, "image 0", LIMITS)
                    expected = None
                except BadSample as error:
                    expected = str(error)
                assert refusal(isolated, data) == expected
    assert isolated.deaths == 0
    isolated.close()


def test_a_stream_goes_on_past_samples_that_kill_their_decoder(tmp_path: Path, trace: Path) -> None:
    CHILD.close()  # one from before has the usual decoder
    root = tmp_path / "root"
    root.mkdir()
    records = [record(image(), id=f"good-{i}", time=i) for i in range(6)]
    records[2:2] = [record(image(), image() + b"segfault", id="bad-1", time=2)]
    records[5:5] = [record(image() + b"abort", id="bad-2", time=4)]
    (root / "a.jsonl").write_bytes(b"\n".join(map(line, records)))
    merged, ids, dead = Merged(Files(str(root)), {}), [], []
    while (polled := merged.poll(3)) is not None:
        ids += polled.batch["id"].to_pylist()
        dead += [(letter.id, letter.reason.split(":")[0], letter.position) for letter in polled.dead]
    CHILD.close()
    assert ids == [f"good-{i}" for i in range(6)]
    assert dead == [("bad-1", "crash", 3), ("bad-2", "crash", 6)]
    assert trace.read_text().split() == ["segfault"] * TRIES + ["abort"] * TRIES


def test_a_child_whose_parent_was_killed_ends_even_in_the_middle_of_an_image(trace: Path) -> None:
    code = (
        "from streamcl.bench.reliability_corpus import image; from streamcl.stream.isolate import Isolated\n"
        "from streamcl.stream import Limits; one = Isolated(seconds=5); one.prove(image(), 'x', Limits())\n"
        "print(one.child.pid, flush=True); one.prove(image() + b'hang', 'x', Limits())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    child = psutil.Process(int(json.loads(parent.stdout.readline())))
    while "hang" not in trace.read_text():
        assert parent.poll() is None
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
