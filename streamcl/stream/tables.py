"""The rows of one Parquet or Arrow IPC file as Arrow batches, from any row on, without loading the file."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streamcl.errors import SourceError
from streamcl.stream.deadletter import refuse
from streamcl.stream.formats import BLOCK_BYTES as READ_BYTES
from streamcl.stream.formats import Row, shorter
from streamcl.stream.shapes import holds_samples, wanted

ROWS = 32
"""Rows that are in memory at once, raw. Few: a page of one kilobyte can name the same 8 MiB image in every row."""
BATCHES = 8
"""So many times that are looked at together, as long as they are small."""
BLOCK_BYTES = 8 * 2**20
HEADER_BYTES = 64 * 2**20
EXTENSION = b"ARROW:extension:name"


@dataclass(frozen=True)
class Block:
    """Some raw rows."""

    position: int
    """Rows of the file before it."""
    batch: pa.RecordBatch


def parquet_blocks(file: Any, start: int, where: str, columns: Mapping[str, str]) -> Iterator[Block | Row]:
    """The rows after the first `start`. Row groups before it are not read."""
    _refuse_parquet_extensions(file, where)
    parquet = pq.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False)
    names = checked_columns(parquet.schema_arrow, where, columns)
    if parquet.metadata.num_rows < start:
        raise shorter(where, parquet.metadata.num_rows, start)
    return _after(start, _parquet_batches(parquet, names, start))


def _parquet_batches(parquet: pq.ParquetFile, names: list[str], start: int) -> Iterator[Block]:
    position = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if position + rows <= start:
            position += rows
            continue
        gathered: list[pa.RecordBatch] = []
        size = 0
        for batch in parquet.iter_batches(ROWS, row_groups=[group], columns=names, use_threads=False):
            gathered.append(batch)
            size += batch.nbytes
            if size >= BLOCK_BYTES or len(gathered) == BATCHES:
                yield (block := Block(position, pa.concat_batches(gathered)))
                position += block.batch.num_rows
                gathered, size = [], 0
        if gathered:
            yield (block := Block(position, pa.concat_batches(gathered)))
            position += block.batch.num_rows


def arrow_blocks(file: Any, start: int, where: str, columns: Mapping[str, str]) -> Iterator[Block | Row]:
    """The rows after the first `start`, of the file format or the stream format. Batches before it are read over.

    A batch that is not what it says (offsets that lead elsewhere, texts that are not UTF-8) is one row that is refused.
    """
    head = file.read(8)
    file.seek(8 if head == b"ARROW1\0\0" else 0)  # behind its magic, the file format is a stream with a footer
    _refuse_arrow_extensions(file, where)
    reader = pa.ipc.open_stream(file)
    names = checked_columns(reader.schema, where, columns)
    return _after(start, _arrow_batches(reader, names, start, where))


def _arrow_batches(reader: Any, names: list[str], start: int, where: str) -> Iterator[Block | Row]:
    position = 0
    for whole in reader:
        batch, before = whole.select(names), position
        position += batch.num_rows
        if position <= start:
            continue
        try:
            batch.validate(full=True)
        except pa.ArrowInvalid as error:
            yield Row(
                position, refuse("schema", f"{batch.num_rows} rows of an Arrow batch are damaged: {error}"[:300]), b""
            )
            continue
        size = ROWS * BATCHES if batch.nbytes < BLOCK_BYTES * max(1, batch.num_rows // (ROWS * BATCHES)) else ROWS
        yield from (Block(before + at, batch.slice(at, size)) for at in range(0, batch.num_rows, size))
    if position < start:
        raise shorter(where, position, start)


def _after(start: int, blocks: Iterator[Block | Row]) -> Iterator[Block | Row]:
    for block in blocks:
        if isinstance(block, Row):
            yield block
        elif (skip := max(start - block.position, 0)) < block.batch.num_rows:
            yield Block(block.position + skip, block.batch.slice(skip))


def checked_columns(schema: pa.Schema, where: str, columns: Mapping[str, str]) -> list[str]:
    """The columns that are read.  Raises SourceError if they hold no samples, or not only plain Python values."""
    known = wanted(columns)
    fields = [field for field in schema if field.name in known]
    if not holds_samples([field.name for field in fields], columns):
        found = ", ".join(schema.names)[:200]
        raise SourceError(
            f"{where} has columns {found}; need messages, conversations, or question and answer. "
            f"If they go by other names, say so: columns: {{messages: {schema.names[0] if schema.names else 'NAME'}}}"
        )
    for field in fields:
        if not _plain(field.type):
            raise SourceError(
                f"{where}: column {field.name} is {field.type}; need texts, bytes, numbers, lists or structs"
            )
    return [field.name for field in fields]


def _plain(kind: pa.DataType) -> bool:
    """Whether every value of this Arrow type becomes a plain Python value."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_struct(kind):
        return all(_plain(kind.field(i).type) for i in range(kind.num_fields))
    tests: tuple[Callable[[pa.DataType], bool], ...] = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary,
        pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _refuse_parquet_extensions(file: Any, where: str) -> None:
    """Refuse Arrow extension types before Arrow sees them: some that a process may have registered run code when read.

    They are named in the footer, in base64, so the name is looked for at each of the three alignments base64 has.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > min(size - 8, HEADER_BYTES):
        raise SourceError(f"{where} is not a Parquet file, is cut short, or is encrypted; write it anew")
    file.seek(size - 8 - length)
    footer = file.read(length)
    file.seek(0)
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + EXTENSION)
        if encoded[(8 * shift + 5) // 6 : (shift + len(EXTENSION)) * 8 // 6] in footer:
            raise _extensions(where)


def _refuse_arrow_extensions(file: Any, where: str) -> None:
    """The same for the first message of an Arrow stream, which is its schema."""
    begin = file.tell()
    head = file.read(8)
    length = int.from_bytes(head[4:], "little")
    if head[:4] != b"\xff\xff\xff\xff" or not 0 < length < HEADER_BYTES:
        raise SourceError(f"{where} is not an Arrow file or stream, or is cut short; write it anew")
    if EXTENSION in file.read(length):
        raise _extensions(where)
    file.seek(begin)


def _extensions(where: str) -> SourceError:
    return SourceError(f"{where} holds Arrow extension types, which can run code when read; need plain columns")
