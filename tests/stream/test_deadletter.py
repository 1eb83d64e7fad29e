"""Dead letters come back as they were, and are harmless to look at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcl.errors import Corrupt
from streamcl.stream import from_jsonl, to_jsonl
from streamcl.stream.deadletter import payload, refuse, ring, shown
from streamcl.types import DeadLetter

letters = st.builds(DeadLetter, st.text(), st.text(), st.text(), st.text(), st.integers(0, 2**62), st.text())


@given(st.lists(letters, max_size=5))
def test_letters_survive_the_round_trip(batch: list[DeadLetter]) -> None:
    assert from_jsonl(to_jsonl(batch)) == batch


@given(letters)
def test_a_letter_is_one_line_of_printable_ascii(letter: DeadLetter) -> None:
    line = to_jsonl([letter])
    assert line.endswith(b"\n")
    assert all(32 <= byte < 127 for byte in line[:-1])


@given(st.lists(letters, max_size=6), st.lists(letters, max_size=6), st.integers(0, 2_000))
def test_a_ring_keeps_the_newest_that_fit_and_counts_the_others(
    old: list[DeadLetter], new: list[DeadLetter], most: int
) -> None:
    kept, dropped = ring(to_jsonl(old), new, most=most)
    assert from_jsonl(kept) == [*old, *new][dropped:]
    assert len(kept) <= most
    assert dropped == 0 or len(to_jsonl([*old, *new][dropped - 1 :])) > most  # one more would not fit


@pytest.mark.parametrize("data", [b"{", b"[]", b"7", b'{"reason": "x"}', b'{"surprise": 1}', b"\xff"])
def test_what_is_no_letter_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt, match="line 1"):
        from_jsonl(data)


def test_a_payload_is_short_and_text_whatever_came() -> None:
    assert payload(b"\xff\x00ok") == "\\xff\x00ok"
    assert len(payload(b"\xff" * 9_999)) == 2_000
    assert payload({"images": [b"abc"], "text": "x"}) == '{"images": ["<bytes, 3 bytes>"], "text": "x"}'


@pytest.mark.parametrize("value", ["x" * 999, "\n\x1b\ud800", {"a": 1}, [1] * 999, None, 1.5, b"\0"])
def test_whatever_is_shown_is_short_and_printable(value: object) -> None:
    assert len(shown(value)) < 80
    assert shown(value).isprintable()


def test_a_number_too_long_for_python_to_print_is_shown_by_its_type() -> None:
    assert shown(10**5_000) == "int"


def test_a_reason_outside_the_list_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        refuse("weather", "rain")
