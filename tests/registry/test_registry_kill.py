"""SIGKILL at every step of every write, and in recovery: the history is that of an undisturbed run (G1, G2, G24)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamcl.errors import Fenced
from streamcl.registry.backends import LocalStore, Outcome
from streamcl.registry.log import Log
from streamcl.registry.versions import Registry

from . import crash


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: a killed process loses no page cache, so the disk proves nothing here."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as path:
        yield Path(path)


class InPlace(LocalStore):
    """Broken twin: writes under the final name, so a killed writer leaves half a file there."""

    def put_if_absent(self, key: str, data: bytes) -> Outcome:
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(file, "xb", buffering=0) as half:
                half.write(data[: len(data) // 2])
                self.reached("half")
                half.write(data[len(data) // 2 :])
        except FileExistsError:
            return "exists"
        return "created"


def learn_in_child(root: Path, kill_at: str, store: type[LocalStore] = LocalStore) -> bool:
    """Whether the forked learner was killed; False: it came to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            crash.learn(root, crash.KillPoint(kill_at), store)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, f"the learner failed with {kill_at or 'no kill'}, see its traceback"
    return False


def check(root: Path, expected: list[object]) -> None:
    assert crash.history(root) == expected
    registry = Registry(Log(LocalStore(root)), "model")
    live = registry.resolve()
    assert live == registry.get(2)
    assert registry.read(live)["adapter_model.safetensors"] == b"trained on window 2"
    assert registry.repair() == []


def test_a_kill_at_every_step_and_again_during_recovery_leaves_the_same_history(folder: Path) -> None:
    undisturbed, counter = folder / "undisturbed", crash.KillPoint()
    crash.learn(undisturbed, counter)
    expected = crash.history(undisturbed)
    assert expected[-1][1]["counters"] == {"in": 10, "accepted": 7, "dup": 3}
    places = [f"{point}:{nth}" for point, count in sorted(counter.counts.items()) for nth in range(1, count + 1)]
    kills = 0
    for i, place in enumerate(places):
        root = folder / str(i)
        assert learn_in_child(root, place), f"{place} was never reached"
        again = places[i * 7 % len(places)]
        kills += 1 + learn_in_child(root, again)
        learn_in_child(root, "")
        check(root, expected)
        shutil.rmtree(root)
    print(f"{len(places)} scenarios / {kills} kills / 0 violations: at most {3 / len(places):.1%} at 95 %")
    assert len(counter.counts) == 8
    assert kills > 1.2 * len(places)


def test_a_store_that_writes_in_place_is_caught(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    failed = 0
    for nth in range(1, 16):
        root = folder / str(nth)
        assert learn_in_child(root, f"half:{nth}", InPlace)
        try:
            learn_in_child(root, "", InPlace)
        except AssertionError:
            failed += 1
    capfd.readouterr()
    assert failed >= 3, "half a file of each version stays in the way"


def test_the_same_with_a_process_of_its_own(folder: Path) -> None:
    root, repository = folder / "run", Path(__file__).parents[2]
    undisturbed = folder / "undisturbed"
    crash.learn(undisturbed, crash.KillPoint())
    codes = []
    for place in ("linked:9", "replaced:2", ""):
        environment = {**os.environ, "STREAMCL_KILL_AT": place, "PYTHONPATH": str(repository)}
        learner = subprocess.run([sys.executable, crash.__file__, str(root)], env=environment, check=False)
        codes.append(learner.returncode)
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    check(root, crash.history(undisturbed))


def test_sigstop_a_second_writer_then_sigcont_stops_the_first(folder: Path) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            crash.learn(folder / "run", crash.KillPoint("linked:20", signal.SIGSTOP))
        except Fenced:
            status = 42
        finally:
            os._exit(status)
    os.waitpid(child, os.WUNTRACED)
    assert not learn_in_child(folder / "run", "")
    expected = crash.history(folder / "run")
    pointer = (folder / "run/aliases/live.json").read_bytes()
    os.kill(child, signal.SIGCONT)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 42
    assert crash.history(folder / "run") == expected
    assert (folder / "run/aliases/live.json").read_bytes() == pointer
