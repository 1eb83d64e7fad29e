"""Other detectors of change, for `bench/boundaries.py`: each given embeddings, a threshold, and a start to learn from.

River's detectors and the plain CUSUM watch one scalar; each is run on two, and the bench keeps its better one: the
projection on the start's first principal axis, and the distance from the start's mean. Both are standardised
by the start. Shapes: N rows, D features, W rows of the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

START = 128
"""Rows that every peer may learn from before it is asked, as many as ours."""


@dataclass(frozen=True)
class Peer:
    """A detector and the thresholds that its curve of delay against run length is drawn with."""

    name: str
    thresholds: tuple[float, ...]
    first_alarm: Callable[[float, np.ndarray], int | None]
    """The first row, from START on, at which an alarm is raised at a threshold by rows [N, D]."""


def axis(x_ND: np.ndarray) -> np.ndarray:
    """The rows' standardised projection on the first principal axis of the start."""
    mean_D = x_ND[:START].mean(axis=0)
    _, _, axes_WD = np.linalg.svd(x_ND[:START] - mean_D, full_matrices=False)
    scalar_N = (x_ND - mean_D) @ axes_WD[0]
    standard_N: np.ndarray = scalar_N / scalar_N[:START].std()
    return standard_N


def distance(x_ND: np.ndarray) -> np.ndarray:
    """The rows' standardised distance from the start's mean; the start's own rows are compared with the others."""
    start_WD = x_ND[:START]
    others_WD = (start_WD.sum(axis=0) - start_WD) / (START - 1)
    own_W = np.linalg.norm(start_WD - others_WD, axis=1)
    rest_N = np.linalg.norm(x_ND[START:] - start_WD.mean(axis=0), axis=1)
    scalar_N: np.ndarray = (np.concatenate([own_W, rest_N]) - own_W.mean()) / own_W.std()
    return scalar_N


Projection = Callable[[np.ndarray], np.ndarray]
SCALARS: dict[str, Projection] = {"axis": axis, "distance": distance}


def cusum(scalar_N: np.ndarray, threshold: float, *, slack: float) -> int | None:
    """Page's two-sided CUSUM."""
    up = down = 0.0
    for row, value in enumerate(scalar_N[START:].tolist(), START):
        up, down = max(0.0, up + value - slack), max(0.0, down - value - slack)
        if max(up, down) >= threshold:
            return row
    return None


def river(make: Callable[[float], Any], scalar_N: np.ndarray, threshold: float) -> int | None:
    """A detector of River's, fed one scalar at a time."""
    detector = make(threshold)
    for row, value in enumerate(scalar_N[START:].tolist(), START):
        detector.update(value)
        if detector.drift_detected:
            return row
    return None


def kswin(scalar_N: np.ndarray, alpha: float, *, window: int = 100, recent: int = 30) -> int | None:
    """River's KSWIN(alpha, seed=0), many rows at a time: the same draws, so the same alarms, in a tenth of the time."""
    from scipy.stats import ks_2samp

    random, ranks = Random(0), np.arange(recent)
    gaps = range(recent // 10 + 1, recent + 1)  # River asks for more than a tenth
    least = next(gap for gap in gaps if ks_2samp(ranks, ranks + gap - 0.5).pvalue <= alpha)
    windows_NW = sliding_window_view(scalar_N[START:], window)
    for first in range(0, len(windows_NW), 256):
        windows_BW = windows_NW[first : first + 256]
        picks_BK = np.array([random.sample(range(window - recent), recent) for _ in windows_BW])
        old_BK, new_BK = np.take_along_axis(windows_BW, picks_BK, axis=1), windows_BW[:, -recent:]
        at_BL1 = np.concatenate([old_BK, new_BK], axis=1)[:, :, None]
        gaps_BL = (old_BK[:, None] <= at_BL1).sum(axis=2) - (new_BK[:, None] <= at_BL1).sum(axis=2)
        raised_B = np.abs(gaps_BL).max(axis=1) >= least
        if raised_B.any():
            return START + window - 1 + first + int(np.argmax(raised_B))
    return None


def cka(threshold: float, x_ND: np.ndarray, *, window: int = 64, buffer: int = 10_000) -> int | None:
    """1 - linear CKA between the latest rows and the buffer of all earlier ones.  LargeMonitor, arXiv:2606.09430.

    Rows that are not paired are compared by their second moments, which is linear CKA with features for examples. It is
    computed in 64 random directions, and every 4th row, for speed. No alarm rule is published; a threshold is simplest.
    """
    random = np.random.default_rng(0)
    y_NE = (x_ND - x_ND[:START].mean(axis=0)) @ random.standard_normal((x_ND.shape[1], 64)) / 8
    old_EE = y_NE[: START - window].T @ y_NE[: START - window]
    new_EE = y_NE[START - window : START].T @ y_NE[START - window : START]
    for row in range(START, len(y_NE), 4):
        fresh_4E, aged_4E = y_NE[row : row + 4], y_NE[row - window : row - window + len(y_NE[row : row + 4])]
        new_EE += fresh_4E.T @ fresh_4E - aged_4E.T @ aged_4E
        if row < buffer:
            old_EE += aged_4E.T @ aged_4E
        if 1 - (old_EE * new_EE).sum() / (np.linalg.norm(old_EE) * np.linalg.norm(new_EE)) >= threshold:
            return row
    return None


def peers() -> Sequence[Peer]:
    """Every peer on every scalar that it can watch."""
    from river.drift import ADWIN, PageHinkley

    def adwin(delta: float) -> Any:
        return ADWIN(delta=delta)

    def page_hinkley(threshold: float) -> Any:
        return PageHinkley(threshold=threshold)

    found = [Peer("linear CKA", tuple(step / 50 for step in range(3, 26)), cka)]
    for scalar, project in SCALARS.items():
        for name, make, thresholds in (
            ("River ADWIN", adwin, (0.9, 0.5, 0.2, 0.05, 0.002)),
            ("River Page-Hinkley", page_hinkley, (10.0, 20.0, 40.0, 80.0, 160.0)),
        ):
            found.append(Peer(f"{name}, {scalar}", thresholds, _watch(project, make)))
        found.append(Peer(f"River KSWIN, {scalar}", (1e-3, 3e-4, 1e-4), _kswin(project)))
        for slack in (0.5, 1.0):
            limits = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 18.0, 30.0)
            found.append(Peer(f"CUSUM {slack}, {scalar}", limits, _cusum(project, slack)))
    return found


def _watch(project: Projection, make: Callable[[float], Any]) -> Callable[[float, np.ndarray], int | None]:
    return lambda threshold, x_ND: river(make, project(x_ND), threshold)


def _kswin(project: Projection) -> Callable[[float, np.ndarray], int | None]:
    return lambda threshold, x_ND: kswin(project(x_ND), threshold)


def _cusum(project: Projection, slack: float) -> Callable[[float, np.ndarray], int | None]:
    return lambda threshold, x_ND: cusum(project(x_ND), threshold, slack=slack)
