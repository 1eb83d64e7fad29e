"""Faults against the commit log: each function runs scenarios and counts them, the kills, and what was violated.

`violations` is 0 where the guarantee held; the first lines of what did not hold are printed. Paths are of a folder in
memory where there is one: a killed process loses no page cache, so the disk would prove nothing.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from streamcl.errors import StoreError
from streamcl.registry.backends import LocalStore
from streamcl.registry.log import Log
from streamcl.registry.versions import Registry
from streamcl.testing.crash import FAILED, FENCED, KillPoint, Learner, files, fork, history, learn, learn_in_child

Counts = dict[str, int]


class Tally(Counter[str]):
    """Counts of one kind of fault. Mutable."""

    def __init__(self) -> None:
        super().__init__(scenarios=0, kills=0, violations=0)

    @contextmanager
    def scenario(self, name: str) -> Iterator[None]:
        """One scenario. An assertion or a store error inside is a violation."""
        self["scenarios"] += 1
        try:
            yield
        except (AssertionError, StoreError) as error:
            self["violations"] += 1
            print(f"violation in {name}: {type(error).__name__} {str(error)[:300]}")


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, where there is one, for as long as it lasts."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as path:
        yield Path(path)


def spread(items: Sequence[str], n: int | None) -> list[str]:
    """`n` of the items, evenly; all for None."""
    count = len(items) if n is None else min(n, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def undisturbed(root: Path, *, since: str = "") -> tuple[list[object], list[str]]:
    """What the small learner's log tells when nothing happens to it, and every place where something might."""
    trace = KillPoint(since=since)
    learn(root, trace)
    return history(LocalStore(root)), trace.places


def check(root: Path, expected: list[object]) -> None:
    """The history is the undisturbed one, the second version is live and whole, and nothing is left to repair."""
    store = LocalStore(root)
    assert history(store) == expected, "another history than undisturbed"
    registry = Registry(Log(store), "model")
    live = registry.resolve()
    assert live == registry.get(2), f"{live} is live"
    assert live is not None
    assert registry.read(live) == files(2)
    assert registry.repair() == [], "the pointer was behind"


def check_readable(root: Path) -> None:
    """A reader finds a log that it can trust, and a live version, if there is one, that is whole.  Raises Corrupt."""
    registry = Registry(Log(LocalStore(root)), "model")
    live = registry.resolve()
    assert live is None or registry.read(live) == files(live.window), f"half of {live}"


def log_kills(n: int | None = None, *, store: type[LocalStore] = LocalStore) -> Counts:
    """G1, G2, G24: SIGKILL at each step of each write (at `n` of them), and at one in the recovery."""
    tally = Tally()
    with scratch() as folder:
        expected, places = undisturbed(folder / "undisturbed")
        for i, place in enumerate(spread(places, n)):
            root = folder / str(i)
            with tally.scenario(f"a kill at {place}"):
                assert learn_in_child(root, place, store), f"{place} was never reached"
                check_readable(root)
                tally["kills"] += 1 + learn_in_child(root, places[i * 7 % len(places)], store)
                learn_in_child(root, "", store)
                check(root, expected)
            shutil.rmtree(root)
    return dict(tally)


def machine_runs(n: int) -> Counts:
    """L1: `n` runs of the state machine, the same ones each time. Needs hypothesis."""
    from streamcl.testing.machine import TwoWriters, explore

    class Counted(TwoWriters):
        happened: ClassVar[dict[str, int]] = {}

    tally = Tally()
    logging.getLogger("streamcl.registry").setLevel(logging.ERROR)  # it warns of every damaged commit
    with tally.scenario("the machine"):
        explore(Counted, n)
    return {**tally, **Counted.happened, "scenarios": n}


def reads(n: int, *, registry: type[Registry] = Registry) -> Counts:
    """G4: at least `n` reads of pointer, weights and digests while a writer publishes and is killed, over and over."""
    tally, rng = Tally(), random.Random(0)
    with scratch() as folder:
        staying, last = Registry(Log(LocalStore(folder)), "model"), 0
        while tally["reads"] < n:
            place = f"{rng.choice(['linked', 'synced', 'replaced', 'written'])}:{rng.randrange(5, 60)}"
            store = LocalStore(folder, reached=KillPoint(place))
            batches = [(i,) for i in range(100 + 100 * tally["kills"])]
            writer = fork(Learner(store, batches=batches, size=20_000, registry=registry).run)
            with tally.scenario(f"a writer that is killed at {place}"):
                while os.waitpid(writer, os.WNOHANG)[0] == 0:
                    reader = Registry(Log(LocalStore(folder)), "model") if rng.random() < 0.1 else staying
                    version = reader.resolve()
                    if version is not None:
                        tally["reads"] += 1
                        assert reader.read(version) == files(version.window, 20_000), f"half of {version}"
                        if reader is staying:  # the pointer lags behind the log, which a new reader looks at
                            assert version.number >= last, f"back from {last} to {version.number}"
                            last = version.number
            tally["kills"] += 1
        tally["versions"] = last
    return dict(tally)


# -- two writers -------------------------------------------------------------------------------------------------------


def zombies(n: int) -> Counts:
    """G8: SIGSTOP at `n` places, a second learner to the end, SIGCONT. `fenced`: how many found the fence.

    A violation: the woken one commits, acknowledges or moves the pointer, or its deletions hurt. Left out is what is
    one call: a stop inside the replacement of a pointer, which `late_pointers` is about.
    """
    tally = Tally()
    with scratch() as folder:
        expected, places = undisturbed(folder / "undisturbed", since="acquired")
        for i, place in enumerate(spread([*_writes(places, pointer=False)], n)):
            with tally.scenario(f"a stop at {place}"):
                root = folder / str(i)
                before, code = _wake(root, place)
                tally["fenced"] += code == FENCED
                assert code in (FENCED, FAILED), f"the woken learner went on, exit code {code}"
                assert _effects(root) == before, "the woken learner had a side effect"
                check(root, expected)
            tally["kills"] += 1
    return dict(tally)


def late_pointers(n: int) -> Counts:
    """G8: the stop is inside the replacement of a pointer: that goes back, readers do not, and it can be mended."""
    tally = Tally()
    with scratch() as folder:
        expected, places = undisturbed(folder / "undisturbed", since="acquired")
        for i, place in enumerate(spread([*_writes(places, pointer=True)], n)):
            with tally.scenario(f"a stop at {place}"):
                root = folder / str(i)
                before, _ = _wake(root, place)
                after = _effects(root)
                tally["went back"] += after != before
                assert {key for key in before if after[key] != before[key]} <= {"aliases/live.json", "effects"}
                registry = Registry(Log(LocalStore(root)), "model")
                assert registry.resolve() == registry.get(2), "a new reader believed the pointer"
                registry.repair()
                check(root, expected)
            tally["kills"] += 1
    return dict(tally)


def _wake(root: Path, place: str) -> tuple[dict[str, str], int]:
    """Stop a learner at a place, let another come to its end, wake the first: effects before, and its exit code."""
    child = fork(lambda: learn(root, KillPoint(place, signal.SIGSTOP, since="acquired")))
    _, status = os.waitpid(child, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"{place} was never reached"
    learn_in_child(root, "")
    before = _effects(root)
    os.kill(child, signal.SIGCONT)
    return before, os.WEXITSTATUS(os.waitpid(child, 0)[1])


def _effects(root: Path) -> dict[str, str]:
    """All that a learner may do to others: commits, the pointer, acknowledgements."""
    store = LocalStore(root)
    kept = {key: str(store.get(key)) for key in [*store.list("commits"), *store.list("aliases")]}
    return {**kept, "effects": Path(f"{root}.effects").read_text()}


def _writes(places: Sequence[str], *, pointer: bool) -> Iterator[str]:
    """The places inside writes that replace a pointer, or inside the others, up to the last commit."""
    last = max(i for i, place in enumerate(places) if place.startswith("linked:"))
    starts = [i for i, place in enumerate(places[: last + 1]) if place.startswith("asked:")]
    for start, end in zip(starts, [*starts[1:], last + 1], strict=True):
        write = places[start:end]
        if any(place.startswith("replaced:") for place in write) == pointer:
            yield from write
