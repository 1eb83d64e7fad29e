"""Frequent Directions and its certificate on four streams, whole and in shards, beside truncated incremental SVD."""

from __future__ import annotations

from typing import Any

import torch

from streamcl.store.subspace import Subspace

Tensor = torch.Tensor
DIM, ROWS, BATCH, SHARDS = 64, 10, 32, 4
_UNIT = 1e6
"""Rows are shorter, so they count in proportion: figures below are multiplied back."""


def streams(seed: int, *, length: int) -> dict[str, Tensor]:
    """Four streams of rows, by name."""
    g = torch.Generator().manual_seed(seed)
    decaying = torch.randn(length, DIM, generator=g, dtype=torch.float64) * 0.8 ** torch.arange(DIM)
    turned = torch.cat([decaying[: length // 2], decaying[length // 2 :].flip(1)])
    eye = torch.eye(DIM, dtype=torch.float64)
    new_direction = eye[ROWS : ROWS + 1].repeat(length - ROWS, 1)
    return {
        "decaying spectrum": decaying,
        "white noise": torch.randn(length, DIM, generator=g, dtype=torch.float64),
        "drift: the spectrum turns round half way": turned,
        "small equal rows of a new direction": torch.cat([10 * eye[:ROWS], new_direction]),
    }


def compare(*, seed: int, length: int) -> list[dict[str, Any]]:
    """A row for each stream: true spectral error of both, the certificate, the theorem's bound; whole and merged."""
    rows = []
    for name, a_ND in streams(seed, length=length).items():
        whole = _fed(a_ND)
        merged = _fed(a_ND[0::SHARDS])
        for shard in range(1, SHARDS):
            merged.merge(_fed(a_ND[shard::SHARDS]))
        spectrum = torch.linalg.svdvals(a_ND).square()
        theorem = min(float(spectrum[k:].sum()) / (ROWS + 1 - k) for k in range(ROWS + 1))
        slack = 1e-10 * float(spectrum.sum())
        errors = [_error(a_ND, s.snapshot()["sketch"] * _UNIT) for s in (whole, merged)]
        certificates = [s.certificate * _UNIT**2 for s in (whole, merged)]
        rows.append(
            {
                "stream": name,
                "rows": len(a_ND),
                "error": errors[0],
                "certificate": certificates[0],
                "theorem": theorem,
                "truncated_svd_error": _error(a_ND, _truncated(a_ND)),
                "merged_error": errors[1],
                "merged_certificate": certificates[1],
                "holds": all(e - slack <= c <= theorem + slack for e, c in zip(errors, certificates, strict=True)),
            }
        )
    return rows


def _fed(a_ND: Tensor) -> Subspace:
    subspace = Subspace(DIM, rows=ROWS, unit=_UNIT)
    for batch in torch.split(a_ND, BATCH):
        subspace.update(batch)
    return subspace


def _error(a_ND: Tensor, sketch_MD: Tensor) -> float:
    """Spectral norm of AᵀA − BᵀB."""
    return float(torch.linalg.eigvalsh(a_ND.T @ a_ND - sketch_MD.T @ sketch_MD).abs().max())


def _truncated(a_ND: Tensor) -> Tensor:
    sketch_MD = a_ND[:0]
    for batch in torch.split(a_ND, BATCH):
        _, singular, directions = torch.linalg.svd(torch.cat([sketch_MD, batch]), full_matrices=False)
        sketch_MD = singular[:ROWS, None] * directions[:ROWS]
    return sketch_MD
