"""What is asked of the small learner as a whole, one function a guarantee. Each prepares its own ground.

They fork, so run them in a process that has started neither Ray nor threads.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamcl.bench.reliability_faults import DAMAGED_AT, Damages, Lossy, damages, full, stopping_points, zombies
from streamcl.bench.reliability_kill import Tally, chains, every_point, ground, run
from streamcl.bench.reliability_learner import Parts
from streamcl.bench.reliability_twins import caught

SIZES_KIB = range(48, 700, 24)


def kills(*, times: int = 3, every: int = 1) -> Tally:
    """G1-G4, G24: SIGKILL at each named point, `times` occurrences of it, and again in recovery."""
    with ground() as here:
        return run(here, [*every_point(here.places, times=times)][::every])


def random_chains(count: int, *, seed: int = 0) -> Tally:
    """G1-G4, G24: three to eight SIGKILLs one after the other, wherever they fall, events in random order."""
    with ground() as here:
        return run(here, chains(here.places, count, seed=seed))


def two_writers(count: int) -> Tally:
    """G8: a writer is stopped, another comes to the end, the first wakes."""
    with ground() as here:
        places = [*stopping_points(here.places)]
        return zombies(here, [places[i * len(places) // count] for i in range(count)])


def lost_replies(count: int) -> Tally:
    """G9: chains of kills on a store that loses, delays and repeats."""
    with ground() as here:
        return run(here, chains(here.places, count, seed=1), Parts(store=Lossy))


def damaged_objects(*, every: int = 1) -> Damages:
    """G11: each object of a killed run flipped, cut, deleted; then the run goes on, or says which object it misses."""
    with ground() as here:
        return damages(here, DAMAGED_AT, every=every)


def full_disk(sizes_kib: Sequence[int] = SIZES_KIB) -> Tally:
    """G12: no space at some moment, then space again.  Raises OSError where no file system can be mounted."""
    with ground() as here:
        return full(here, sizes_kib)


def broken_twins() -> dict[str, str]:
    """By twin, the violation that caught it; empty where it passed."""
    with ground() as here:
        return caught(here)
