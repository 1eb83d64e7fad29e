"""A folder that fills up: files and lines that are added are read, once, and what is replaced is noticed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.bench.reliability_corpus import line, record
from streamcl.errors import SourceError
from streamcl.stream import Files, Merged
from streamcl.stream.fingerprint import Unchanged
from streamcl.stream.formats import text_rows
from streamcl.stream.growing import Growing
from streamcl.stream.limits import Limits
from streamcl.types import from_batch


def row(name: str) -> bytes:
    return line(record(text=name, id=name)) + b"\n"


class Clock:
    """Goes on by ten seconds at each look: nobody waits."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


def merged(folder: Path, positions: dict[str, int] | None = None) -> Merged:
    return Merged(Files(str(folder), tail=True), positions or {}, clock=Clock())


def read(stream: Merged, wanted: int, *, seconds: float = 10.0) -> list[str]:
    """Ids until so many have come; growth is looked for once a second."""
    found: list[str] = []
    until = time.monotonic() + seconds
    while len(found) < wanted and time.monotonic() < until:
        polled = stream.poll(5)
        assert polled is not None, "a tail never ends"
        found += [sample.id for sample in from_batch(polled.batch)]
    return found


def test_files_that_are_added_and_lines_that_are_written_are_read(tmp_path: Path) -> None:
    stream = merged(tmp_path)
    assert read(stream, 1, seconds=0.1) == []
    (tmp_path / "a.jsonl").write_bytes(row("a1") + row("a2")[:20])
    assert read(stream, 1) == ["a1"]
    with (tmp_path / "a.jsonl").open("ab") as growing:
        growing.write(row("a2")[20:] + row("a3"))
    assert read(stream, 2) == ["a2", "a3"]
    rows = [{"id": "b1", "question": "b", "answer": "yes"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "_b.parquet")
    assert read(stream, 1, seconds=0.1) == []
    (tmp_path / "_b.parquet").rename(tmp_path / "b.parquet")
    assert read(stream, 1) == ["b1"]
    assert stream.positions == {"a.jsonl": 3, "b.parquet": 1}


def test_a_tail_goes_on_where_its_positions_say(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"".join(row(f"a{i}") for i in range(9)))
    stream = merged(tmp_path)
    first = read(stream, 5)
    (tmp_path / "b.jsonl").write_bytes(row("b1"))
    rest = read(merged(tmp_path, stream.positions), 10 - len(first))
    assert sorted(first + rest) == sorted([*(f"a{i}" for i in range(9)), "b1"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=12), st.integers(0, 4))
def test_however_a_file_grows_each_line_comes_once_and_whole(cuts: list[int], start: int) -> None:
    import fsspec

    fs, lines = fsspec.filesystem("memory"), [row(f"r{i}") for i in range(5)]
    text, at = b"".join(lines), 0
    fs.pipe("/grow/a.jsonl", b"".join(lines[:start]))
    file = Growing(fs, "/grow/a.jsonl", "a", clock=Clock())
    rows = text_rows(file, start, "a", Limits(), grows=True)
    seen: list[int] = []
    at = sum(map(len, lines[:start]))
    for cut in [*cuts, len(text)]:
        at = min(at + cut, len(text))
        fs.pipe("/grow/a.jsonl", text[:at])
        while (found := next(rows)) is not None:
            seen.append(found.position)
        assert len(seen) == text[:at].count(b"\n") - start
    assert seen == list(range(start + 1, 6))


def test_a_growing_file_that_is_cut_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(row("a1") + row("a2"))
    stream = merged(tmp_path)
    assert read(stream, 2) == ["a1", "a2"]
    (tmp_path / "a.jsonl").write_bytes(row("a1"))
    with pytest.raises(SourceError, match="was cut"):
        read(stream, 1)


# -- replaced ----------------------------------------------------------------------------------------------------------


class Memory(dict[str, bytes]):
    """A ledger."""

    def put(self, key: str, data: bytes) -> None:
        self[key] = data


def table(path: Path, answer: str) -> None:
    pq.write_table(pa.Table.from_pylist([{"id": "x", "question": "q", "answer": answer}] * 3), path)


def lines(path: Path, answer: str) -> None:
    path.write_bytes(b"".join(line(record(text=answer, id=f"{answer}{i}")) + b"\n" for i in range(3)))


@pytest.mark.parametrize(("name", "write"), [("a.parquet", table), ("a.jsonl", lines)])
def test_a_replaced_file_of_the_same_length_is_noticed(
    tmp_path: Path, name: str, write: Callable[[Path, str], Any]
) -> None:
    path, ledger = tmp_path / name, Memory()
    write(path, "yes")
    size = path.stat().st_size
    stream = Merged(Unchanged(Files(str(tmp_path)), ledger), {})
    assert stream.poll(2) is not None
    again = Merged(Unchanged(Files(str(tmp_path)), ledger), stream.positions)
    assert again.poll(9) is not None  # unchanged: goes on
    write(path, "not")
    assert path.stat().st_size == size
    with pytest.raises(SourceError, match=rf"'{name}' was replaced under a committed position: 2 rows"):
        Merged(Unchanged(Files(str(tmp_path)), ledger), stream.positions)
    assert Merged(Unchanged(Files(str(tmp_path)), ledger), {}).poll(9) is not None  # of which nothing was committed


def test_lines_that_were_added_are_no_replacement(tmp_path: Path) -> None:
    path, ledger = tmp_path / "a.jsonl", Memory()
    path.write_bytes(row("a1"))
    stream = Merged(Unchanged(Files(str(tmp_path)), ledger), {})
    assert stream.poll(9) is not None
    with path.open("ab") as more:
        more.write(row("a2"))
    polled = Merged(Unchanged(Files(str(tmp_path)), ledger), stream.positions).poll(9)
    assert polled is not None
    assert [s.id for s in from_batch(polled.batch)] == ["a2"]
    assert all(json.loads(data)["head"] for data in ledger.values())
