"""How strongly arriving rows speak against a task, in units whose false-alarm rate is known.

Each row is scored against the reference by the kernel two-sample statistic (MMD), in several channels: alone, and along
the direction in which the recent window (an exponential one, of some length) has moved away from the reference. The
reference's own points are scored in the same way, each as if it were the newcomer. If the task goes on, newcomer and
points are exchangeable, so the rank of the newcomer's score is uniform whatever the data look like (conformal
prediction; Vovk et al. 2005): the reference itself calibrates the threshold. The rank as a normal score z feeds, for
each channel and each tilt t, the Shiryaev-Roberts form of CUSUM, R <- (1 + R) exp(t z - t²/2). R minus the rows counted
is a martingale while nothing changes, so the mean time until R reaches A is E[R at the alarm] >= A; so it is for the
mean of all R, however dependent the channels are (e-detectors: Shin, Ramdas and Rinaldo, arXiv:2203.03532).

One reference serves many rows, and its error repeats in all of them: given N points, z has not mean 0 but some mean of
variance 1 / N. That mean is learned from the rows already compared, n of them, as the normal prior says: the next row's
z is foretold as N(sum z / (N + n), 1 + 1 / (N + n)), and enters standardised by this.

Shapes: B rows, N points, M features, C channels (the first: alone), J = C - 1 windows, T tilts.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np

from streamcl.detect.base import pack, unpack
from streamcl.detect.reference import Reference

RATES = (1 / 8, 1 / 32)
"""Weight of the newest row in each recent window."""
TILTS_T = np.array([0.5, 1.5, 3.0])
"""Sizes of change, in standard deviations of a score, that the evidence is most sensitive to."""
CHANNELS = 1 + len(RATES)
ROUNDING = 1e-5
"""Scores that differ by less are equal: of equal embeddings none is odd."""
OVERSHOOT = 1.3
"""Mean run length / A: `python -m streamcl.bench.boundaries_calibrate`, on data that no claim is measured on. It would
be 2.2 if z were exactly normal given the points; what the reference still errs by costs the rest."""

_LOG_P = np.concatenate([np.linspace(1e-6, 1, 400), np.linspace(1.01, 40, 4000)])
_Z = np.array([-NormalDist().inv_cdf(math.exp(-e)) for e in _LOG_P])


def threshold(false_alarm_every: int, *, silent: int) -> float:
    """The A that makes a false alarm once in so many rows, on average, of which the first `silent` can raise none."""
    return (false_alarm_every - silent) / OVERSHOOT


class Evidence:
    """What has been seen against one task since `rows` rows. Mutable."""

    def __init__(self, features: int) -> None:
        self.window_JM = np.zeros((len(RATES), features), np.float32)
        self.ratio_CT = np.zeros((CHANNELS, len(TILTS_T)))

    def score(self, reference: Reference, features_BM: np.ndarray, uniforms_BC: np.ndarray) -> np.ndarray:
        """z of B further rows, before what the reference has learned of its own error: [B, C]. Keeps nothing."""
        scores_CB, points_CBN = _scores(reference, features_BM, self.window_JM)
        return np.stack(list(map(_normal_scores, scores_CB, points_CBN, uniforms_BC.T)), axis=1)

    def weigh(self, reference: Reference, z_BC: np.ndarray) -> np.ndarray:
        """R after each of these rows, as [B, C, T]; its mean over C and T alarms at the threshold. Keeps nothing."""
        known = len(reference) + reference.compared
        z_BC = (z_BC - reference.z_C / known) / math.sqrt(1 + 1 / known)
        factors_BCT: np.ndarray = np.exp(TILTS_T * z_BC[:, :, None] - TILTS_T**2 / 2)
        ratios_BCT: np.ndarray = np.empty_like(factors_BCT)
        ratio_CT = self.ratio_CT
        for row, factor_CT in enumerate(factors_BCT):
            ratio_CT = (1 + ratio_CT) * factor_CT
            ratios_BCT[row] = ratio_CT
        return ratios_BCT

    def keep(self, features_BM: np.ndarray, ratio_CT: np.ndarray) -> None:
        """Goes on from after these rows."""
        self.ratio_CT = ratio_CT
        for j, rate in enumerate(RATES):
            weights_B = _weights(len(features_BM), rate)[0][-1]
            self.window_JM[j] = (1 - rate) ** len(features_BM) * self.window_JM[j] + weights_B @ features_BM

    def snapshot(self) -> dict[str, Any]:
        return {"window_JM": pack(self.window_JM), "ratio_CT": pack(self.ratio_CT)}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Evidence:
        evidence = cls.__new__(cls)
        evidence.window_JM, evidence.ratio_CT = unpack(state["window_JM"]), unpack(state["ratio_CT"])
        return evidence


@cache
def _weights(rows: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """An exponential window after 0..B rows: the weight of each row [B + 1, B], and of what was before [B + 1]."""
    age_BB = np.arange(rows + 1)[:, None] - 1 - np.arange(rows)[None, :]
    weights_BB = np.where(age_BB >= 0, rate * (1 - rate) ** np.maximum(age_BB, 0), 0)
    return weights_BB.astype(np.float32), ((1 - rate) ** np.arange(rows + 1)).astype(np.float32)


def _scores(reference: Reference, features_BM: np.ndarray, window_JM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each row lies from the points [C, B]; and each point from the others and the row [C, B, N]."""
    rows, points = len(features_BM), len(reference)
    kernel_BN = features_BM @ reference.features_NM.T
    alone_B = -kernel_BN.sum(axis=1) / points
    points_alone_BN = (kernel_BN + reference.similarity_N) / -points
    scores, point_scores = [alone_B], [points_alone_BN]
    for rate, window_M in zip(RATES, window_JM, strict=True):
        weights_BB, before_B = (part[:rows] for part in _weights(rows, rate))  # the window ends before the row itself
        window_BM = weights_BB @ features_BM + before_B[:, None] * window_M
        scores.append((features_BM * window_BM).sum(axis=1) + alone_B)
        along_BN = weights_BB @ kernel_BN + before_B[:, None] * (reference.features_NM @ window_M)
        point_scores.append(along_BN + points_alone_BN)
    return np.stack(scores), np.stack(point_scores)


def _normal_scores(score_B: np.ndarray, points_BN: np.ndarray, uniform_B: np.ndarray) -> np.ndarray:
    """The rank of each row's score among the points', as a normal deviate; `uniform_B` places it within its rank.

    A row beyond all N points is somewhere in the last 1 / (N + 1): ranks say no more, and no row counts for more.
    """
    above_B = (points_BN > score_B[:, None] + ROUNDING).sum(axis=1)
    ties_B = (points_BN >= score_B[:, None] - ROUNDING).sum(axis=1) - above_B
    p_B = (above_B + uniform_B * (1 + ties_B)) / (points_BN.shape[1] + 1)
    z_B: np.ndarray = np.interp(-np.log(np.maximum(p_B, 1e-17)), _LOG_P, _Z)
    return z_B


def change_point(reference: Reference, features_BM: np.ndarray) -> int:
    """The row from which the rows up to the last are best explained as another task.

    First the largest two-sample statistic over all splits; then, twice, the largest sum of scores along the direction
    that the split gives, each row counting for the old task or for the new one.
    """
    moved_BM = features_BM - reference.mean_M
    count_B = np.arange(len(moved_BM), 0, -1, dtype=np.float32)
    tail_BM = np.cumsum(moved_BM[::-1], axis=0)[::-1] / count_B[:, None]
    share_B = count_B * len(reference) / (count_B + len(reference))
    split = int(np.argmax(share_B * (tail_BM**2).sum(axis=1)))
    for _ in range(2):
        direction_M = tail_BM[split]
        gain_B = moved_BM @ direction_M - (direction_M @ direction_M) / 2
        split = int(np.argmax(np.cumsum(gain_B[::-1])[::-1]))
    return split
