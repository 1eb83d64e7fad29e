"""Every format gives the same samples, from any row on, however it is polled; hostile files end in dead letters."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamcl.bench.reliability_corpus import image, line, record
from streamcl.errors import ConfigError, SourceError
from streamcl.stream import Files, Limits
from streamcl.stream.columnar import taken
from streamcl.stream.door import Door
from streamcl.stream.formats import Row, elements
from streamcl.stream.inflate import FREE_BYTES
from streamcl.stream.tables import Block
from streamcl.types import SAMPLE_SCHEMA, DeadLetter, Sample, from_batch

PIXEL = image()
ROWS = 40


def records() -> list[dict[str, Any]]:
    """Some good, and some that are refused for different reasons; images as bytes."""
    found: list[dict[str, Any]] = []
    for number in range(ROWS):
        one = record(*[PIXEL] * (number % 3), text=f"question {number}", id=f"r{number}", time=float(number % 7))
        one["images"] = [PIXEL] * (number % 3)
        found.append({"task": "maps", **one})
    found[5]["messages"][-1]["content"] = ""
    found[9]["images"] = [PIXEL[:-400]] * (9 % 3 or 1)
    found[9]["messages"][0]["content"] = [{"type": "image"}, {"type": "text", "text": "torn"}]
    found[13]["time"] = 1e30
    found[17]["messages"][0]["content"] = [{"type": "text", "text": "obey <image> and <|im_end|>"}]
    found[17]["images"] = []
    found[21]["id"] = "ein Füchslein"
    found[25]["task"] = "Not A Name"
    return found


def parted(one: dict[str, Any]) -> dict[str, Any]:
    """Contents as lists of parts, as a table needs them."""

    def parts(content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    return {**one, "messages": [{**m, "content": parts(m["content"])} for m in one["messages"]]}


def table() -> pa.Table:
    rows = [{"text": None, **parted(one)} for one in records()]
    columns = {name: [row.get(name) for row in rows] for name in ("id", "messages", "images", "task", "time")}
    types = {name: SAMPLE_SCHEMA.field(name).type for name in columns}
    return pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})


def text_lines() -> list[bytes]:
    return [plain(one) for one in records()]


def plain(one: dict[str, Any]) -> bytes:
    """A record as JSON, its images in base64."""
    return line({**one, "images": [base64.b64encode(data).decode() for data in one["images"]]})


def write_arrow(path: Path, *, stream: bool) -> None:
    whole = table()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), whole.schema) as writer:
        writer.write_table(whole, max_chunksize=7)


def write_tar(path: Path, *, mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:
        for number, one in enumerate(records()):
            bare = {name: value for name, value in one.items() if name != "images"}
            members = {f"{i}.png": data for i, data in enumerate(one["images"])} | {"json": line(bare)}
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"shard/{number:05d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def array() -> bytes:
    return b"\xef\xbb\xbf [\n" + b" ,\n ".join(text_lines()) + b"\n]\n"


def broken_tar(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


WRITERS: dict[str, Callable[[Path], object]] = {
    "x.jsonl": lambda p: p.write_bytes(b"\n".join(text_lines())),
    "x.ndjson": lambda p: p.write_bytes(b"\n".join(text_lines()) + b"\n"),
    "x.jsonl.gz": lambda p: p.write_bytes(b"".join(gzip.compress(one + b"\n") for one in text_lines())),
    "x.jsonl.zst": lambda p: p.write_bytes(zstandard.compress(b"\n".join(text_lines()))),
    "x.json": lambda p: p.write_bytes(array()),
    "x.json.gz": lambda p: p.write_bytes(gzip.compress(array())),
    "x.parquet": lambda p: pq.write_table(table(), p, row_group_size=11),
    "x.arrow": lambda p: write_arrow(p, stream=False),
    "x.arrows": lambda p: write_arrow(p, stream=True),
    "x.tar": lambda p: write_tar(p),
    "x.tar.gz": lambda p: write_tar(p, mode="w:gz"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("formats")
    for name, write in WRITERS.items():
        (root / name).parent.mkdir(exist_ok=True)
        write(root / name)
    return root


def content(sample: Sample) -> tuple[object, ...]:
    return sample.id, sample.messages, sample.images, sample.task, sample.time, sample.position


def read(source: Files, partition: str, limits: list[int], position: int = 0) -> tuple[list[Any], list[Any]]:
    """Everything from a position on, with polls of these sizes in turn, and a new reader after each."""
    good: list[Any] = []
    dead: list[Any] = []
    turn = 0
    while (polled := (reader := source.open(partition, position)).poll(limits[turn % len(limits)])) is not None:
        good += map(content, from_batch(polled.batch))
        dead += [(letter.position, letter.reason.partition(":")[0]) for letter in polled.dead]
        assert len(polled) <= limits[turn % len(limits)]
        position, turn = reader.position, turn + 1
    return good, dead


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_samples_and_letters(root: Path, name: str) -> None:
    expected = read(Files(str(root)), "x.jsonl", [1_000])
    assert [position for position, _ in expected[1]] == [6, 10, 14, 26]
    found = read(Files(str(root)), name, [1_000])
    assert found == expected


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limits=st.lists(st.integers(1, 50), min_size=1, max_size=4), start=st.integers(0, ROWS))
def test_any_poll_size_and_resume_point_gives_the_same_rows(
    root: Path, name: str, limits: list[int], start: int
) -> None:
    good, dead = read(Files(str(root)), name, [1_000])
    rest = read(Files(str(root)), name, limits, start)
    assert rest == ([one for one in good if one[-1] > start], [one for one in dead if one[0] > start])


@pytest.mark.parametrize("name", WRITERS)
def test_a_shorter_file_under_a_committed_position_is_noticed(root: Path, name: str) -> None:
    assert Files(str(root)).open(name, ROWS).poll(9) is None
    with pytest.raises(SourceError, match="changed under a committed position: it has 40 rows, and 41 have been read"):
        Files(str(root)).open(name, ROWS + 1).poll(9)


def test_columns_pass_the_door_as_single_rows_do() -> None:
    """What the fast way lets through is exactly what the slow way gives."""
    door, whole = Door("s"), table().combine_chunks().to_batches()[0]
    fast = taken(Block(0, whole), door, "p")
    slow = [door.take(Row(at + 1, one, one), "p") for at, one in enumerate(whole.to_pylist())]
    assert from_batch(fast.batch) == [one for one in slow if isinstance(one, Sample)]
    assert list(fast.dead) == [one for one in slow if isinstance(one, DeadLetter)]


TEXTS = st.text(st.sampled_from("ab<|>image \n\té\u2003"), max_size=12)
PARTS = st.one_of(st.just({"type": "image", "text": None}), st.builds(lambda t: {"type": "text", "text": t}, TEXTS),
                  st.just({"type": "video", "text": "x"}), st.just({"type": "text", "text": None}))  # fmt: skip
CONTENT = st.one_of(st.none(), st.lists(PARTS, max_size=3))
ROLES = st.sampled_from(["user", "assistant", "system", None])
SAID = st.lists(st.builds(lambda r, c: {"role": r, "content": c}, ROLES, CONTENT), max_size=4)
SOUND = st.builds(
    lambda n, t, a: [{"role": "user", "content": [{"type": "image", "text": None}] * n + [{"type": "text", "text": t}]},
                     {"role": "assistant", "content": [{"type": "text", "text": a}]}],
    st.integers(0, 2), TEXTS, TEXTS,
)  # fmt: skip
WILD = st.fixed_dictionaries({
    "id": st.one_of(st.none(), TEXTS, st.just("i" * 300)),
    "messages": st.one_of(st.none(), SAID, SOUND, SOUND),
    "images": st.one_of(st.none(), st.lists(st.sampled_from([PIXEL, b"", b"torn", None]), max_size=3)),
    "task": st.one_of(st.none(), st.sampled_from(["maps", "a..b", "Ä", ""])),
    "time": st.one_of(st.none(), st.floats()),
})  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.lists(WILD, min_size=1, max_size=9))
def test_whatever_a_table_holds_the_fast_way_and_the_slow_way_agree(rows: list[dict[str, Any]]) -> None:
    types = {name: SAMPLE_SCHEMA.field(name).type for name in rows[0]}
    batch = pa.RecordBatch.from_pydict({name: pa.array([row[name] for row in rows], types[name]) for name in types})
    door = Door("s", Limits(text_chars=20))
    fast = taken(Block(0, batch), door, "p")
    slow = [door.take(Row(at + 1, one, one), "p") for at, one in enumerate(batch.to_pylist())]
    assert from_batch(fast.batch) == [one for one in slow if isinstance(one, Sample)]
    assert list(fast.dead) == [one for one in slow if isinstance(one, DeadLetter)]


# -- hostile files -----------------------------------------------------------------------------------------------------


def letters(path: Path, name: str) -> list[str]:
    return [reason for _, reason in read(Files(str(path)), name, [100])[1]]


@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_a_bomb_is_one_letter_and_ends_its_file_only(tmp_path: Path, codec: str) -> None:
    bomb = plain(records()[0]) + b"\n" + b" " * (4 * FREE_BYTES) + b"\n" + plain(records()[1])
    packed = gzip.compress(bomb) if codec == "gz" else zstandard.compress(bomb)
    (tmp_path / f"a.jsonl.{codec}").write_bytes(packed)
    (tmp_path / "b.jsonl").write_bytes(plain(records()[2]))
    source = Files(str(tmp_path))
    assert [one[0] for one in read(source, "b.jsonl", [9])[0]] == ["r2"]
    good, dead = read(source, f"a.jsonl.{codec}", [1])
    assert ([one[0] for one in good], dead) == (["r0"], [(2, "too_large")])
    assert source.open(f"a.jsonl.{codec}", 2).poll(1) is None  # and is not read again


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst", "x.tar", "x.arrow", "x.parquet"])
def test_a_file_that_is_cut_short_says_so(root: Path, tmp_path: Path, name: str) -> None:
    data = (root / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(SourceError, match=name):
        read(Files(str(tmp_path)), name, [100])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'[{"a": 1}, oops, {"a": "x, ]}[{"}]', [b'{"a": 1}', b" oops", b' {"a": "x, ]}[{"}']),
        (b'["a\\"]", "\\\\", 1,2 , null]', [b'"a\\"]"', b' "\\\\"', b" 1", b"2 ", b" null"]),
        (b" [ ] ", []),
        (b'[[1, [2]], {"b": [3]}]', [b"[1, [2]]", b' {"b": [3]}']),
    ],
)
def test_elements_are_told_apart_by_their_brackets(text: bytes, expected: list[bytes]) -> None:
    assert list(elements(io.BytesIO(text), 1_000)) == expected


@settings(max_examples=25, deadline=None)
@given(st.lists(st.recursive(st.one_of(st.none(), st.integers(), st.text()), lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)), max_leaves=6)))  # fmt: skip
def test_an_array_of_anything_comes_apart_as_json_reads_it(values: list[Any]) -> None:
    for text in (json.dumps(values), json.dumps(values, indent=1, ensure_ascii=False)):
        assert [json.loads(one) for one in elements(io.BytesIO(text.encode()), 10**6)] == values


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        (b'[{"messages": []}, {"messages"', ["schema", "schema"]),
        (b'[{"messages": []}] trailing', ["schema", "schema"]),
        (b'["text", 3, {"a": NaN, }]', ["schema", "schema", "schema"]),
        (b"[" + b"[" * 70_000 + b"]" * 70_000 + b"]", ["too_large"]),
        (b'[{"a": "' + b"x" * 100_000 + b'"}, "\xff"]', ["too_large", "utf8"]),
    ],
)
def test_a_malformed_array_is_dead_letters(tmp_path: Path, text: bytes, reasons: list[str]) -> None:
    (tmp_path / "a.json").write_bytes(text)
    source = Files(str(tmp_path), Limits(image_bytes=100, text_chars=50, images=1))
    source_limit = source.limits.record_bytes
    if b"xxx" in text:
        (tmp_path / "a.json").write_bytes(text.replace(b"x" * 100_000, b"x" * (source_limit + 1)))
    assert [reason for _, reason in read(source, "a.json", [100])[1]] == reasons


def packed(*members: tuple[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def test_members_of_one_key_are_one_sample_and_captions_answer_an_instruction(tmp_path: Path) -> None:
    talk = {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A fox"}]}
    long = "deep/" * 40 + "name"
    (tmp_path / "a.tar").write_bytes(packed(
        ("a/1.jpg", PIXEL), ("a/1.txt", b" a fox \n"), ("a/2.png", PIXEL), ("a/2.json", json.dumps(talk).encode()),
        ("b/2.png", PIXEL), (f"{long}.png", PIXEL), (f"{long}.txt", b"deep"), ("z.txt", b"no picture"), ("z.npy", b"1"),
    ))  # fmt: skip
    polled = Files(str(tmp_path)).open("a.tar", 0).poll(99)
    assert polled is not None
    samples = from_batch(polled.batch)
    assert [s.answer for s in samples] == ["a fox", "A fox", "deep", "no picture"]
    assert [len(s.images) for s in samples] == [1, 1, 1, 0]
    assert [s.messages[0].text for s in samples][:2] == ["Describe the picture.", "What?"]
    assert [(d.position, d.reason.partition(":")[0]) for d in polled.dead] == [(3, "schema")]


def test_a_tar_cannot_make_its_reader_hold_more_than_a_sample_may_have(tmp_path: Path) -> None:
    limits = Limits(image_bytes=1_000, text_chars=50, images=1)
    (tmp_path / "a.tar").write_bytes(packed(
        ("1.png", bytes(500_000)), ("1.txt", b"big"), ("2.json", b"[" * (limits.record_bytes + 9)),
        *((f"3.{i}.png", PIXEL) for i in range(50)), ("3.txt", b"many"), ("4.txt", b"fine"),
    ))  # fmt: skip
    polled = Files(str(tmp_path), limits).open("a.tar", 0).poll(99)
    assert polled is not None
    assert [d.reason.partition(":")[0] for d in polled.dead] == ["too_large", "too_large", "schema"]
    assert [s.answer for s in from_batch(polled.batch)] == ["fine"]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_bytes_flipped_in_any_file_end_in_letters_or_a_source_error(root: Path, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    name = dice.choice([n for n in WRITERS if not n.endswith("parquet")])
    data = bytearray((root / name).read_bytes())
    for _ in range(dice.randint(1, 8)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    (tmp_path / name).write_bytes(bytes(data))
    try:
        good, dead = read(Files(str(tmp_path)), name, [7])
    except SourceError:
        return
    assert good or dead


def test_an_arrow_batch_that_is_damaged_is_refused_and_the_next_one_read(tmp_path: Path) -> None:
    whole = table()
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=20)
    data = sink.getvalue().replace(b"question 1", b"quest\xff\xfe\xfd 1", 1)
    (tmp_path / "a.arrows").write_bytes(data)
    good, dead = read(Files(str(tmp_path)), "a.arrows", [100])
    assert (20, "schema") in dead
    assert [one[-1] for one in good] == [p for p in range(21, 41) if p != 26]


class Armed(pa.ExtensionType):
    """Stands for an extension type that runs code when it is read."""

    fired: list[bytes] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(pa.string(), "streamcl.armed.ipc")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Armed:
        cls.fired.append(serialized)
        return cls()


@pytest.mark.parametrize("stream", [False, True])
def test_an_extension_type_in_arrow_is_refused_before_it_can_run(tmp_path: Path, stream: bool) -> None:
    armed = pa.ExtensionArray.from_storage(Armed(), pa.array(["x"]))
    whole = table().slice(0, 1).append_column("z", armed)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(tmp_path / "a.arrow"), whole.schema) as writer:
        writer.write_table(whole)
    pa.register_extension_type(Armed())
    Armed.fired.clear()
    try:
        with pytest.raises(SourceError, match="extension types"):
            read(Files(str(tmp_path)), "a.arrow", [9])
        assert Armed.fired == []
    finally:
        pa.unregister_extension_type("streamcl.armed.ipc")


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="holds a password") as error:
        Files("sftp://me:hunter2@host/data")
    assert "hunter2" not in str(error.value)


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown 'picture'"):
        Files("a", columns={"picture": "img"})
