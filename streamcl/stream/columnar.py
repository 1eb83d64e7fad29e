"""The door for many rows at once: what is plainly a sample stays in Arrow; only the other rows are looked at singly.

A row passes here only where `Door.take` would give the very same sample; whatever is doubtful (a text that may need
escaping, an id of other characters, a foreign shape) goes there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streamcl.errors import BadSample
from streamcl.stream.base import NO_ROWS, Polled
from streamcl.stream.deadletter import payload, refuse
from streamcl.stream.decode import ID_CHARS, LAST_TIME, PARTS
from streamcl.stream.door import Door
from streamcl.stream.formats import Row
from streamcl.stream.tables import Block
from streamcl.types import MESSAGE, NAME, PART, SAMPLE_SCHEMA, DeadLetter, Sample, to_batch

Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
ODD = "[^!-~]"
"""What an id that passes here does not hold."""
MESSAGES = ({"role", "content"}, {"type", "text"})


def taken(block: Block, door: Door, partition: str) -> Polled:
    """The rows of a block as samples and dead letters, in reading order."""
    rows = block.batch.num_rows
    positions = np.arange(block.position + 1, block.position + rows + 1)
    batch, plain = _plain(block.batch, door)
    dead: list[DeadLetter] = []
    singly: list[Sample] = []
    refused = _unproved(batch, plain, door) if batch is not None else {}
    for at in np.flatnonzero(~plain).tolist():
        record = _record(block.batch.slice(at, 1))
        one = door.take(Row(int(positions[at]), record, {} if isinstance(record, BadSample) else record), partition)
        (dead if isinstance(one, DeadLetter) else singly).append(one)  # type: ignore[arg-type]
    for at, error in refused.items():
        record = block.batch.slice(at, 1).to_pylist()[0]
        letter = DeadLetter(str(error), record["id"], door.source, partition, int(positions[at]), payload(record))
        dead.append(letter)
        plain[at] = False
    good = _placed(batch, plain, positions, door.source, partition) if batch is not None and plain.any() else NO_ROWS
    if singly:
        good = pa.concat_batches([good, to_batch(singly)])
        good = good.take(pc.sort_indices(good["position"]))
    return Polled(good, tuple(sorted(dead, key=lambda letter: letter.position)))


def _unproved(batch: pa.RecordBatch, plain: Flags, door: Door) -> dict[int, BadSample]:
    """The plain rows whose images cannot be decoded, and why."""
    found: dict[int, BadSample] = {}
    images = batch["images"]
    first, of = images.offsets.to_pylist(), images.values
    data = memoryview(of.buffers()[2] or b"")
    begins = np.frombuffer(of.buffers()[1], np.int32)[of.offset :].tolist() if len(of) else []
    for at in np.flatnonzero(plain).tolist():
        try:
            for number, image in enumerate(range(first[at], first[at + 1])):
                door.prove(data[begins[image] : begins[image + 1]], f"image {number}", door.limits)
        except BadSample as error:
            found[at] = error
    return found


def _record(row: pa.RecordBatch) -> dict[str, Any] | BadSample:
    """One row as Python values. Only Python looks whether Parquet's texts are UTF-8."""
    try:
        record: dict[str, Any] = row.to_pylist()[0]
    except UnicodeDecodeError as error:
        return refuse("utf8", f"a text is not UTF-8: {error.reason} at byte {error.start}")
    return record


def _placed(batch: pa.RecordBatch, plain: Flags, positions: Counts, source: str, partition: str) -> pa.RecordBatch:
    """The plain rows with where they lie."""
    place = [pa.repeat(pa.scalar(text, pa.string()), len(plain)) for text in (source, partition)]
    columns = [*(batch[name] for name in SAMPLE_SCHEMA.names[:5]), *place, pa.array(positions, pa.int64())]
    whole = pa.RecordBatch.from_arrays(columns, schema=SAMPLE_SCHEMA)
    return whole if plain.all() else whole.filter(pa.array(plain))


def _plain(raw: pa.RecordBatch, door: Door) -> tuple[pa.RecordBatch | None, Flags]:
    """The first five columns of SAMPLE_SCHEMA, and for which rows they are as they should be; None where for none."""
    none = np.zeros(raw.num_rows, np.bool_)
    columns = {ours: raw[name] for ours in (*SAMPLE_SCHEMA.names[:5], "schema")
               if (name := door.columns.get(ours, ours)) in raw.schema.names}  # fmt: skip
    if not _typed(columns) or ("image" in raw.schema.names and "images" not in columns) or not _is_utf8(raw):
        return None, none
    names, ids = _texts(columns, "task", raw.num_rows), columns["id"]
    times = pc.fill_null(columns["time"], 0.0) if "time" in columns else pa.array(np.zeros(raw.num_rows))
    ok = _flags(pc.is_valid(ids)) & ~_flags(pc.match_substring_regex(ids, ODD)) & (_lengths(ids) - 1 < ID_CHARS)
    ok &= (_lengths(ids) > 0) & _flags(pc.is_in(names, _allowed(names)))
    ok &= np.abs(times.to_numpy(zero_copy_only=False)) <= LAST_TIME
    if "schema" in columns:
        ok &= _flags(pc.equal(columns["schema"], 1), null=True)
    messages, places, fine = _messages(columns["messages"], door)
    images, sound = _images(columns.get("images"), places, door)
    if messages is None or images is None:
        return None, none
    values = [ids, messages, images, names, times]
    return pa.RecordBatch.from_arrays(values, names=SAMPLE_SCHEMA.names[:5]), ok & fine & sound


def _typed(columns: dict[str, pa.Array]) -> bool:
    """Whether the columns have types that are read here."""
    if not {"id", "messages"} <= {*columns} or columns["id"].type != pa.string():
        return False
    if "task" in columns and columns["task"].type not in (pa.string(), pa.null()):
        return False
    times = columns.get("time", pa.nulls(0, pa.float64()))
    schema = columns.get("schema", pa.nulls(0, pa.int64()))
    if times.type != pa.float64() or not pa.types.is_integer(schema.type):
        return False
    at = columns["messages"].type
    for names in MESSAGES:
        if not pa.types.is_list(at) or not pa.types.is_struct(at.value_type):
            return False
        fields = {field.name: field.type for field in at.value_type}
        if not names <= {*fields} or any(fields[name] != pa.string() for name in names - {"content"}):
            return False
        at = fields.get("content", at)
    return True


def _is_utf8(batch: pa.RecordBatch) -> bool:
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _messages(column: pa.Array, door: Door) -> tuple[pa.Array | None, Counts, Flags]:
    """The messages in our own types, how many images each row has a place for, and which rows are as they should be."""
    rows, limits = len(column), door.limits
    counts, said = _counts(column), column.flatten()
    parts_of, parts = _counts(said.field("content")), said.field("content").flatten()
    kinds, texts = parts.field("type"), parts.field("text")
    if said.null_count or parts.null_count or len(parts_of) != len(said):
        return None, np.zeros(rows, np.int64), np.zeros(rows, np.bool_)
    is_image, is_text = _flags(pc.equal(kinds, "image")), _flags(pc.equal(kinds, "text"))
    row_of = np.repeat(np.arange(rows), counts)
    turn = np.arange(len(said)) - np.repeat(np.cumsum(counts) - counts, counts)
    message_of = np.repeat(np.arange(len(said)), parts_of)
    last = np.zeros(len(said), np.bool_)
    last[(np.cumsum(counts) - 1)[counts > 0]] = True
    roles = said.field("role")
    bad = ~np.where(turn % 2 == 0, _flags(pc.equal(roles, "user")), _flags(pc.equal(roles, "assistant")))
    bad |= (parts_of > PARTS) | _any(message_of, ~(is_image | (is_text & _flags(pc.is_valid(texts)))), len(said))
    bad |= _any(message_of, is_text & _flags(pc.match_substring(texts, "<")), len(said))
    bad |= last & _any(message_of, is_image, len(said))
    bad |= last & ~_any(message_of, _lengths(pc.utf8_trim_whitespace(texts)) > 0, len(said))
    texts = pc.if_else(pa.array(is_image), "", texts)
    chars = np.where(is_image, 0, _lengths(texts))
    total = np.bincount(row_of[message_of], chars, minlength=rows)
    fine = (counts >= 2) & (counts % 2 == 0) & (counts <= limits.messages) & (total <= limits.text_chars)
    fine &= ~_any(row_of, bad, rows)
    content = _lists(parts_of, pa.StructArray.from_arrays([kinds, texts], fields=[*PART]))
    whole = _lists(counts, pa.StructArray.from_arrays([roles, content], fields=[*MESSAGE]))
    return whole, np.bincount(row_of[message_of][is_image], minlength=rows), fine


def _images(column: pa.Array | None, places: Counts, door: Door) -> tuple[pa.Array | None, Flags]:
    """The images as bytes, and for which rows they are as many and as large as they may be."""
    rows, limits = len(places), door.limits
    if column is None or pa.types.is_null(column.type):
        return _lists(np.zeros(rows, np.int64), pa.array([], pa.binary())), places == 0
    if not pa.types.is_list(column.type):
        return None, np.zeros(rows, np.bool_)
    counts, images = _counts(column), column.flatten()
    if pa.types.is_struct(images.type) and not images.null_count and images.type.get_field_index("bytes") >= 0:
        images = images.field("bytes")  # as Hugging Face writes images
    if images.type != pa.binary():
        return None, np.zeros(rows, np.bool_)
    sizes = pc.fill_null(pc.binary_length(images), -1).to_numpy(zero_copy_only=False)
    wrong = (sizes < 0) | (sizes > limits.image_bytes)
    sound = (counts == places) & (counts <= limits.images) & ~_any(np.repeat(np.arange(rows), counts), wrong, rows)
    return _lists(counts, images), sound


def _texts(columns: dict[str, pa.Array], name: str, rows: int) -> pa.Array:
    column = columns.get(name)
    return column if column is not None and column.type == pa.string() else pa.nulls(rows, pa.string())


def _allowed(names: pa.Array) -> pa.Array:
    """Those among the names that may be used, and null."""
    return pa.array([name for name in pc.unique(names).to_pylist() if name is None or _is_name(name)], pa.string())


def _is_name(name: str) -> bool:
    return NAME.fullmatch(name) is not None and ".." not in name


def _lengths(texts: pa.Array) -> Counts:
    """Characters of each text; 0 for null."""
    lengths: Counts = pc.fill_null(pc.utf8_length(texts), 0).to_numpy(zero_copy_only=False)
    return lengths


def _counts(lists: pa.Array) -> Counts:
    """Length of each list; 0 for null."""
    counts: Counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return counts


def _lists(counts: Counts, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32()), values)


def _flags(values: pa.Array, *, null: bool = False) -> Flags:
    flags: Flags = pc.fill_null(values, null).to_numpy(zero_copy_only=False)
    return flags.copy()


def _any(owner: Counts, flags: Flags, owners: int) -> Flags:
    """For each owner, whether a flag of its own is up."""
    found: Flags = np.bincount(owner[flags], minlength=owners) > 0
    return found
