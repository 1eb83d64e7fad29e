"""Chooses OVERSHOOT in `detect/evidence.py`.  `python -m streamcl.bench.boundaries_calibrate`, some minutes

The detector runs on streams without change, every alarm counted, with the constant that is there. Where realised and
wanted run length differ over all data together, at both run lengths, the constant times that factor is the better one;
1.3 was kept with a factor of 1.10 at 1,000 and of 0.94 at 10,000. The data: three tasks of the zoo, and synthetic rows
without end; `bench/boundaries.py` measures its claims on the other six tasks. Last comes what the constant would be if
the reference were all of the task: the overshoot of the statistic alone, simulated.

Shapes: N rows, D features, S streams, C channels, T tilts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from streamcl.bench.boundaries import first_alarm, interval, run_lengths
from streamcl.bench.boundaries_streams import CALIBRATION, embeddings, null_stream
from streamcl.detect import Mmd
from streamcl.detect.evidence import CHANNELS, OVERSHOOT, TILTS_T

WANTED = (1000, 10_000)
Draw = Callable[[int, np.random.Generator], np.ndarray]
"""Rows of one task, as many as asked: [N, D]."""


def gaussian(rows: int, random: np.random.Generator, *, width: int) -> np.ndarray:
    return random.standard_normal((rows, width), dtype=np.float32)


def heavy(rows: int, random: np.random.Generator, *, width: int) -> np.ndarray:
    """Student's t with three degrees of freedom; all features of a row are large together."""
    scale_N1 = np.sqrt(random.chisquare(3, (rows, 1)) / 3)
    return (random.standard_normal((rows, width)) / scale_N1).astype(np.float32)


def skewed(rows: int, random: np.random.Generator, *, width: int) -> np.ndarray:
    skewed_ND: np.ndarray = np.exp(gaussian(rows, random, width=width))
    return skewed_ND


def clustered(rows: int, random: np.random.Generator, *, width: int) -> np.ndarray:
    """Ten classes, always the same, of unequal size."""
    centres = np.random.default_rng(width).standard_normal((10, width))
    classes_N = random.choice(10, rows, p=np.arange(1, 11) / 55)
    return (centres[classes_N] + 0.5 * random.standard_normal((rows, width))).astype(np.float32)


def calibration_set() -> Mapping[str, Draw]:
    """Every kind of rows that the constant is chosen on."""
    tasks = embeddings()
    kinds: dict[str, Draw] = {}
    for name in CALIBRATION:
        kinds[f"{name}, drawn"] = partial(null_stream, tasks[name])
        kinds[f"{name}, shuffled"] = partial(null_stream, tasks[name], shuffled=True)
    for width in (8, 64, 896):
        kinds[f"gaussian, {width}"] = partial(gaussian, width=width)
    for width in (8, 64):
        kinds[f"heavy, {width}"] = partial(heavy, width=width)
        kinds[f"skewed, {width}"] = partial(skewed, width=width)
        kinds[f"clustered, {width}"] = partial(clustered, width=width)
    return kinds


def streams(draw: Draw, count: int, rows: int) -> Iterator[np.ndarray]:
    return (draw(rows, np.random.default_rng((10, seed))) for seed in range(count))


def alone(limit: float, *, count: int = 100) -> float:
    """Mean run length / `limit` of the statistic on independent standard normal z."""
    random = np.random.default_rng(11)
    ratio_SCT = np.zeros((count, CHANNELS, len(TILTS_T)))
    rows, alarms = int(6 * limit), 0
    for _ in range(rows):
        z_SC1 = random.standard_normal((count, CHANNELS, 1))
        ratio_SCT = (1 + ratio_SCT) * np.exp(TILTS_T * z_SC1 - TILTS_T**2 / 2)
        raised_S = ratio_SCT.mean(axis=(1, 2)) >= limit
        alarms += int(raised_S.sum())
        ratio_SCT[raised_S] = 0
    return count * rows / alarms / limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=20, help="of each kind")
    count = parser.parse_args().streams
    print(f"realised / wanted with OVERSHOOT = {OVERSHOOT}; 95 % interval; alarms")
    for wanted in WANTED:
        kind = Mmd(false_alarm_every=wanted, second_look=False)
        found = {}
        for name, draw in calibration_set().items():
            found[name] = run_lengths(partial(first_alarm, kind), streams(draw, count, 4 * wanted))
            print(f"{wanted:6}  {name:24}", *_shown(found[name], wanted), flush=True)
        print(f"{wanted:6}  {'all':24}", *_shown(np.concatenate(list(found.values())), wanted))
        means = [rows_S2[:, 0].sum() / max(rows_S2[:, 1].sum(), 1) / wanted for rows_S2 in found.values()]
        print(f"{wanted:6}  least and most: {min(means):.2f} {max(means):.2f}")
    print(f"the statistic alone: {alone(WANTED[0]):.2f}")


def _shown(found_S2: np.ndarray, wanted: int) -> tuple[str, ...]:
    rows, alarms = found_S2.sum(axis=0)
    low, high = interval(found_S2)
    return f"{rows / max(alarms, 1) / wanted:.2f}", f"{low / wanted:.2f} to {high / wanted:.2f}", f"{alarms:.0f}"


if __name__ == "__main__":
    main()
