"""What else befalls the small learner: a second writer, lost replies, damaged objects, a full disk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from streamcl.bench.reliability_here import Reached
from streamcl.bench.reliability_kill import (
    ENDED,
    FENCED,
    REFUSED,
    Ground,
    Killed,
    Tally,
    lives,
    occurrences,
    start,
    wait,
)
from streamcl.bench.reliability_learner import HEALTHY, Parts, Pointed, learn
from streamcl.bench.reliability_state import Violation, different, hold
from streamcl.errors import StoreError
from streamcl.registry.backends import LocalStore, Outcome
from streamcl.testing.crash import KillPoint

# -- two writers -------------------------------------------------------------------------------------------------------


def stopping_points(places: Counter[str], *, times: int = 1) -> Iterator[str]:
    """Where a writer is stopped: in the first half of what it does, so that it has commits before it."""
    for name, count in sorted(places.items()):
        if count > 2:
            yield from (f"{name}:{nth}" for nth in occurrences(1 + count // 2, times))


def zombies(ground: Ground, places: Sequence[str], parts: Parts = HEALTHY) -> Tally:
    """SIGSTOP at each place, a second writer to the stream's end, SIGCONT: the first must stop and change nothing."""
    tally = Tally()
    for number, place in enumerate(places):
        root = ground.folder / f"zombie-{number}"
        tally.scenarios += 1
        tally.points[place.rpartition(":")[0]] += 1
        try:
            _overtaken(ground, root, place, parts)
        except (Violation, StoreError) as error:
            tally.violations.append(f"stopped at {place}: {error}")
        shutil.rmtree(root, ignore_errors=True)
    return tally


def _overtaken(ground: Ground, root: Path, place: str, parts: Parts) -> None:
    """A writer that is stopped amid a move of the pointer moves it when it wakes: readers ask the log first."""
    complaint = root.with_suffix(".error")
    first = start(lambda: learn(ground.stream, root, KillPoint(place, signal.SIGSTOP), parts), complaint)
    _, status = os.waitpid(first, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"{place} was not reached"
    try:
        lives(ground, root, Killed([]), parts)
        if wrong := different(ground.ending(root), ground.expected):
            raise Violation(f"G8: of the second writer, {wrong}")
        commits = LocalStore(root).list("commits")
    finally:
        os.kill(first, signal.SIGCONT)
        status = wait(first)
    hold(status == FENCED, f"G8: the first writer ended with status {status}, not Fenced")
    hold(LocalStore(root).list("commits") == commits, "G8: the first writer committed")
    late = "pointer" if place.startswith("aliases") else ""
    expected = {name: value for name, value in ground.expected.items() if name != late}
    if wrong := different(ground.ending(root), expected):
        raise Violation(f"G8: {wrong}")


# -- lost replies ------------------------------------------------------------------------------------------------------


class Lossy(Pointed):
    """A store behind a bad line: of every four puts one loses its request, its reply, comes late, or comes twice."""

    def __init__(self, root: Path, reached: Reached) -> None:
        super().__init__(root, reached)
        lives = len(os.listdir(root / "commits")) if (root / "commits").is_dir() else 0
        self.dice = random.Random(f"{root.name}/{lives}")
        self.late: list[tuple[str, bytes]] = []

    def put_if_absent(self, key: str, data: bytes) -> Outcome:
        late, self.late = self.late, []
        for put in late:
            super().put_if_absent(*put)
        fault = self.dice.choice(("dropped", "lost", "late", "repeated", *[""] * 12))
        if fault in ("dropped", "late"):
            self.late = [(key, data)] if fault == "late" else []
            return "unknown"
        outcome = super().put_if_absent(key, data)
        if fault == "repeated":
            return super().put_if_absent(key, data)
        return "unknown" if fault == "lost" else outcome


# -- damaged objects ---------------------------------------------------------------------------------------------------


@dataclass
class Damages:
    """What became of runs whose objects were damaged (mutable)."""

    walked_past: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """By kind of object: the run stops with an error that names the object."""
    violations: list[str] = field(default_factory=list)

    @property
    def scenarios(self) -> int:
        return self.walked_past + self.refused.total() + len(self.violations)


DAMAGED_AT = "heard Frozen:6"
"""Where the run is killed whose objects are damaged: a window is in training."""
KEPT = ("counters", "positions", "watermark", "tasks", "seen", "live", "reservoir", "memory")
"""What an ending has without its history, of which a damaged commit is a part."""


def damages(ground: Ground, at: str, parts: Parts = HEALTHY, *, every: int = 1, only: str = "") -> Damages:
    """A run killed at `at`; each object it has left, in turn, is flipped, cut or deleted; then the run goes on.

    `only`: objects of this folder.
    """
    whole, found = ground.folder / "whole", Damages()
    shutil.rmtree(whole, ignore_errors=True)
    status = wait(start(lambda: learn(ground.stream, whole, KillPoint(at)), whole.with_suffix(".error")))
    assert status == -signal.SIGKILL, f"{at} was not reached"
    for number, key in enumerate(LocalStore(whole).list(only)):
        for harm in ("flip", "cut", "delete"):
            if (3 * number + ("flip", "cut", "delete").index(harm)) % every == 0:
                root = ground.folder / "damaged"
                shutil.copytree(whole, root)
                _damage(root / key, harm)
                _go_on(ground, root, key, whole, parts, found, f"{key}, {harm}")
                shutil.rmtree(root)
    return found


def _damage(file: Path, harm: str) -> None:
    data = file.read_bytes()
    file.unlink()  # copies may share the inode
    if harm != "delete":
        middle = len(data) // 2
        file.write_bytes(data[:middle] + (bytes([data[middle] ^ 1]) + data[middle + 1 :] if harm == "flip" else b""))


def _go_on(ground: Ground, root: Path, key: str, whole: Path, parts: Parts, found: Damages, what: str) -> None:
    complaint = root.with_suffix(".error")
    status = wait(start(lambda: learn(ground.stream, root, KillPoint(), parts), complaint))
    told = complaint.read_text() if complaint.exists() else ""
    kind, _, name = key.partition("/")
    commit = kind == "commits"
    if status == REFUSED and (key in told or (commit and ("no version" in told or f"commit {int(name[:20])}" in told))):
        found.refused[f"data/{name.partition('/')[0]}" if kind == "data" and name.count("/") else kind] += 1
        return
    try:
        hold(status == ENDED, f"G11: status {status}, {told[-300:]}")
        if kind not in ("commits", "aliases", "hint"):
            shutil.copy(whole / key, root / key)  # the audit reads old objects that the run had no more need of
        expected = {name: ground.expected[name] for name in KEPT} if commit else ground.expected
        wrong = different(ground.ending(root, whole_log=not commit), expected)
        hold(not wrong, f"G11: {wrong}")
        found.walked_past += 1
    except (Violation, StoreError) as error:
        found.violations.append(f"{what}: {error}")


# -- a full disk -------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A file system of `kib` KiB at `folder`.  Raises OSError where this process may not mount one."""
    folder.mkdir()
    _mount(folder, f"size={kib}k")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def _mount(folder: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise OSError(f"cannot mount a small disk: {done.stderr.decode()}")


def full(ground: Ground, sizes: Sequence[int], parts: Parts = HEALTHY) -> Tally:
    """The disk fills up at so many KiB; then there is space again, and the run goes on."""
    tally = Tally()
    for kib in sizes:
        with small_disk(ground.folder / f"disk-{kib}", kib) as disk:
            root, complaint = disk / "run", ground.folder / "full.error"
            status = wait(start(lambda: learn(ground.stream, root, KillPoint(), parts), complaint))  # noqa: B023
            tally.scenarios += 1
            try:
                told = complaint.read_text() if complaint.exists() else ""
                room = status == ENDED
                hold(room or (status == REFUSED and "space" in told), f"G12: status {status}, {kib} KiB: {told[-300:]}")
                _mount(disk, "remount,size=64m")
                lives(ground, root, Killed([]), parts)
                if wrong := different(ground.ending(root), ground.expected):
                    raise Violation(f"G12: {wrong}")
            except (Violation, StoreError) as error:
                tally.violations.append(f"{kib} KiB: {error}")
    return tally
