"""Files as a source: any crash point, any format, nothing outside the root, and clear words when it cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamcl.bench.reliability_corpus import image, line, record, turns
from streamcl.errors import SourceError
from streamcl.stream import Files, Limits, Merged
from streamcl.types import SAMPLE_SCHEMA, DeadLetter, Sample, from_batch, to_batch

PLACE = ("source", "partition", "position")
TYPES = {"images": pa.list_(pa.binary()), "messages": SAMPLE_SCHEMA.field("messages").type}


def conversation(name: str, time: float, *, pictures: int = 0) -> dict[str, Any]:
    return record(*[image()] * pictures, text=f"question {name}", id=name, time=time)


def write_jsonl(path: Path, *records: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line(r) + b"\n" for r in records))


def write_parquet(path: Path, rows: list[dict[str, Any]], *, group: int = 3, **types: pa.DataType) -> None:
    columns = {name: [row.get(name) for row in rows] for name in {key: None for row in rows for key in row}}
    table = pa.table({name: pa.array(values, {**TYPES, **types}.get(name)) for name, values in columns.items()})
    pq.write_table(table, path, row_group_size=group)


def row(name: str, time: float = 0.0, answer: str = "yes") -> dict[str, Any]:
    said = (("user", name), ("assistant", answer))
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    return {"id": name, "messages": messages, "time": time}


Read = tuple[list[Sample], list[DeadLetter]]


def read(source: Files, positions: dict[str, int] | None = None, limit: int = 100) -> Read:
    merged, good, dead = Merged(source, positions or {}), [], []
    while (polled := merged.poll(limit)) is not None:
        good += from_batch(polled.batch)
        dead += polled.dead
    return good, dead


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Three partitions in two formats, with bad lines, blank lines, ties, and times that go backwards."""
    root = tmp_path_factory.mktemp("mixed")
    lines: list[Any] = [conversation(f"j{i}", (i * 5) % 13, pictures=i % 2) for i in range(12)]
    write_jsonl(root / "day" / "one.jsonl", *lines[:4], b"", b"oops", *lines[4:], b"\xff", b"")
    write_jsonl(root / "two.json", *(conversation(f"k{i}", i) for i in range(9)), {"messages": []})
    rows = [row(f"p{i}", i // 2, answer="" if i == 4 else "yes") for i in range(80)]
    write_parquet(root / "three.parquet", rows, group=33)
    return Files(str(root))


def test_partitions_are_the_known_files_under_the_root(mixed: Files) -> None:
    assert mixed.partitions() == ["day/one.jsonl", "three.parquet", "two.json"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 60))
def test_a_crash_after_any_poll_changes_nothing(mixed: Files, limits: list[int], last: int) -> None:
    undisturbed = read(mixed)
    assert (len(undisturbed[0]), len(undisturbed[1])) == (100, 4)
    good: list[Sample] = []
    dead: list[DeadLetter] = []
    positions: dict[str, int] = {}
    for limit in limits:
        merged = Merged(mixed, positions)
        if (polled := merged.poll(limit)) is not None:
            good += from_batch(polled.batch)
            dead += polled.dead
        positions = merged.positions
    rest = read(mixed, positions, last)
    assert (good + rest[0], dead + rest[1]) == undisturbed


@pytest.mark.parametrize("partition", ["day/one.jsonl", "three.parquet", "two.json"])
def test_reading_resumes_at_every_row(mixed: Files, partition: str) -> None:
    whole = mixed.open(partition, 0).poll(1_000)
    assert whole is not None
    for position in range(whole.batch["position"][-1].as_py()):
        part = mixed.open(partition, position).poll(1_000)
        assert part is not None
        assert from_batch(part.batch) == [s for s in from_batch(whole.batch) if s.position > position]
        assert part.dead == tuple(letter for letter in whole.dead if letter.position > position)


def test_three_poison_samples_go_to_the_dead_letters_and_everything_else_arrives(tmp_path: Path) -> None:
    good = [conversation(f"g{i}", i, pictures=1) for i in range(20)]
    poison = [record(image()[:-600], id="torn"), {**turns("user"), "id": "mute"}, record(text="x" * 2**20, id="long")]
    write_jsonl(tmp_path / "a.jsonl", *good[:5], poison[0], *good[5:9], poison[1], poison[2], *good[9:])
    arrived, dead = read(Files(str(tmp_path)))
    assert [s.id for s in arrived] == [f"g{i}" for i in range(20)]
    assert [(d.id, d.reason.split(":")[0], d.position) for d in dead] == [
        ("torn", "image", 6),
        ("mute", "answer", 11),
        ("long", "too_large", 12),
    ]
    assert "truncated" in dead[0].reason
    assert [len(d.payload) for d in dead] == [min(2_000, len(line(p))) for p in poison]


def test_a_file_a_folder_and_a_glob_name_the_same_partition(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", conversation("a", 0))
    for path in (tmp_path / "x.jsonl", tmp_path, f"{tmp_path}/", tmp_path / "*.jsonl", f"file://{tmp_path}/x.jsonl"):
        assert Files(str(path)).partitions() == ["x.jsonl"]
        assert [s.id for s in read(Files(str(path)))[0]] == ["a"]


def test_another_file_system_reads_alike() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/shop/a/x.jsonl": line(record({"path": "a/fox.png"}, id="m")), "/shop/a/fox.png": image()})
    (sample,), _ = read(Files("memory://shop"))
    assert (sample.id, sample.partition) == ("m", "a/x.jsonl")
    assert sample.images[0].startswith(b"\x89PNG")


def test_hidden_names_are_left_out_of_a_folder_but_can_be_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "_temporary/b.jsonl", ".c.jsonl"):
        write_jsonl(tmp_path / name, conversation("a", 0))
    assert Files(str(tmp_path)).partitions() == ["a.jsonl"]
    assert Files(str(tmp_path / ".c.jsonl")).partitions() == [".c.jsonl"]


def test_skipped_rows_are_neither_parsed_nor_fetched(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", b"\xff not even JSON", record({"path": "gone.png"}), conversation("last", 0))
    good, dead = read(Files(str(tmp_path)), {"a.jsonl": 2})
    assert [s.id for s in good] == ["last"]
    assert dead == []


def test_a_line_beyond_the_limit_is_dropped_in_pieces_and_the_next_one_read(tmp_path: Path) -> None:
    limits = Limits(image_bytes=1_000, text_chars=100)
    write_jsonl(tmp_path / "a.jsonl", b"[" * (limits.record_bytes + 3 * 2**20), conversation("next", 0))
    good, dead = read(Files(str(tmp_path), limits))
    assert [(s.id, s.position) for s in good] == [("next", 2)]
    assert dead[0].reason.startswith("too_large: a record")


def test_byte_order_mark_and_windows_line_ends_are_read_over(tmp_path: Path) -> None:
    first, second = line(conversation("a", 0)), line(conversation("b", 1))
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + first + b"\r\n" + second)
    assert [s.id for s in read(Files(str(tmp_path)))[0]] == ["a", "b"]


def test_samples_written_as_parquet_come_back(tmp_path: Path, mixed: Files) -> None:
    samples, _ = read(mixed)
    pq.write_table(pa.Table.from_batches([to_batch(samples)]), tmp_path / "a.parquet")
    back, dead = read(Files(str(tmp_path), name="again"))
    assert dead == []
    places = {s.id: (s.source, s.partition, s.position) for s in back}
    assert back == [replace(s, **dict(zip(PLACE, places[s.id], strict=True))) for s in samples]
    assert {(s.source, s.partition) for s in back} == {("again", "a.parquet")}  # not what the file says of itself


def test_a_parquet_row_that_is_not_utf8_does_not_take_others_along(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row(name) for name in ("a", "b", "c")])
    ids = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"], pa.binary()).buffers())
    pq.write_table(table.set_column(0, "id", ids), tmp_path / "a.parquet")
    good, dead = read(Files(str(tmp_path)))
    assert [s.id for s in good] == ["a", "c"]
    assert [(d.reason.split(":")[0], d.position) for d in dead] == [("utf8", 2)]


class Armed(pa.ExtensionType):
    """Stands for an extension type that runs code when it is read."""

    fired: list[bytes] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(pa.string(), "streamcl.armed")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Armed:
        cls.fired.append(serialized)
        return cls()


@pytest.mark.parametrize("padding", range(1, 30, 4))
def test_an_extension_type_in_parquet_is_refused_before_it_can_run(tmp_path: Path, padding: int) -> None:
    table = pa.Table.from_pylist([row("a")])
    armed = pa.ExtensionArray.from_storage(Armed(), pa.array(["x"]))
    pq.write_table(table.append_column("z" * padding, armed), tmp_path / "a.parquet")
    pa.register_extension_type(Armed())
    Armed.fired.clear()
    try:
        with pytest.raises(SourceError, match="extension types"):
            read(Files(str(tmp_path)))
        assert Armed.fired == []
        pq.read_schema(tmp_path / "a.parquet")
        assert Armed.fired  # the opposite: Arrow left alone does run it
    finally:
        pa.unregister_extension_type("streamcl.armed")


def rotten(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20:400] = bytes(380)
    path.write_bytes(data)


def parquet(root: Path, data: bytes) -> None:
    (root / "a.parquet").write_bytes(data)


def dates(root: Path) -> None:
    write_parquet(root / "a.parquet", [row("a", 0)], time=pa.timestamp("s"))


def rotten_pages(root: Path) -> None:
    write_parquet(root / "a.parquet", [row(str(i)) for i in range(99)])
    data = (root / "a.parquet").read_bytes()
    parquet(root, data[:20] + bytes(380) + data[400:])


CANNOT_BE_READ: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "nothing there": ("none/", lambda root: None, "no file to read.*Name a file, folder or glob"),
    "an empty folder": ("", lambda root: None, "no file to read"),
    "only other suffixes": ("", lambda root: (root / "a.csv").touch(), "such as 'a.csv'.*parquet, .*jsonl, .*json"),
    "a file with another suffix": ("a.csv", lambda root: (root / "a.csv").touch(), "such as 'a.csv'"),
    "text called parquet": ("", lambda root: parquet(root, b"x" * 99), "not a Parquet file"),
    "empty parquet": ("", lambda root: parquet(root, b""), "not a Parquet file"),
    "broken footer": ("", lambda root: parquet(root, b"x" * 99 + b"\x09\0\0\0PAR1"), "cannot be read"),
    "no messages": ("", lambda root: write_parquet(root / "a.parquet", [{"a": 1}]), "columns a; need messages"),
    "times as dates": ("", dates, "column time is timestamp"),
    "rotten pages": ("", rotten_pages, "'a.parquet' cannot be read"),
}


@pytest.mark.parametrize("case", CANNOT_BE_READ)
def test_what_cannot_be_read_is_named(tmp_path: Path, case: str) -> None:
    path, make, message = CANNOT_BE_READ[case]
    make(tmp_path)
    with pytest.raises(SourceError, match=message) as error:
        read(Files(f"{tmp_path}/{path}"))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("url", ["nosuchscheme://x", "s3://bucket/x.jsonl"])
def test_an_unknown_scheme_or_a_missing_client_is_a_source_error(url: str) -> None:
    if url.startswith("s3") and "s3" in fsspec.available_protocols() and __import__("importlib").util.find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(SourceError, match="cannot be read"):
        Files(url).partitions()


def test_a_file_that_shrank_under_a_committed_position_stops_the_stream(mixed: Files, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", *(conversation("a", i) for i in range(3)))
    write_parquet(tmp_path / "b.parquet", [row("a", i) for i in range(3)])
    assert read(Files(str(tmp_path)), {"a.jsonl": 3, "b.parquet": 3}) == ([], [])
    for name in ("a.jsonl", "b.parquet"):
        with pytest.raises(SourceError, match=f"{name}' changed under a committed position: it has 3 rows, and 4"):
            read(Files(str(tmp_path)), {name: 4})


def test_a_removed_file_with_a_committed_position_stops_the_stream(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", conversation("a", 0))
    with pytest.raises(SourceError, match=r"no longer has partition 'old.jsonl'"):
        read(Files(str(tmp_path)), {"old.jsonl": 1})
    with pytest.raises(SourceError, match="cannot be read"):
        Files(str(tmp_path)).open("old.jsonl", 1).poll(1)


def test_a_poll_is_bounded_in_bytes(tmp_path: Path) -> None:
    heavy = image(size=(1_200, 1_000), compress_level=0)
    write_jsonl(tmp_path / "a.jsonl", *(record(heavy, id=str(i)) for i in range(12)))
    polled = Files(str(tmp_path)).open("a.jsonl", 0).poll(1_000)
    assert polled is not None
    assert polled.batch.num_rows == -(-32 * 2**20 // len(heavy)) < 12


def test_a_record_may_have_an_unfetched_image_only_within_the_limit(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", record(*[{"path": "none.png"}] * 9))
    assert read(Files(str(tmp_path)))[1][0].reason.startswith("too_large: 9 images")


def test_a_json_array_is_read_from_json_but_is_no_line(tmp_path: Path) -> None:
    for name in ("a.json", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps([conversation(name, 0)]))
    good, dead = read(Files(str(tmp_path)))
    assert [s.id for s in good] == ["a.json"]
    assert "one object a line" in dead[0].reason
