"""Faults of the store under the commit log: damage, a full disk, a power cut, lost replies. Counted likewise."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from streamcl.bench.reliability_log import Counts, Tally, check, check_readable, scratch, spread, undisturbed
from streamcl.errors import Corrupt, Fenced, StoreError
from streamcl.registry.backends import LocalStore, probe
from streamcl.registry.log import Log
from streamcl.registry.record import Record
from streamcl.registry.versions import Registry
from streamcl.testing.crash import KillPoint, Learner, files
from streamcl.testing.powercut import PowerLost, SimulatedDisk

# -- G11: damage -------------------------------------------------------------------------------------------------------

MORE = ((0, 1, 2), (2, 3), (4, 1), (5, 5, 6), (7, 8), (8, 9), (10,), (11,))
"""What the source delivers after the damage too: two more windows."""


def damages() -> Counts:
    """G11: flip, cut and delete each object in turn, then learn on. `found`: a reader of the object itself is told."""
    tally = Tally()
    with scratch() as folder:
        Learner(LocalStore(folder / "sound")).run()
        Learner(LocalStore(folder / "whole")).run()
        Learner(LocalStore(folder / "whole"), batches=MORE).run()
        for key in LocalStore(folder / "sound").list(""):
            for how in ("flip", "cut", "delete"):
                root = folder / "damaged"
                shutil.copytree(folder / "sound", root)
                with tally.scenario(f"{how} of {key}"):
                    damage(root / key, how)
                    tally["found"] += _found(LocalStore(root), key)
                    Learner(LocalStore(root), batches=MORE).run()
                    _same_end(LocalStore(root), LocalStore(folder / "whole"))
                shutil.rmtree(root)
    return dict(tally)


def damage(file: Path, how: str) -> None:
    """Flip a bit in the middle of a file, cut it in half, or delete it."""
    data = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
        return
    data[len(data) // 2] ^= 1
    file.write_bytes(data if how == "flip" else data[: len(data) // 2])


def _found(store: LocalStore, key: str) -> bool:
    """Whether reading the damaged object, as its readers do, raises Corrupt. Pointers and hints are derived: False."""
    log = Log(store)
    try:
        if key.startswith("commits/"):
            Record.parse(store.get(key) or b"", n=int(key[-25:-5]))
        for record in log.back():
            for ref in record.state.get("refs", {}).values():
                if ref["key"] == key:
                    log.get_object(ref)
            if record.version and key.startswith(f"{record.version['path']}/"):
                registry = Registry(log, "model")
                registry.read(registry.get(record.version["number"]))
    except Corrupt:
        return True
    return False


def _same_end(store: LocalStore, whole: LocalStore) -> None:
    """The same samples are counted as without the damage, and the last window's version is live and whole."""
    ends = []
    for log in (Log(store), Log(whole)):
        head = log.head()
        assert head is not None
        counts = {name: head.state[name] for name in ("sources", "counters", "windows")}
        ends.append((counts, log.get_object(head.state["refs"]["seen"])))
    assert ends[0] == ends[1], f"ended with {ends[0]}, undisturbed with {ends[1]}"
    registry = Registry(Log(store), "model")
    live = registry.resolve()
    assert live is not None
    assert registry.read(live) == files(len(MORE) // 2)


# -- G12: the disk is full ---------------------------------------------------------------------------------------------


def disk_full(*, rooms: int = 40) -> Counts:
    """G12: the disk takes a little, then a little more, `rooms` times, and each time space comes back.

    Each twice: a file may grow to so many bytes (RLIMIT_FSIZE), and, where mounting is permitted, a tmpfs has so many
    pages left (`tmpfs` counts these). `refused`: runs that ended with an error.
    """
    tally = Tally()
    with scratch() as folder:
        expected, _ = undisturbed(folder / "undisturbed")
        for room in range(rooms):
            with tally.scenario(f"files of {50 * room} bytes at most"):
                _run_out(folder / f"limited {room}", _small_files(50 * room), expected, tally)
        disk = folder / "disk"
        disk.mkdir()
        size = 1 << 20
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            return dict(tally)
        try:
            for room in range(rooms):
                with tally.scenario(f"{room} pages of 4096 bytes left"):
                    tally["tmpfs"] += 1
                    _run_out(disk / "run", _ballast(disk / "ballast", room), expected, tally)
                shutil.rmtree(disk / "run", ignore_errors=True)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    return dict(tally)


def _run_out(root: Path, limit: AbstractContextManager[None], expected: list[object], tally: Tally) -> None:
    acknowledged: list[int] = []
    root.mkdir()
    with limit:
        try:
            Learner(LocalStore(root), acknowledge=acknowledged.append).run()
        except StoreError:
            tally["refused"] += 1
    head = Log(LocalStore(root)).head()
    assert max(acknowledged, default=0) <= (head.n if head else 0), "acknowledged, and not there"
    check_readable(root)
    Learner(LocalStore(root)).run()
    check(root, expected)


@contextmanager
def _small_files(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: a write stops half-way, then fails."""
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heard)


@contextmanager
def _ballast(file: Path, pages: int) -> Iterator[None]:
    """The disk is full but for so many pages."""
    there = os.statvfs(file.parent)
    file.write_bytes(bytes((there.f_bavail - pages) * there.f_frsize))
    try:
        yield
    finally:
        file.unlink()


# -- power -------------------------------------------------------------------------------------------------------------


def power_cuts(n: int | None = None, *, skip: Callable[[os.stat_result], bool] = lambda info: False) -> Counts:
    """A simulated power cut at each step of each write (at `n` of them): what was acknowledged is there afterwards.

    Half of the disks lose all that was not synced, the others some of it. `skip`: syncs that the disk ignores.
    """
    tally = Tally()
    with scratch() as folder:
        expected, places = undisturbed(folder / "undisturbed")
        for i, place in enumerate(spread([place for place in places if place != "acquired:1"], n)):
            left = folder / f"left {i}"
            with tally.scenario(f"a power cut at {place}"):
                acknowledged = _cut(folder / str(i), place, left, random.Random(i) if i % 2 else None, skip)
                committed = {record.n for record in Log(LocalStore(left)).records()}
                assert acknowledged <= committed, f"of {acknowledged} only {committed} are left"
                Learner(LocalStore(left)).run()
                check(left, expected)
            tally["kills"] += 1
    return dict(tally)


def _cut(
    root: Path, place: str, left: Path, lucky: random.Random | None, skip: Callable[[os.stat_result], bool]
) -> set[int]:
    """Run until `place`, and write what the disk has then to `left`; the commits that were acknowledged."""
    trace, disk, acknowledged = KillPoint(), SimulatedDisk(root, skip=skip), set[int]()

    def reached(point: str) -> None:
        trace(point)
        if trace.places[-1] == place:
            raise PowerLost

    try:
        Learner(LocalStore(root, reached=reached, sync=disk.sync), acknowledge=acknowledged.add).run()
    except PowerLost:
        disk.cut(left, lucky=lucky)
        return acknowledged
    finally:
        disk.close()
    raise AssertionError(f"{place} was never reached")


# -- G9: lost replies --------------------------------------------------------------------------------------------------


def ambiguous_puts(n: int, *, log: type[Log] = Log) -> Counts:
    """G9: `n` commits to a real S3 server over HTTP, whose requests and replies are lost, late, refused or repeated.

    Half of them with the client's own retries. Before every tenth, another writer takes over: the old one must notice.
    Needs moto and s3fs.
    """
    from streamcl.testing.proxy import FAULTS, bucket

    tally, rng = Tally(), random.Random(0)
    weights = [0.25 if fault == "reply late" else 1 for fault in FAULTS]  # that one takes as long as the client waits
    for retries in (1, 5):
        with bucket(retries=retries) as (store, proxy):
            probe(store)
            writers = [log(store, backoff=lambda attempt: time.sleep(0.01)) for _ in range(2)]
            writers[0].acquire("writer")
            for i in range(n // 2):
                proxy.faults = rng.choices(FAULTS, weights, k=rng.randint(1, 3))
                with tally.scenario(f"commit {i} with {proxy.faults}"):
                    try:
                        if i % 10 == 9:
                            writers.reverse()
                            writers[0].acquire(f"writer at {i}")
                            _stopped(writers[1])
                        writers[0].append("data", state={"i": i})
                    except StoreError as error:
                        if isinstance(error, Fenced):
                            raise
                        tally["restarts"] += 1  # the server was away for longer than anyone waits
                        proxy.faults = []
                        proxy.land()
                        _again(writers[0], i)
                proxy.faults = []
                proxy.land()
            with tally.scenario("the whole log"):
                made = [record.state["i"] for record in Log(store).records() if record.kind == "data"]
                assert made == list(range(n // 2)), f"{len(made)} commits for {n // 2}: some are lost or doubled"
            tally["faults"] += sum(proxy.met.values())
    tally["scenarios"] -= 2  # the two looks at the whole
    return dict(tally)


def _again(log: Log, i: int) -> None:
    """What a learner does that starts again: take the fence, look what is there, go on."""
    log.acquire(f"writer again at {i}")
    made = [record.state["i"] for record in log.records() if record.kind == "data"]
    if made[-1:] != [i]:
        log.append("data", state={"i": i})


def _stopped(zombie: Log) -> None:
    try:
        zombie.append("data", state={"i": -1})
    except Fenced:
        return
    raise AssertionError("a writer that was replaced committed")
