"""Scenarios for the small learner: a process each life, killed by SIGKILL at named points, until one is through."""

from __future__ import annotations

import os
import random
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from streamcl.bench.reliability_learner import HEALTHY, Parts, config_of, learn
from streamcl.bench.reliability_state import Ending, Violation, Watcher, different, ending
from streamcl.bench.reliability_stream import write_stream
from streamcl.errors import Fenced, StoreError, StreamclError
from streamcl.testing.crash import KillPoint

LIVES = 40
"""A scenario that is not through after so many lives will never be."""
ENDED, FENCED, REFUSED, FAILED = 0, 42, 43, 1
TIMEOUT_S = 600


@dataclass
class Tally:
    """What a series of scenarios came to (mutable)."""

    scenarios: int = 0
    kills: int = 0
    reads: int = 0
    points: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    @property
    def bound(self) -> float:
        """With 0 violations: the share of such scenarios that may violate something, at 95 % confidence."""
        return min(1.0, 3 / self.scenarios) if self.scenarios else 1.0

    def __add__(self, other: Tally) -> Tally:
        sums = {name: getattr(self, name) + getattr(other, name) for name in vars(self)}
        return Tally(**sums)


@dataclass(frozen=True)
class Ground:
    """Where scenarios take place: the stream, and what an undisturbed healthy run over it leaves."""

    folder: Path
    stream: Path
    expected: Ending
    places: Counter[str]
    """How often an undisturbed run reaches each point."""

    def ending(self, root: Path, *, whole_log: bool = True) -> Ending:
        return ending(config_of(self.stream, root), whole_log=whole_log)


@contextmanager
def ground() -> Iterator[Ground]:
    """A folder in memory where there is one: a killed process loses no page cache, so the disk proves nothing here."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with TemporaryDirectory(prefix="streamcl-bench-", dir=memory) as name:
        folder = Path(name)
        stream = write_stream(folder / "stream")
        reached = KillPoint()
        learn(stream, folder / "calm", reached)
        yield Ground(folder, stream, ending(config_of(stream, folder / "calm")), reached.counts)


def start(work: Callable[[], None], complaint: Path) -> int:
    """Forks a process that does `work`; its pid. What goes wrong there is written to `complaint`."""
    pid = os.fork()
    if pid:
        return pid
    complaint.unlink(missing_ok=True)
    status = FAILED
    signal.alarm(TIMEOUT_S)
    try:
        work()
        status = ENDED
    except Fenced:
        status = FENCED
    except StreamclError as error:
        complaint.write_text(f"{type(error).__name__}: {error}")
        status = REFUSED
    except BaseException:
        complaint.write_text(traceback.format_exc())
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """The exit status of a child; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@dataclass(frozen=True)
class Killed:
    """One scenario: where its first lives are killed; further lives go on to the end."""

    at: Sequence[str]
    seed: int | None = None
    """Events in an order drawn from it; None: in the order in which they happened."""

    def __str__(self) -> str:
        return f"killed at {', '.join(self.at)}" + (f", order {self.seed}" if self.seed is not None else "")


def lives(ground: Ground, root: Path, scenario: Killed, parts: Parts = HEALTHY) -> list[str]:
    """Lives the scenario to its end; the points at which a process died.  Raises Violation."""
    died: list[str] = []
    for life in range(LIVES):
        at = scenario.at[life] if life < len(scenario.at) else ""
        dice = None if scenario.seed is None else random.Random(f"{scenario.seed}/{life}")
        complaint = root.with_suffix(".error")
        status = wait(start(lambda: learn(ground.stream, root, KillPoint(at), parts, dice), complaint))  # noqa: B023
        if status == -signal.SIGKILL:
            died.append(at)
        elif status != ENDED:
            told = complaint.read_text()[-600:] if complaint.exists() else f"status {status}"
            raise Violation(f"G1: life {life + 1} does not go on: {told}")
        elif life >= len(scenario.at) - 1:
            return died
    raise Violation(f"G1: not through after {LIVES} lives")


def run(ground: Ground, scenarios: Iterable[Killed], parts: Parts = HEALTHY) -> Tally:
    """Runs scenarios, with a reader beside them."""
    tally, watcher = Tally(), Watcher()
    for number, scenario in enumerate(scenarios):
        root = ground.folder / f"run-{number}"
        watcher.turn_to(root)
        tally.scenarios += 1
        try:
            died = lives(ground, root, scenario, parts)
            tally.kills += len(died)
            tally.points.update(place.rpartition(":")[0] for place in died)
            if wrong := different(ground.ending(root), ground.expected):
                raise Violation(f"G1, G2: {wrong}")
        except (Violation, StoreError) as error:
            tally.violations.append(f"{scenario}: {error}")
        seen = watcher.turn_to(ground.folder / "nowhere")  # before the run's folder goes
        if seen.violation:
            tally.violations.append(f"{scenario}: {seen.violation}")
        shutil.rmtree(root, ignore_errors=True)
    tally.reads = watcher.close().reads
    return tally


def every_point(places: Counter[str], *, times: int = 3, again: bool = True) -> Iterator[Killed]:
    """A kill at each point: the first time it is reached, the last, and evenly between; then one more in recovery.

    The second kill takes the points in turn, at their first occurrence, so that many fall into recovery itself.
    """
    names = sorted(places)
    for index, name in enumerate(names):
        for turn, nth in enumerate(occurrences(places[name], times)):
            second = names[(index * 7 + turn * 31) % len(names)]
            yield Killed([f"{name}:{nth}", f"{second}:1"] if again else [f"{name}:{nth}"])


def occurrences(count: int, times: int) -> list[int]:
    """`times` numbers of 1 to `count`, from first to last; fewer if there are not so many."""
    if times == 1:
        return [1 + count // 2]
    return sorted({1 + round(turn * (count - 1) / (times - 1)) for turn in range(times)})


def chains(places: Counter[str], count: int, *, seed: int = 0) -> Iterator[Killed]:
    """Random chains of three to eight kills, most of them in recovery, with events in random order."""
    dice = random.Random(seed)
    names = sorted(places)
    for number in range(count):
        at = [f"{dice.choice(names)}:{dice.choice((1, 1, 1, 2, 3))}" for _ in range(dice.randint(3, 8))]
        yield Killed(at, seed=number)
