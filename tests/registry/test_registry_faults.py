"""Damage, a full disk, a power cut, lost replies (G9, G11, G12): nothing that was acknowledged is lost."""

from __future__ import annotations

import stat

import pytest

from streamcl.bench.reliability_store import ambiguous_puts, damages, disk_full, power_cuts
from streamcl.errors import StoreError
from streamcl.registry.backends import probe

from .twins import NoTxnCheck


def test_every_object_may_be_flipped_cut_or_deleted() -> None:
    counts = damages()
    assert counts["violations"] == 0
    assert counts["found"] >= 0.8 * counts["scenarios"], "all but hints, pointers, and what nobody reads"


def test_a_full_disk_acknowledges_nothing_shows_no_half_and_goes_on_with_space() -> None:
    counts = disk_full()
    assert counts["violations"] == 0
    assert 20 <= counts["refused"] < counts["scenarios"], "some runs ended early, and some had room enough"


def test_what_was_acknowledged_outlives_a_simulated_power_cut() -> None:
    assert power_cuts(40)["violations"] == 0


@pytest.mark.slow
def test_what_was_acknowledged_outlives_a_simulated_power_cut_at_any_step() -> None:
    counts = power_cuts()
    print(counts)
    assert counts["violations"] == 0


@pytest.mark.parametrize("kind", [stat.S_ISREG, stat.S_ISDIR])
def test_a_store_that_does_not_sync_files_or_folders_loses_acknowledged_commits(kind) -> None:
    assert power_cuts(20, skip=lambda info: kind(info.st_mode))["violations"] >= 2


def test_lost_late_and_repeated_replies_of_an_s3_server_neither_lose_nor_double_a_commit() -> None:
    pytest.importorskip("moto", reason="pip install streamcl[test]")
    counts = ambiguous_puts(40)
    assert counts["violations"] == 0
    assert counts["faults"] >= 30


@pytest.mark.slow
def test_1_000_ambiguous_puts_are_all_resolved() -> None:
    counts = ambiguous_puts(1_000)
    print(counts)
    assert counts["violations"] == 0


def test_a_writer_that_does_not_look_whose_commit_it_finds_is_caught() -> None:
    pytest.importorskip("moto", reason="pip install streamcl[test]")
    assert ambiguous_puts(20, log=NoTxnCheck)["violations"] >= 2


def test_probe_refuses_an_s3_server_that_ignores_the_condition() -> None:
    pytest.importorskip("moto", reason="pip install streamcl[test]")
    from streamcl.testing.proxy import bucket

    with bucket() as (store, proxy):
        probe(store)
        proxy.strip = True
        with pytest.raises(StoreError, match="not safe for commits: a second put-if-absent replaced the first"):
            probe(store)
