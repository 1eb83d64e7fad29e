"""A reservoir as bytes: one Arrow IPC file, rows in canonical order, settings and thresholds in its metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from streamcl.errors import Corrupt
from streamcl.store.bottomk import EMPTY, Columns, Objects, objects

FORMAT = "streamcl-reservoir-1"
_FIELDS = [
    ("part", pa.int32()),
    ("rank", pa.float64()),
    ("hash", pa.uint64()),
    ("key", pa.dictionary(pa.int32(), pa.string())),
    ("row", pa.int64()),
    ("source", pa.dictionary(pa.int32(), pa.string())),
]


@dataclass(frozen=True)
class Settings:
    capacity: int
    heldout: float
    per_source: float
    fingerprint: str
    """Of the secret key: tells two keys apart, says nothing about either."""


@dataclass(frozen=True)
class Part:
    """One task's heap."""

    task: str
    held: bool
    rows: Columns
    bound: float


def pack(settings: Settings, parts: Sequence[Part]) -> bytes:
    """Settings and heaps as bytes; equal ones give equal bytes."""
    heaps = [{"task": part.task, "held": part.held, "bound": part.bound.hex()} for part in parts]
    metadata = {"format": FORMAT, "settings": json.dumps(asdict(settings)), "heaps": json.dumps(heaps)}
    schema = pa.schema(_FIELDS, metadata=metadata)
    rows = Columns.join([EMPTY, *(part.rows for part in parts)])
    part_of_row = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])
    columns = [part_of_row, *(getattr(rows, name) for name, _ in _FIELDS[1:])]
    arrays = [pa.array(column, type=kind) for column, (_, kind) in zip(columns, _FIELDS, strict=True)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return bytes(sink.getvalue())


def unpack(data: bytes) -> tuple[Settings, list[Part]]:
    """What `pack` was given. `data` must match its digest: what is left to find here is a file of another kind.

    Raises Corrupt.
    """
    try:
        return _read(pa.ipc.open_file(pa.BufferReader(data)).read_all())
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise Corrupt(f"{len(data)} bytes are not a reservoir snapshot that we wrote: {error!r}") from error


def _read(table: pa.Table) -> tuple[Settings, list[Part]]:
    table.validate(full=True)
    metadata = {name.decode(): text.decode() for name, text in (table.schema.metadata or {}).items()}
    if metadata.get("format") != FORMAT or not table.schema.equals(pa.schema(_FIELDS)):
        raise ValueError(f"format {metadata.get('format')!r}, columns {table.schema.names}")
    part = table["part"].to_numpy()
    rows = Columns(
        table["rank"].to_numpy(),
        table["hash"].to_numpy(),
        _texts(table["key"]),
        table["row"].to_numpy(),
        _texts(table["source"]),
    )
    heaps = json.loads(metadata["heaps"])
    ends = np.searchsorted(part, np.arange(len(heaps) + 1))
    return Settings(**json.loads(metadata["settings"])), [
        Part(h["task"], bool(h["held"]), rows.take(np.arange(ends[i], ends[i + 1])), float.fromhex(h["bound"]))
        for i, h in enumerate(heaps)
    ]


def _texts(column: pa.ChunkedArray) -> Objects:
    array = column.combine_chunks()
    values: Objects = objects(array.dictionary.to_pylist())[array.indices.to_numpy()]
    return values
