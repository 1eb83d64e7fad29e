"""A stream of vectors as a few directions, with a certificate of what was lost: Frequent Directions.

Liberty, 2013; Ghashami et al., arXiv:1501.01711. A sketch B of at most 2L rows stands for all rows A seen so far. When
it is full, an SVD shrinks every squared singular value by the (L+1)-th, δ, which leaves L rows. For every unit x

    0 ≤ ‖Ax‖² − ‖Bx‖² ≤ Δ,   Δ = Σδ ≤ ‖A − A_k‖_F² / (L + 1 − k) for every k ≤ L,

also after merging. Truncated SVD drops a new direction that comes in many small rows, each time anew; here every δ is
taken from L + 1 directions at once, so it cannot add up for one of them alone.
Letters: N rows, D their length, K basis vectors, M sketch rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from streamcl.errors import NotFinite

Tensor = torch.Tensor


class Subspace:
    """Frequent Directions with a running certificate (mutates). Not idempotent: give each row once."""

    def __init__(self, dim: int, *, rows: int, unit: float = 1e-6) -> None:
        """`rows`: L, the directions kept. `unit`: rows this long or longer count as one, shorter ones in proportion.

        So no row, however huge, counts for more than any other; and a row of noise is not blown up.
        """
        if dim < 1 or rows < 1 or not unit > 0:
            raise ValueError(f"subspace of dim {dim}, rows {rows}, unit {unit}: all must be above 0")
        self.dim, self.rows, self.unit = dim, rows, unit
        self.count = 0
        """Rows seen."""
        self.energy = 0.0
        """‖A‖_F²: the squared length of all rows seen, each at most 1."""
        self.certificate = 0.0
        """Δ: the most energy that any one direction has lost."""
        self._sketch_MD = torch.empty(0, dim, dtype=torch.float64)

    def update(self, x_ND: Tensor) -> None:
        """Take in rows, each once.  Raises NotFinite, before anything changes."""
        x_ND = x_ND.detach().to("cpu", torch.float64)
        length_N1 = x_ND.norm(dim=1, keepdim=True)
        if not torch.isfinite(length_N1).all():
            raise NotFinite("a row for the subspace holds NaN or infinity")
        x_ND = x_ND / length_N1.clamp(min=self.unit)
        self.count += len(x_ND)
        self.energy += float(x_ND.square().sum())
        self._take(x_ND)

    def merge(self, other: Subspace) -> None:
        """Become the sketch of both streams: certificates add, and the bound is that of the whole. `other` stays."""
        if (other.dim, other.rows, other.unit) != (self.dim, self.rows, self.unit):
            raise ValueError(
                f"subspaces of (dim, rows, unit) {(other.dim, other.rows, other.unit)} and "
                f"{(self.dim, self.rows, self.unit)} do not merge: they must be equal"
            )
        self.count += other.count
        self.energy += other.energy
        self.certificate += other.certificate
        self._take(other._sketch_MD)

    def basis(self, energy: float) -> Tensor:
        """basis_DK, orthonormal, float32: the fewest directions that surely hold `energy`, a share of all rows' energy.

        If the sketch cannot prove that share, all of its directions.
        """
        spectrum, directions_MD = self._spectrum()
        enough = torch.cumsum(spectrum, 0) >= energy * self.energy * (1 - 1e-12)
        k = int(enough.int().argmax()) + 1 if enough.any() else int((spectrum > 0).sum())
        return directions_MD[:k].T.to(torch.float32)

    def angle(self, k: int) -> float:
        """Angle certificate: the largest sine between the sketch's first k directions and the stream's; 1 if unknown.

        AᵀA − BᵀB lies between 0 and Δ: within Δ/2 of a multiple of the identity, which turns nothing. Davis and Kahan's
        theorem does the rest.
        """
        spectrum, _ = self._spectrum()
        spectrum = torch.cat([spectrum, spectrum.new_zeros(max(0, k + 1 - len(spectrum)))])
        half = self.certificate / 2
        gap = float(spectrum[k - 1] - spectrum[k]) - half if k < self.dim else float("inf")
        return min(1.0, half / gap) if gap > 0 else 1.0

    def snapshot(self) -> dict[str, Tensor]:
        """The whole state, as tensors for safetensors."""
        numbers = torch.tensor([self.count, self.energy, self.certificate, self.unit, self.rows], dtype=torch.float64)
        return {"sketch": self._sketch_MD.clone(), "numbers": numbers}

    @staticmethod
    def restore(state: Mapping[str, Tensor]) -> Subspace:
        """What `snapshot` saw, bit by bit."""
        count, energy, certificate, unit, rows = state["numbers"].tolist()
        subspace = Subspace(state["sketch"].shape[1], rows=int(rows), unit=unit)
        subspace.count, subspace.energy, subspace.certificate = int(count), energy, certificate
        subspace._sketch_MD = state["sketch"].clone()
        return subspace

    def _take(self, x_ND: Tensor) -> None:
        while len(x_ND):
            room = 2 * self.rows - len(self._sketch_MD)
            self._sketch_MD = torch.cat([self._sketch_MD, x_ND[:room]])
            x_ND = x_ND[room:]
            if len(self._sketch_MD) == 2 * self.rows:
                self._shrink()

    def _shrink(self) -> None:
        spectrum, directions_MD = self._spectrum()
        lost = float(spectrum[self.rows]) if len(spectrum) > self.rows else 0.0
        left = (spectrum[: self.rows] - lost).clamp(min=0)
        self._sketch_MD = left.sqrt()[:, None] * directions_MD[: self.rows]
        self.certificate += lost

    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Squared singular values of the sketch, largest first, and their directions. Reading changes nothing."""
        _, singular, directions_MD = torch.linalg.svd(self._sketch_MD, full_matrices=False)
        return singular.square(), directions_MD
