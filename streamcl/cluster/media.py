"""Encoded samples as Arrow files in the run's store: written once at ingest, read by whoever trains or scores."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from streamcl.errors import Corrupt
from streamcl.registry.backends import CommitStore, sha256
from streamcl.train.batch import TRAINED, Row, to_rows
from streamcl.types import Rows


def write(store: CommitStore, batch: pa.RecordBatch) -> str:
    """One batch as an Arrow IPC file; its key. Uncompressed: pictures and features would shrink by a tenth, slowly."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return store.put_unique("data", sink.getvalue().to_pybytes(), "arrow")


def read(store: CommitStore, wanted: Sequence[Rows]) -> list[Row]:
    """The wanted rows, in the order given.  Raises Corrupt when a file is gone or does not match its name."""
    rows: list[Row] = []
    for part in wanted:
        data = store.get(part.key)
        if data is None or sha256(data)[:12] not in part.key:
            raise Corrupt(f"{part.key} is {'gone' if data is None else 'damaged'}: restore it, or roll the run back")
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all().select(TRAINED)  # pictures stay where they lie
        rows += to_rows(table.take(list(part.rows)))
    return rows
