"""Dead letters come in again once their cause is mended: each once, and all counts stay balanced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from streamcl.bench.reliability_corpus import image, line, record
from streamcl.errors import ConfigError
from streamcl.stream import Files, Limits, Merged
from streamcl.stream.resubmit import Resubmitted, resubmit
from streamcl.testing import ListSource
from streamcl.types import DeadLetter, Sample, from_batch

SMALL = Limits(text_chars=100)


def read(source: Files, positions: dict[str, int]) -> tuple[list[Sample], list[DeadLetter]]:
    """What is behind the positions, which move on."""
    merged, good, dead = Merged(source, positions), [], []
    while (polled := merged.poll(7)) is not None:
        good += from_batch(polled.batch)
        dead += polled.dead
    positions.update(merged.positions)
    return good, dead


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight good rows, one of 300 characters, one whose picture is missing, and one without an answer."""
    rows = [record(text=f"question {i}", id=f"good-{i}", time=i) for i in range(8)]
    rows[2:2] = [record(text="x" * 300, id="long", time=2)]
    rows[5:5] = [record({"path": "late.png"}, id="picture", time=4)]
    rows[7:7] = [record(answer="", id="mute", time=5)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(map(line, rows[:6])))
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(map(line, rows[6:])))
    return tmp_path


def mended(root: Path, letters: Sequence[DeadLetter]) -> Resubmitted:
    (root / "late.png").write_bytes(image())
    return resubmit(Files(str(root)), letters)


def test_mended_letters_come_in_again_as_a_partition(root: Path) -> None:
    positions: dict[str, int] = {}
    good, dead = read(Files(str(root), SMALL), positions)
    assert [letter.id for letter in dead] == ["long", "picture", "mute"]
    done = mended(root, dead)
    assert (done.samples, done.before, [letter.id for letter in done.refused]) == (2, 0, ["mute"])
    again, dead_again = read(Files(str(root)), positions)
    assert [sample.id for sample in again] == ["long", "picture"]
    assert again[1].images == (image(),)
    assert {sample.partition for sample in again} == {done.partition}
    assert dead_again == []
    assert len(good) + len(again) + 1 == 11  # every row of the source once, but for the one that stays refused


def test_submitting_twice_changes_nothing(root: Path) -> None:
    _, dead = read(Files(str(root), SMALL), {})
    first = mended(root, dead)
    files = sorted(path.name for path in root.iterdir())
    second = mended(root, dead)
    assert (second.partition, second.samples, second.before) == (None, 0, 2)
    assert second.refused == first.refused
    assert sorted(path.name for path in root.iterdir()) == files


def test_a_letter_mended_later_comes_alone(root: Path) -> None:
    _, dead = read(Files(str(root), SMALL), {})
    first = resubmit(Files(str(root)), dead)  # the picture is still missing
    assert (first.samples, [letter.reason.split(":")[0] for letter in first.refused]) == (1, ["answer", "image"][::-1])
    second = mended(root, dead)
    assert (second.samples, second.before) == (1, 1)
    assert second.partition != first.partition


def test_what_dies_again_is_a_letter_of_its_own_and_may_come_again(root: Path) -> None:
    positions: dict[str, int] = {}
    _, dead = read(Files(str(root), SMALL), positions)
    done = mended(root, dead)
    _, dead_again = read(Files(str(root), SMALL), positions)  # the limits were lowered again
    assert [(letter.id, letter.partition) for letter in dead_again] == [("long", done.partition)]
    third = resubmit(Files(str(root)), [*dead, *dead_again])
    assert (third.samples, third.before) == (1, 2)


def test_a_source_that_is_no_folder_cannot_be_added_to(root: Path) -> None:
    _, dead = read(Files(str(root), SMALL), {})
    for path in (root / "a.jsonl", root / "*.jsonl"):
        with pytest.raises(ConfigError, match="is no folder"):
            resubmit(Files(str(path)), [replace(dead[0], partition="a.jsonl")])
    with pytest.raises(ConfigError, match="only files can"):
        resubmit(ListSource({}), dead)
