"""The raw rows of one Parquet or JSON Lines file, from any row on, without loading the file."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from streamcl.errors import BadSample, SourceError
from streamcl.stream.deadletter import refuse
from streamcl.stream.limits import Limits

COLUMNS = ("schema", "id", "messages", "images", "task", "time")
"""What is read of a Parquet file. Source, partition and position are where a row lies, not what it says of itself."""
PARQUET_ROWS = 32
"""Rows that are in memory at once, raw. Few: a page of one kilobyte can name the same 8 MiB image in every row."""
FOOTER_BYTES = 64 * 2**20
BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Row:
    """One raw row."""

    position: int
    """Rows of the file up to and including this one: where reading resumes after it."""
    record: Mapping[str, Any] | BadSample
    """What is to be decoded, or why there is nothing."""
    raw: bytes | Mapping[str, Any]
    """The row as it came, for a dead letter."""


def jsonl_rows(file: Any, start: int, where: str, limits: Limits) -> Iterator[Row]:
    """The lines after the first `start`. Those are read over, not parsed. Blank lines count, and give no row."""
    lines = _lines(io.BufferedReader(file, BLOCK_BYTES), limits.record_bytes)
    for skipped in range(start):
        if next(lines, None) is None:
            raise shorter(where, skipped, start)
    return (
        Row(position, _parsed(line, limits), line.rstrip(b"\r\n"))
        for position, line in enumerate(lines, start + 1)
        if line.strip()
    )


def shorter(where: str, rows: int, position: int) -> SourceError:
    return SourceError(
        f"{where} changed under a committed position: it has {rows} rows, and {position} have been read. "
        "Files may be added, not cut or replaced: restore it, or start a new run"
    )


def _lines(file: BinaryIO, limit: int) -> Iterator[bytes]:
    """Each line, at most `limit` + 1 bytes of it."""
    while line := file.readline(limit + 1):
        yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(BLOCK_BYTES)


def _parsed(line: bytes, limits: Limits) -> Mapping[str, Any] | BadSample:
    if len(line) > limits.record_bytes:
        return refuse("too_large", f"a line of more than {limits.record_bytes} bytes")
    if (values := sum(map(line.count, (b",", b"[", b"{")))) > limits.record_values:
        return refuse("too_large", f"{values} commas and brackets; at most {limits.record_values} are allowed")
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return refuse("utf8", f"{error.reason} at byte {error.start}")
    except ValueError as error:
        return refuse("schema", f"not JSON, one object a line: {error}")
    except RecursionError:
        return refuse("schema", "JSON nested too deeply")
    if not isinstance(record, dict):
        return refuse("schema", f"a JSON {type(record).__name__}; need one object a line")
    return record


def parquet_rows(file: Any, start: int, where: str, limits: Limits) -> Iterator[Row]:
    """The rows after the first `start`. Row groups before it are not read."""
    del limits  # of a record as text; a row's own are checked when it is decoded
    _refuse_extensions(file, where)
    parquet = pq.ParquetFile(file, buffer_size=BLOCK_BYTES, pre_buffer=False)
    schema = parquet.schema_arrow
    if "messages" not in schema.names:
        raise SourceError(f"{where} has columns {', '.join(schema.names)[:200]}; need messages, may have {COLUMNS}")
    columns = [name for name in COLUMNS if name in schema.names]
    for name in columns:
        if not _plain(schema.field(name).type):
            kind = schema.field(name).type
            raise SourceError(f"{where}: column {name} is {kind}; need texts, bytes, numbers, lists or structs")
    if parquet.metadata.num_rows < start:
        raise shorter(where, parquet.metadata.num_rows, start)
    return _batches_rows(parquet, columns, start)


def _batches_rows(parquet: pq.ParquetFile, columns: list[str], start: int) -> Iterator[Row]:
    position = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if position + rows <= start:
            position += rows
            continue
        for batch in parquet.iter_batches(PARQUET_ROWS, row_groups=[group], columns=columns, use_threads=False):
            skip = min(max(start - position, 0), batch.num_rows)
            position += skip
            for record in _records(batch.slice(skip)):
                position += 1
                raw = {} if isinstance(record, BadSample) else record
                yield Row(position, record, raw)


def _records(batch: pa.RecordBatch) -> list[Mapping[str, Any] | BadSample]:
    """The rows of a batch. Only Python looks whether Parquet's texts are UTF-8; a row that is not must stand alone."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [refuse("utf8", f"a text is not UTF-8: {error.reason} at byte {error.start}")]
        return [record for i in range(batch.num_rows) for record in _records(batch.slice(i, 1))]


def _plain(kind: pa.DataType) -> bool:
    """Whether every value of this Arrow type becomes a plain Python value."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_nested(kind) and not pa.types.is_map(kind) and not pa.types.is_union(kind):
        return all(_plain(kind.field(i).type) for i in range(kind.num_fields))
    tests: tuple[Callable[[pa.DataType], bool], ...] = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary,
        pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _refuse_extensions(file: Any, where: str) -> None:
    """Refuse Arrow extension types before Arrow sees them: some that a process may have registered run code when read.

    They are named in the footer, in base64, so the name is looked for at each of the three alignments base64 has.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > min(size - 8, FOOTER_BYTES):
        raise SourceError(f"{where} is not a Parquet file, is cut short, or is encrypted; write it anew")
    file.seek(size - 8 - length)
    footer = file.read(length)
    file.seek(0)
    name = b"ARROW:extension:name"
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + name)
        if encoded[(8 * shift + 5) // 6 : (shift + len(name)) * 8 // 6] in footer:
            raise SourceError(f"{where} holds Arrow extension types, which can run code when read; need plain columns")
