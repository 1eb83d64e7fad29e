"""Dead letters whose cause is mended come in again: read anew from the source, and written as a partition of it.

A letter names a row of the source, and the source still has it. So nothing is repaired in the letter itself: limits
were raised, a missing picture was put there, streamcl or Pillow was upgraded, and now the same row decodes.

The partition is a Parquet file in the source's folder, named by its content; the next start of the run reads it. Each
of its rows says which row it was, so none is submitted twice. A row that dies again is a letter of that partition.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from streamcl.errors import ConfigError
from streamcl.stream.base import Source
from streamcl.stream.files import Files
from streamcl.stream.folder import Folder
from streamcl.types import DeadLetter, Sample, from_batch, to_batch

PREFIX = "resubmitted-"
Row = tuple[str, int]
"""A partition, and the position after the row."""


@dataclass(frozen=True)
class Resubmitted:
    """What became of the letters: every one is in exactly one of the counts."""

    partition: str | None
    """The file that was written, under the source's folder; None if there was nothing to write."""
    samples: int
    """Rows in it."""
    before: int
    """Letters that an earlier file holds."""
    refused: tuple[DeadLetter, ...]
    """Letters whose row is refused as ever, with today's reason."""


def resubmit(source: Source, letters: Sequence[DeadLetter]) -> Resubmitted:
    """Decodes the letters' rows again and writes those that decode now.  Raises ConfigError, SourceError."""
    if not isinstance(source, Files):
        raise ConfigError(f"a source of kind {type(source).__name__.lower()} cannot be added to; only files can")
    folder, path = source.resolved()
    if path.rstrip("/") != folder.root:
        raise ConfigError(f"source.path {source.path!r} is no folder, so no partition can be added: name its folder")
    done = _done(folder)
    wanted = {(letter.partition, letter.position) for letter in letters}
    samples, refused = reread(source, sorted(wanted - done))
    name = _written(folder, samples) if samples else None
    return Resubmitted(name, len(samples), len(wanted & done), refused)


def _done(folder: Folder) -> set[Row]:
    """The rows that were submitted again before."""
    done: set[Row] = set()
    for name in folder.fs.glob(f"{folder.root}/{PREFIX}*.parquet"):
        table = pq.read_table(io.BytesIO(folder.fs.cat_file(name)), columns=["partition", "position"])
        done |= set(zip(table["partition"].to_pylist(), table["position"].to_pylist(), strict=True))
    return done


def _written(folder: Folder, samples: Sequence[Sample]) -> str:
    """The samples as a new file of the folder, which is there as a whole or not at all; its name."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_batches([to_batch(samples)]), sink)
    name = f"{PREFIX}{hashlib.sha256(sink.getvalue()).hexdigest()[:12]}.parquet"
    folder.put(name, sink.getvalue())
    return name


def reread(source: Source, rows: Iterable[Row]) -> tuple[list[Sample], tuple[DeadLetter, ...]]:
    """The samples in these rows of the source, and letters for those that are still refused."""
    samples: list[Sample] = []
    refused: list[DeadLetter] = []
    for partition, position in rows:
        polled = source.open(partition, position - 1).poll(1)
        if polled is not None:
            samples += from_batch(polled.batch)
            refused += polled.dead
    return samples, tuple(refused)
