"""A reservoir as bytes: one Arrow IPC file, rows in canonical order, settings and thresholds in its metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from streamcl.errors import Corrupt
from streamcl.store.bottomk import Columns, objects

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
    rows = [part.rows for part in parts]
    columns: list[Any] = [np.repeat(np.arange(len(rows), dtype=np.int32), [len(r) for r in rows])]
    for name, kind in _FIELDS[1:]:
        values = [value for r in rows for value in getattr(r, name)]
        columns.append(values if pa.types.is_dictionary(kind) else np.array(values, dtype=kind.to_pandas_dtype()))
    arrays = [pa.array(c, type=kind) for c, (_, kind) in zip(columns, _FIELDS, strict=True)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return bytes(sink.getvalue())


def unpack(data: bytes) -> tuple[Settings, list[Part]]:
    """What `pack` was given.  Raises Corrupt."""
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        metadata = {name.decode(): text.decode() for name, text in (table.schema.metadata or {}).items()}
        if metadata.get("format") != FORMAT or table.schema.names != [name for name, _ in _FIELDS]:
            raise Corrupt(f"not a reservoir snapshot: format {metadata.get('format')!r}, columns {table.schema.names}")
        settings, heaps = Settings(**json.loads(metadata["settings"])), json.loads(metadata["heaps"])
    except (pa.ArrowInvalid, OSError, ValueError, TypeError, KeyError) as error:
        raise Corrupt(f"reservoir snapshot of {len(data)} bytes cannot be read: {error}") from error
    part = table["part"].to_numpy()
    rows = Columns(
        table["rank"].to_numpy(),
        table["hash"].to_numpy(),
        objects(table["key"].to_pylist()),
        table["row"].to_numpy(),
        objects(table["source"].to_pylist()),
    )
    ends = np.searchsorted(part, np.arange(len(heaps) + 1))
    return settings, [
        Part(h["task"], bool(h["held"]), rows.take(np.arange(ends[i], ends[i + 1])), float.fromhex(h["bound"]))
        for i, h in enumerate(heaps)
    ]
