"""Samples from files: a file, a folder, or a glob, wherever fsspec reaches."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import fsspec
import pyarrow as pa

from streamcl.errors import BadSample, SourceError
from streamcl.stream.base import Polled, Source
from streamcl.stream.deadletter import payload
from streamcl.stream.decode import decode
from streamcl.stream.folder import Folder
from streamcl.stream.formats import Row, jsonl_rows, parquet_rows
from streamcl.stream.isolate import CHILD
from streamcl.stream.limits import Limits
from streamcl.types import DeadLetter, Sample, to_batch

ROWS = {".parquet": parquet_rows, ".jsonl": jsonl_rows, ".json": jsonl_rows}
ALLOWED = f"a file, folder or glob with {', '.join(ROWS)}"
POLL_BYTES = 32 * 2**20
"""A poll ends once it has gathered this much of images."""


@dataclass(frozen=True)
class Files(Source):
    """Parquet and JSON Lines files. Each is a partition named by its path under the root; a position counts its rows.

    The root is the folder, or what stands before a glob's first wildcard, or the one file's folder. A record holds an
    image as bytes or base64 text, or names it: {"path": "images/fox.png"}, a key under the root. Of a folder or glob,
    names that begin with "." or "_" are left out, as Spark and Arrow do. Files may be added between runs, not changed
    or removed. All are held open at once.
    """

    path: str
    """fsspec URL of a file, a folder or a glob: data/, s3://bucket/*.parquet, x.jsonl (or x.json: a record a line)."""
    limits: Limits = field(default_factory=Limits)
    name: str = "files"
    """Goes into each sample's `source`."""

    def partitions(self) -> list[str]:
        """Paths under the root, sorted.  Raises SourceError."""
        folder, pattern = self.resolved()
        try:
            folder.fs.invalidate_cache()
            found = folder.fs.glob(pattern) if _wild(pattern) else folder.fs.find(pattern)
        except OSError as error:
            raise self._unreadable(error) from error
        names = sorted(path[len(folder.root) :].lstrip("/") for path in map(folder.fs._strip_protocol, found))
        if found != [pattern]:
            names = [name for name in names if not any(part[0] in "._" for part in name.split("/"))]
        known = [name for name in names if _suffix(name) in ROWS]
        if not known:
            others = f" among {len(names)}, such as {names[0]!r}" if names else ""
            raise SourceError(f"{self.path}: no file to read{others}. Name {ALLOWED}")
        return known

    def open(self, partition: str, position: int) -> FileReader:
        """Reads a file from a row on.  Raises SourceError."""
        folder, _ = self.resolved()
        if _suffix(partition) not in ROWS:
            raise SourceError(f"{self.path}: {partition!r} has an unknown suffix. Name {ALLOWED}")
        where = f"{self.path}: {partition!r}"
        try:
            file = folder.fs.open(f"{folder.root}/{partition}", "rb")
            rows = ROWS[_suffix(partition)](file, position, where, self.limits)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error, partition) from error
        return FileReader(self, folder, partition, position, rows)

    def resolved(self) -> tuple[Folder, str]:
        """The root, and the path in the file system's own terms."""
        try:
            fs, path = fsspec.core.url_to_fs(self.path)  # trusted: it is the configuration's, never a record's
            if _wild(path):
                root = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
            else:
                root = path.rpartition("/")[0] if fs.isfile(path) else path.rstrip("/")
        except (OSError, ValueError, ImportError) as error:
            raise self._unreadable(error) from error
        return Folder(fs, root), path

    def _unreadable(self, error: Exception, partition: str = "") -> SourceError:
        where = f"{self.path}: {partition!r}" if partition else self.path
        return SourceError(f"{where} cannot be read ({error}). Check path, rights and network, or restore the file")


class FileReader:
    """Decodes one file's rows, one after the other.  Mutates: `position`."""

    def __init__(self, files: Files, folder: Folder, partition: str, position: int, rows: Iterator[Row]) -> None:
        self.position = position
        self._files, self._folder, self._partition, self._rows = files, folder, partition, rows

    def poll(self, limit: int) -> Polled | None:
        """The next rows; None at the end of the file.  Raises SourceError."""
        good: list[Sample] = []
        dead: list[DeadLetter] = []
        size, position = 0, self.position
        try:
            while len(good) + len(dead) < limit and size < POLL_BYTES and (row := next(self._rows, None)) is not None:
                taken = self._taken(row)
                position = row.position
                if isinstance(taken, DeadLetter):
                    dead.append(taken)
                else:
                    good.append(taken)
                    size += sum(map(len, taken.images))
        except (OSError, pa.ArrowException) as error:
            raise self._files._unreadable(error, self._partition) from error
        self.position = position
        return Polled(to_batch(good), tuple(dead)) if good or dead else None

    def _taken(self, row: Row) -> Sample | DeadLetter:
        source, partition = self._files.name, self._partition
        try:
            if isinstance(row.record, BadSample):
                raise row.record
            sample = decode(self._with_images(row.record), self._files.limits, prove=CHILD.prove)
        except BadSample as error:
            return DeadLetter(str(error), _name(row.record), source, partition, row.position, payload(row.raw))
        return replace(sample, source=source, partition=partition, position=row.position)

    def _with_images(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """The record with the bytes of those images that it names by key.  Raises BadSample."""
        images, limits = record.get("images"), self._files.limits
        if not isinstance(images, list) or len(images) > limits.images:
            return record  # which is refused, so nothing is fetched
        fetched = [self._folder.image(i, limits.image_bytes) if isinstance(i, Mapping) else i for i in images]
        return {**record, "images": fetched}


def _name(record: Mapping[str, Any] | BadSample) -> str:
    """The id that a refused record gives itself, as far as it is one."""
    name = None if isinstance(record, BadSample) else record.get("id")
    return name[:256].encode("ascii", "backslashreplace").decode() if isinstance(name, str) else ""


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _wild(path: str) -> bool:
    return any(mark in path for mark in "*?[")
