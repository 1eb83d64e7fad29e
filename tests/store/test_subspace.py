from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.errors import NotFinite
from streamcl.store.subspace import Subspace

UNIT = 1000.0  # rows of the test streams are shorter: they count as they are, divided by it


def decaying(seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(600, 30, generator=g, dtype=torch.float64) * 0.7 ** torch.arange(30)


def flat(seed: int) -> torch.Tensor:
    return torch.randn(500, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drifting(seed: int) -> torch.Tensor:
    rows = decaying(seed)
    return torch.cat([rows[:300], rows[300:].flip(1)])


def small_rows_of_a_new_direction(_: int) -> torch.Tensor:
    """A row of size 10 in each of five directions, then 2,000 equal rows of size 1 in a sixth."""
    eye = torch.eye(30, dtype=torch.float64)
    return torch.cat([10 * eye[:5], eye[5:6].repeat(2000, 1)])


STREAMS = [decaying, flat, drifting, small_rows_of_a_new_direction]


def fed(rows: torch.Tensor, *, size: int = 5, batch: int = 7) -> Subspace:
    subspace = Subspace(rows.shape[1], rows=size, unit=UNIT)
    for some in rows.split(batch):
        subspace.update(some)
    return subspace


def gap(rows: torch.Tensor, sketch: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of AᵀA − BᵀB, A as the subspace scales it."""
    rows = rows / UNIT
    return torch.linalg.eigvalsh(rows.T @ rows - sketch.T @ sketch)


def truncated(rows: torch.Tensor, size: int, batch: int) -> torch.Tensor:
    """The control: incremental SVD that keeps the largest directions and simply drops the rest."""
    sketch = torch.empty(0, rows.shape[1], dtype=torch.float64)
    for some in (rows / UNIT).split(batch):
        _, s, vh = torch.linalg.svd(torch.cat([sketch, some]), full_matrices=False)
        sketch = s[:size, None] * vh[:size]
    return sketch


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_error_is_never_above_the_certificate_nor_that_above_the_theorem(stream, seed: int) -> None:  # type: ignore[no-untyped-def]
    rows, size = stream(seed), 5
    subspace = fed(rows, size=size)
    error = gap(rows, subspace.snapshot()["sketch"])
    slack = 1e-12 * subspace.energy
    assert -slack <= error[0]
    assert error[-1] <= subspace.certificate + slack
    spectrum = torch.linalg.svdvals(rows / UNIT).square()
    theorem = min(float(spectrum[k:].sum()) / (size + 1 - k) for k in range(size + 1))
    assert subspace.certificate <= theorem + slack


def test_truncated_svd_forgets_small_rows_of_a_new_direction_and_frequent_directions_does_not() -> None:
    rows = small_rows_of_a_new_direction(0)
    subspace = fed(rows)
    new_direction = torch.zeros(30)
    new_direction[5] = 1
    assert subspace.basis(0.7).T.matmul(new_direction).norm() > 0.999
    control = truncated(rows, 5, 7)
    lost = gap(rows, control)[-1]
    assert lost > 0.99 * 2000 / UNIT**2  # the whole of what came
    assert lost > 15 * subspace.certificate


@pytest.mark.parametrize("stream", STREAMS)
def test_four_merged_shards_keep_the_bound_of_the_whole(stream) -> None:  # type: ignore[no-untyped-def]
    rows, size = stream(3), 5
    shards = [fed(rows[i::4], size=size) for i in range(4)]
    merged = shards[0]
    for shard in shards[1:]:
        merged.merge(shard)
    error = gap(rows, merged.snapshot()["sketch"])
    slack = 1e-12 * merged.energy
    assert error[-1] <= merged.certificate + slack
    spectrum = torch.linalg.svdvals(rows / UNIT).square()
    assert merged.certificate <= min(float(spectrum[k:].sum()) / (size + 1 - k) for k in range(size + 1)) + slack
    assert merged.count == len(rows)
    assert math.isclose(merged.energy, float(spectrum.sum()), rel_tol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    scales=st.lists(st.floats(1e-4, 1.0), min_size=8, max_size=8),
    size=st.integers(1, 10),
    batch=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
)
def test_certificate_holds_for_any_rows(scales: list[float], size: int, batch: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(90, 8, generator=g, dtype=torch.float64) * torch.tensor(scales, dtype=torch.float64)
    subspace = fed(rows, size=size, batch=batch)
    error = gap(rows, subspace.snapshot()["sketch"])
    slack = 1e-12 * subspace.energy
    assert -slack <= error[0]
    assert error[-1] <= subspace.certificate + slack


def test_a_stream_within_the_sketchs_rank_is_kept_exactly() -> None:
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 4, generator=g, dtype=torch.float64) @ torch.randn(4, 30, generator=g, dtype=torch.float64)
    subspace = fed(rows, size=5)
    assert subspace.certificate < 1e-15 * subspace.energy
    basis = subspace.basis(1.0).double()
    assert basis.shape == (30, 4)
    assert (rows - rows @ basis @ basis.T).norm() < 1e-5 * rows.norm()
    assert subspace.angle(4) < 1e-9


def test_basis_is_orthonormal_float32_and_holds_the_energy_it_was_asked_for() -> None:
    rows = decaying(0)
    subspace = fed(rows, size=12)
    whole = float((rows / UNIT).square().sum())
    wide = [subspace.basis(energy) for energy in (0.5, 0.8, 0.95)]
    for energy, basis in zip((0.5, 0.8, 0.95), wide, strict=True):
        assert basis.dtype == torch.float32
        assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-6)
        assert float((rows / UNIT @ basis.double()).square().sum()) >= energy * whole * (1 - 1e-6)
    assert all(one.shape[1] < two.shape[1] for one, two in pairwise(wide))
    assert subspace.basis(1.0).shape[1] == 12 <= len(subspace.snapshot()["sketch"])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_directions_turn_no_further_than_the_angle_certificate(k: int) -> None:
    rows = decaying(1)
    subspace = fed(rows, size=15)
    bound = subspace.angle(k)
    assert 0 < bound < 0.5
    true = torch.linalg.svd(rows, full_matrices=False).Vh[:k]
    mine = torch.linalg.svd(subspace.snapshot()["sketch"], full_matrices=False).Vh[:k]
    sine = torch.linalg.matrix_norm(true - true @ mine.T @ mine, 2)
    assert sine <= bound
    assert fed(flat(0)).angle(3) == 1.0  # no gap: nothing is known, and it says so


def test_the_angle_certificate_holds_on_300_small_streams_and_is_not_far_from_the_truth() -> None:
    ratios = []
    for seed in range(300):
        g = torch.Generator().manual_seed(seed)
        dim, size = 3 + seed % 3, 1 + seed % 2
        rows = torch.randn(20, dim, generator=g, dtype=torch.float64) * torch.rand(dim, generator=g).double() ** 3
        subspace = fed(rows, size=size)
        true = torch.linalg.svd(rows, full_matrices=False).Vh[:1]
        mine = torch.linalg.svd(subspace.snapshot()["sketch"], full_matrices=False).Vh[:1]
        sine = float((true - true @ mine.T @ mine).norm())
        assert sine <= subspace.angle(1) + 1e-7
        ratios.append(sine / subspace.angle(1) if sine > 1e-6 else 0.0)
    assert max(ratios) > 0.1


def test_one_huge_row_counts_as_one_row() -> None:
    g = torch.Generator().manual_seed(0)
    subspace = Subspace(10, rows=4)
    subspace.update(torch.randn(50, 3, generator=g) @ torch.eye(3, 10))
    subspace.update(1e30 * torch.eye(10)[9:])
    assert subspace.energy == pytest.approx(51)
    assert subspace.basis(0.9).T.matmul(torch.eye(10)[9]).norm() < 1e-3


def test_nan_is_refused_before_anything_changes() -> None:
    subspace = fed(flat(0)[:33])
    before = subspace.snapshot()
    with pytest.raises(NotFinite):
        subspace.update(torch.tensor([[float("nan")] * 30]))
    assert all(torch.equal(value, subspace.snapshot()[name]) for name, value in before.items())


def test_snapshot_restores_bit_equal_and_goes_on_as_if_nothing_happened() -> None:
    rows = decaying(2)
    subspace = fed(rows[:303])
    again = Subspace.restore(subspace.snapshot())
    subspace.basis(0.9)  # reading changes nothing
    for one in (subspace, again):
        one.update(rows[303:])
    assert all(torch.equal(value, again.snapshot()[name]) for name, value in subspace.snapshot().items())
    assert again.certificate == subspace.certificate


def test_unlike_sketches_do_not_merge() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        Subspace(4, rows=2).merge(Subspace(4, rows=3))
    with pytest.raises(ValueError, match="above 0"):
        Subspace(4, rows=0)


def test_an_empty_subspace_has_no_directions() -> None:
    assert Subspace(4, rows=2).basis(0.9).shape == (4, 0)
    assert Subspace(4, rows=2).angle(1) == 1.0
