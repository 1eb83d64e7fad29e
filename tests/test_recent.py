"""Which ids were seen lately: the last ones, each once, through a snapshot too."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamcl.store.recent import Recent

hashes = st.lists(st.integers(0, 7) | st.integers(2**64 - 4, 2**64 - 1), max_size=40)


def test_an_id_is_new_once() -> None:
    recent = Recent(10)
    assert [recent.add(id_hash) for id_hash in (5, 6, 5, 6, 7)] == [True, True, False, False, True]


def test_an_id_is_new_again_after_more_than_horizon_others() -> None:
    recent = Recent(3)
    assert all(map(recent.add, (1, 2, 3)))
    assert not recent.add(1)
    assert recent.add(4)
    assert recent.add(1)


def test_a_repeat_pushes_no_other_id_out() -> None:
    recent = Recent(3)
    for id_hash in (1, 2, 3, 3, 3, 2):
        recent.add(id_hash)
    assert not any(map(recent.add, (1, 2, 3)))


@given(hashes, st.integers(1, 6))
def test_it_answers_as_a_list_of_the_last_new_ids_would(given_hashes: list[int], horizon: int) -> None:
    recent, new = Recent(horizon), []
    for id_hash in given_hashes:
        assert recent.add(id_hash) == (id_hash not in new[-horizon:])
        new += [id_hash] * (id_hash not in new[-horizon:])


@given(hashes, hashes, st.integers(1, 6))
def test_a_restored_one_answers_as_the_first_would_have(before: list[int], after: list[int], horizon: int) -> None:
    first, second = Recent(horizon), Recent(horizon)
    for id_hash in before:
        first.add(id_hash)
    second.add(99)  # restoring forgets it
    second.restore(first.snapshot())
    assert second.snapshot() == first.snapshot()
    assert [first.add(id_hash) for id_hash in after] == [second.add(id_hash) for id_hash in after]
    assert second.snapshot() == first.snapshot()
