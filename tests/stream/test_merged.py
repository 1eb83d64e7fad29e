"""The merge: one order, wherever it was interrupted and however it was polled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.errors import SourceError
from streamcl.stream import Merged, Polled
from streamcl.stream.base import LOOK_S, NO_ROWS
from streamcl.testing import ListReader, ListSource
from streamcl.types import DeadLetter, Message, Part, Sample, from_batch

TALK = (Message("user", (Part("text", "?"),)), Message("assistant", (Part("text", "!"),)))
BAD = DeadLetter("schema: made for a test", "", "", "", 0)


def sample(time: float) -> Sample:
    return Sample("", TALK, (), time=time)


def keys(polled: Polled) -> list[tuple[str, int]]:
    return [(s.partition, s.position) for s in from_batch(polled.batch)]


def dead_keys(polled: Polled) -> list[tuple[str, int]]:
    return [(letter.partition, letter.position) for letter in polled.dead]


def drained(merged: Merged, limit: int = 7) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Everything that is left: the accepted rows' keys, the dead rows' keys."""
    good, dead = [], []
    while (polled := merged.poll(limit)) is not None:
        assert 0 < len(polled) <= limit
        good += keys(polled)
        dead += dead_keys(polled)
    return good, dead


def head_by_head(source: ListSource) -> list[tuple[str, int]]:
    """The definition, one row at a time: always the earliest head; a dead row counts as its predecessor's time."""
    left = {name: list(enumerate(rows, 1)) for name, rows in source.rows.items()}
    clock = dict.fromkeys(left, float("-inf"))
    order = []
    while any(left.values()):
        heads = {}
        for name, rows in left.items():
            if rows:
                row = rows[0][1]
                heads[name] = (row.time if isinstance(row, Sample) else clock[name], name)
        name = min(heads, key=heads.__getitem__)
        clock[name] = heads[name][0]
        order.append((name, left[name].pop(0)[0]))
    return order


rows = st.lists(st.integers(0, 6).map(float).map(sample) | st.just(BAD), max_size=12)
sources = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), rows, min_size=1).map(ListSource)


@settings(max_examples=100, deadline=None)
@given(sources, st.integers(1, 40))
def test_the_order_is_the_earliest_head_first_for_every_poll_size(source: ListSource, limit: int) -> None:
    expected = head_by_head(source)
    good, dead = drained(Merged(source, {}), limit)
    is_dead = {key for key in expected if isinstance(source.rows[key[0]][key[1] - 1], DeadLetter)}
    assert good == [key for key in expected if key not in is_dead]
    assert dead == [key for key in expected if key in is_dead]


@settings(max_examples=100, deadline=None)
@given(sources, st.lists(st.integers(1, 5), min_size=1, max_size=50))
def test_a_crash_after_any_poll_changes_nothing(source: ListSource, limits: list[int]) -> None:
    undisturbed = drained(Merged(source, {}))
    good, dead = [], []
    positions: Mapping[str, int] = {}
    for limit in limits:
        merged = Merged(source, positions)
        if (polled := merged.poll(limit)) is None:
            break
        good += keys(polled)
        dead += dead_keys(polled)
        positions = merged.positions
    rest = drained(Merged(source, positions))
    assert (good + rest[0], dead + rest[1]) == undisturbed


@settings(max_examples=100, deadline=None)
@given(sources, st.integers(1, 40), st.data())
def test_a_consumer_can_stop_in_the_middle_of_a_batch(source: ListSource, limit: int, data: st.DataObject) -> None:
    undisturbed, undisturbed_dead = drained(Merged(source, {}))
    first = Merged(source, {}).poll(limit)
    taken = keys(first)[: data.draw(st.integers(0, limit))] if first else []
    rest, dead = drained(Merged(source, dict(taken)))
    assert taken + rest == undisturbed
    assert set(dead) <= set(undisturbed_dead)
    assert set(undisturbed_dead) - set(dead) <= {key for key in undisturbed_dead if key[1] < dict(taken).get(key[0], 0)}


def test_positions_say_exactly_what_was_returned() -> None:
    merged = Merged(ListSource({"a": [sample(1), BAD, sample(4)], "b": [sample(2), sample(3)]}), {})
    seen = []
    for expected in [{"a": 1, "b": 0}, {"a": 2, "b": 0}, {"a": 2, "b": 1}, {"a": 2, "b": 2}, {"a": 3, "b": 2}]:
        polled = merged.poll(1)
        assert polled is not None
        seen += keys(polled) + dead_keys(polled)
        assert merged.positions == expected
    assert seen == [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("a", 3)]
    assert merged.poll(1) is None


def test_rows_carry_their_source_partition_and_position() -> None:
    polled = Merged(ListSource({"a": [sample(1), BAD]}, name="shop"), {}).poll(9)
    assert polled is not None
    (row,) = from_batch(polled.batch)
    assert (row.source, row.partition, row.position) == ("shop", "a", 1)
    assert (polled.dead[0].source, polled.dead[0].partition, polled.dead[0].position) == ("shop", "a", 2)


def test_a_partition_with_nothing_now_holds_the_merge_back() -> None:
    tail = [sample(1)]
    merged = Merged(ListSource({"a": [sample(0), sample(2), sample(9)], "b": tail}, unending=("b",)), {})
    first = merged.poll(9)
    assert first is not None
    assert keys(first) == [("a", 1), ("b", 1)]  # b's next row may be earlier than a's second
    held = merged.poll(9)
    assert held is not None
    assert len(held) == 0
    tail.append(sample(5))
    went_on = merged.poll(9)
    assert went_on is not None
    assert keys(went_on) == [("a", 2), ("b", 2)]


def test_a_vanished_partition_with_a_committed_position_stops_the_stream() -> None:
    with pytest.raises(SourceError, match=r"no longer has partition 'old', read up to 3"):
        Merged(ListSource({"a": []}), {"old": 3})


@dataclass(frozen=True)
class Asked(ListSource):
    """Notes how many rows it is asked for."""

    limits: list[int] = field(default_factory=list)

    def open(self, partition: str, position: int) -> ListReader:
        return AskedReader(self, partition, position)


class AskedReader(ListReader):
    def poll(self, limit: int) -> Polled | None:
        assert isinstance(self._source, Asked)
        self._source.limits.append(limit)
        return super().poll(limit)


def test_little_is_read_of_many_partitions_until_the_size_of_rows_is_known() -> None:
    source = Asked({f"p{i:02}": [sample(t) for t in range(20)] for i in range(40)})
    assert len(drained(Merged(source, {}), 800)[0]) == 800
    assert set(source.limits[:40]) == {6}  # 256 MiB for 40 partitions, should a row take 1 MiB
    assert set(source.limits[40:]) == {64}


@dataclass(frozen=True)
class Flaky(ListSource):
    """Fails on every second poll, after it has moved on."""

    polls: list[int] = field(default_factory=list)

    def open(self, partition: str, position: int) -> ListReader:
        return FlakyReader(self, partition, position)


class FlakyReader(ListReader):
    def poll(self, limit: int) -> Polled | None:
        assert isinstance(self._source, Flaky)
        self._source.polls.append(limit)
        polled = super().poll(min(limit, 2))
        if len(self._source.polls) % 2 == 0:
            raise SourceError("the network is away")
        return polled


def test_polling_again_after_a_source_error_loses_nothing() -> None:
    source = Flaky({"a": [sample(t) for t in range(9)]})
    merged = Merged(source, {})
    seen: list[tuple[str, int]] = []
    errors = 0
    while len(seen) < 9:
        try:
            polled = merged.poll(1)
        except SourceError:
            errors += 1
            continue
        assert polled is not None
        seen += keys(polled)
    assert seen == [("a", i) for i in range(1, 10)]
    assert errors > 0


def test_of_an_endless_source_a_partition_is_waited_for_only_so_long() -> None:
    now, tail = [0.0], [sample(1)]
    source = ListSource({"a": [sample(0), sample(2), sample(9)], "b": tail}, unending=("a", "b"), idle_s=5.0)
    merged = Merged(source, {}, clock=lambda: now[0])
    assert polled_keys(merged) == [("a", 1), ("b", 1)]
    now[0] = 4.9
    assert polled_keys(merged) == []  # b's next row may be earlier than a's second
    now[0] = 5.0
    assert polled_keys(merged) == [("a", 2), ("a", 3)]
    tail += [sample(3), sample(4)]  # b is late for its place and loses nothing
    now[0] = 10.0
    assert polled_keys(merged) == [("b", 2), ("b", 3)]
    assert polled_keys(merged) == []
    assert merged.positions == {"a": 3, "b": 3}


def polled_keys(merged: Merged) -> list[tuple[str, int]]:
    polled = merged.poll(9)
    assert polled is not None
    return keys(polled)


def test_an_endless_source_does_not_end_and_its_new_partitions_are_found() -> None:
    now, rows = [0.0], {"b": [sample(5)]}
    merged = Merged(ListSource(rows, idle_s=1.0), {}, clock=lambda: now[0])
    assert polled_keys(merged) == [("b", 1)]
    rows["a"] = [sample(1), sample(2)]
    assert polled_keys(merged) == []  # and not None, although every partition has ended
    now[0] = LOOK_S
    assert polled_keys(merged) == [("a", 1), ("a", 2)]
    assert merged.positions == {"a": 2, "b": 1}


@dataclass(frozen=True)
class Down(ListSource):
    """Cannot be listed a second time."""

    listed: list[int] = field(default_factory=list)

    def partitions(self) -> list[str]:
        self.listed.append(1)
        if len(self.listed) > 1:
            raise SourceError("the network is away")
        return super().partitions()


def test_a_source_that_cannot_be_listed_for_a_while_is_read_on() -> None:
    now = [0.0]
    merged = Merged(Down({"a": [sample(1), sample(2)]}, idle_s=1.0), {}, clock=lambda: now[0])
    assert merged.poll(1) is not None
    now[0] = LOOK_S
    assert polled_keys(merged) == [("a", 2)]


class WaitingReader(ListReader):
    def poll(self, limit: int) -> Polled | None:
        polled = super().poll(limit)
        return polled or Polled(NO_ROWS, waiting="the broker is away")


class Waiting(ListSource):
    def open(self, partition: str, position: int) -> ListReader:
        return WaitingReader(self, partition, position)


def test_what_a_partition_waits_for_is_passed_on() -> None:
    merged = Merged(Waiting({"a": [sample(1)]}, idle_s=1.0), {})
    first, second = merged.poll(9), merged.poll(9)
    assert first is not None
    assert second is not None
    assert (len(first), len(second), second.waiting) == (1, 0, "the broker is away")
