"""What a task looks like: a bounded uniform sample of it, in random Fourier features of its own metric.

Shapes: N points of the sample, B rows, F frequencies, M = 2 F features.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from streamcl.detect.base import pack, unpack

_ARRAYS = ("mean_F", "points_NF", "rows_N", "z_C")
_NUMBERS = ("bandwidth", "seen", "compared")

NEGLIGIBLE = 1e-6
"""Variances that are smaller, as a share of the mean square, are taken for rounding."""


class Reference:
    """A uniform sample of a task's projected embeddings, and the kernel to compare rows with it. Mutable.

    The first rows give only the metric (mean, shrunken whitening) and are not compared with anything; the next ones
    open the sample and give the bandwidth by the median rule. So, given the metric, a sample of N points and a newcomer
    from the same task are exchangeable: that is all that the calibration in `evidence.py` needs.
    """

    mean_F: np.ndarray
    whiten_FF: np.ndarray
    bandwidth: float
    points_NF: np.ndarray
    """Whitened projections in half precision: what is kept is what is compared, so restoring changes nothing."""
    rows_N: np.ndarray
    """The stream's row that each point was, to take points back when a boundary turns out to lie before them."""
    seen: int
    """Rows that the points were drawn from."""
    compared: int
    """Rows that were compared with the points while the task went on."""
    z_C: np.ndarray
    """The sum of their scores: far from 0 if the points happen to lie oddly. See `evidence.py`."""

    def __init__(self, metric_BF: np.ndarray, opening_BF: np.ndarray, *, first_row: int, channels: int) -> None:
        self.mean_F = metric_BF.mean(axis=0)
        resolution = NEGLIGIBLE * float((metric_BF**2).mean()) + 1e-12
        self.whiten_FF = _whitening(metric_BF - self.mean_F, floor=resolution)
        self.points_NF = self._rounded(opening_BF)
        self.rows_N = first_row + np.arange(len(opening_BF))
        self.seen = len(opening_BF)
        self.compared, self.z_C = 0, np.zeros(channels)
        self.bandwidth = _median_distance(self.points_NF.astype(np.float32))
        self._refresh()

    def __len__(self) -> int:
        return len(self.points_NF)

    def features(self, projected_BF: np.ndarray) -> np.ndarray:
        """Rows as unit vectors [B, M] whose inner products are the kernel."""
        return self._features((projected_BF - self.mean_F) @ self.whiten_FF)

    def learn(self, z_BC: np.ndarray) -> None:
        """Takes note of the scores of rows of this task."""
        self.compared += len(z_BC)
        self.z_C = self.z_C + z_BC.sum(axis=0)

    def absorb(self, projected_BF: np.ndarray, *, first_row: int, capacity: int, random: np.random.Generator) -> None:
        """Makes the points a uniform sample of at most `capacity` of the rows seen before and these (algorithm R)."""
        points_BF = self._rounded(projected_BF)
        rows_B = first_row + np.arange(len(points_BF))
        room = max(0, min(capacity - len(self), len(points_BF)))
        self.points_NF = np.concatenate([self.points_NF, points_BF[:room]])
        self.rows_N = np.concatenate([self.rows_N, rows_B[:room]])
        places_B = random.integers(self.seen + 1 + np.arange(len(points_BF)))
        for row in range(room, len(points_BF)):
            if places_B[row] < capacity:
                self.points_NF[places_B[row]], self.rows_N[places_B[row]] = points_BF[row], rows_B[row]
        self.seen += len(points_BF)
        if room or (places_B < capacity).any():
            self._refresh()

    def forget(self, *, from_row: int) -> None:
        """Takes back the points of rows from `from_row` on."""
        keep_N = self.rows_N < from_row
        self.points_NF, self.rows_N = self.points_NF[keep_N], self.rows_N[keep_N]
        self.seen -= int((~keep_N).sum())
        self._refresh()

    def snapshot(self) -> dict[str, Any]:
        arrays = {name: pack(getattr(self, name)) for name in _ARRAYS}
        half = pack(self.whiten_FF[np.triu_indices(len(self.whiten_FF))])
        return {**arrays, **{name: getattr(self, name) for name in _NUMBERS}, "whiten": half}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Reference:
        reference = cls.__new__(cls)
        for name in _ARRAYS:
            setattr(reference, name, unpack(state[name]))
        for name in _NUMBERS:
            setattr(reference, name, state[name])
        upper_FF = np.zeros((len(reference.mean_F), len(reference.mean_F)), np.float32)
        upper_FF[np.triu_indices(len(upper_FF))] = unpack(state["whiten"])
        reference.whiten_FF = upper_FF + np.triu(upper_FF, 1).T
        reference._refresh()
        return reference

    def _rounded(self, projected_BF: np.ndarray) -> np.ndarray:
        white_BF = (projected_BF - self.mean_F) @ self.whiten_FF
        largest = np.finfo(np.float16).max
        rounded_BF: np.ndarray = np.clip(white_BF, -largest, largest).astype(np.float16)
        return rounded_BF

    def _features(self, white_BF: np.ndarray) -> np.ndarray:
        angles_BF = white_BF / self.bandwidth
        features_BM: np.ndarray = np.concatenate([np.cos(angles_BF), np.sin(angles_BF)], axis=1)
        return features_BM / np.float32(np.sqrt(angles_BF.shape[1]))

    def _refresh(self) -> None:
        self.features_NM = self._features(self.points_NF.astype(np.float32))
        self.mean_M = self.features_NM.sum(axis=0) / np.float32(max(len(self), 1))
        self.similarity_N = len(self) * (self.features_NM @ self.mean_M) - 1
        """Each point's kernel with all others, summed."""


def _whitening(centred_BF: np.ndarray, *, floor: float) -> np.ndarray:
    """(C + c 1)^(-1/2) with C the rows' covariance and c its mean eigenvalue: few rows cannot be trusted with less."""
    values_F, vectors_FF = np.linalg.eigh(centred_BF.T @ centred_BF / len(centred_BF))
    shrink = max(float(values_F.mean()), floor)
    whitening_FF: np.ndarray = (vectors_FF / np.sqrt(np.maximum(values_F, 0) + shrink)) @ vectors_FF.T
    symmetric_FF: np.ndarray = (whitening_FF + whitening_FF.T) / 2  # to the last bit: a snapshot holds one half of it
    return symmetric_FF


def _median_distance(points_NF: np.ndarray) -> float:
    squares_N = (points_NF**2).sum(axis=1)
    squared_NN = squares_N[:, None] + squares_N[None, :] - 2 * points_NF @ points_NF.T
    median = float(np.median(squared_NN[np.triu_indices(len(points_NF), 1)]))
    return float(np.float32(np.sqrt(max(median, 0.01))))  # of whitened rows: less is rounding
