"""Samples from files: a file, a folder, or a glob, wherever fsspec reaches."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from streamcl.errors import ConfigError, SourceError
from streamcl.stream.base import Source
from streamcl.stream.door import Door
from streamcl.stream.fingerprint import of_file
from streamcl.stream.folder import Folder
from streamcl.stream.formats import Row, json_rows, text_rows
from streamcl.stream.growing import Growing
from streamcl.stream.inflate import CODECS, Inflated
from streamcl.stream.limits import Limits
from streamcl.stream.reader import DoorReader, unreadable
from streamcl.stream.shapes import check_columns
from streamcl.stream.tables import Block, arrow_blocks, parquet_blocks
from streamcl.stream.webdataset import tar_rows

TABLES: Mapping[str, Callable[..., Iterator[Block | Row]]] = {
    ".parquet": parquet_blocks, **dict.fromkeys((".arrow", ".arrows", ".feather", ".ipc"), arrow_blocks)
}  # fmt: skip
TEXTS: Mapping[str, Callable[..., Iterator[Row | None]]] = {
    ".jsonl": text_rows, ".ndjson": text_rows, ".json": json_rows, ".tar": tar_rows
}  # fmt: skip
LINES = (".jsonl", ".ndjson")
ALLOWED = f"a file, folder or glob with {', '.join((*TABLES, *TEXTS))}; the latter also with {' or '.join(CODECS)}"
TAIL_S = 2.0
"""How long a file that has nothing now may hold the others of a tailed folder back."""
SECRET = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*@")


@dataclass(frozen=True)
class Files(Source):
    """Files of samples. Each is a partition named by its path under the root; a position counts its rows.

    Parquet, Arrow IPC, WebDataset tar, JSON Lines, and JSON arrays such as LLaVA's. The root is the folder, or what
    stands before a glob's first wildcard, or the one file's folder. A record holds an image as bytes or base64 text, or
    names it: {"path": "images/fox.png"}, a key under `images`. Of a folder or glob, names that begin with "." or "_"
    are left out, as Spark and Arrow do. Files may be added, and lines to JSON Lines; nothing else may change.
    """

    path: str
    """fsspec URL of a file, a folder or a glob: data/, s3://bucket/*.parquet, x.jsonl.gz. Credentials are fsspec's to
    find in the environment (AWS_ACCESS_KEY_ID, FSSPEC_S3_ENDPOINT_URL, ...), and may not stand here."""
    limits: Limits = field(default_factory=Limits)
    columns: dict[str, str] = field(default_factory=dict)
    """Our names of a record's fields, and the files' own: {messages: chat, images: pictures, id: uid}."""
    images: str | None = None
    """fsspec URL of the folder that records name images in; None: the root."""
    tail: bool = False
    """Never end: read files that are added, and lines that are written to .jsonl files. Others must appear whole: write
    them under a name that begins with "." or "_", and rename them."""
    name: str = "files"
    """Goes into each sample's `source`."""

    def __post_init__(self) -> None:
        check_columns(self.columns)
        for url in (self.path, self.images or ""):
            if SECRET.search(url):
                shown = SECRET.sub("***@", url)
                raise ConfigError(f"{shown} holds a password: leave it out, fsspec finds it in the environment")

    @property
    def idle_s(self) -> float | None:
        """See `Source`."""
        return TAIL_S if self.tail else None

    def partitions(self) -> list[str]:
        """Paths under the root, sorted.  Raises SourceError."""
        folder, pattern = self.resolved()
        try:
            folder.fs.invalidate_cache()
            found = folder.fs.glob(pattern) if _wild(pattern) else folder.fs.find(pattern)
        except unreadable() as error:
            raise self.unreadable(error) from error
        names = sorted(path[len(folder.root) :].lstrip("/") for path in map(folder.fs._strip_protocol, found))
        if found != [pattern]:
            names = [name for name in names if not any(part[0] in "._" for part in name.split("/"))]
        known = [name for name in names if readable(name)]
        if not known and not self.tail:
            others = f" among {len(names)}, such as {names[0]!r}" if names else ""
            raise SourceError(f"{self.path}: no file to read{others}. Name {ALLOWED}")
        return known

    def open(self, partition: str, position: int) -> DoorReader:
        """Reads a file from a row on.  Raises SourceError."""
        folder, _ = self.resolved()
        if not readable(partition):
            raise SourceError(f"{self.path}: {partition!r} has an unknown suffix. Name {ALLOWED}")
        pieces = self._pieces(folder, partition, position)
        return DoorReader(self.door(), partition, position, pieces, lambda error: self.unreadable(error, partition))

    def fingerprint(self, partition: str, known: Mapping[str, Any] | None) -> dict[str, Any]:
        """See `fingerprint.py`; JSON Lines that are not compressed may grow."""
        folder, _ = self.resolved()
        suffix, codec = _format(partition)
        try:
            grows = suffix in LINES and not codec
            return of_file(folder.fs, f"{folder.root}/{partition}", grows=grows, known=known)
        except unreadable() as error:
            raise self.unreadable(error, partition) from error

    def schema(self, partition: str) -> dict[str, str]:
        """The fields that are read of a file, and their types, by its first row.  Raises SourceError."""
        try:
            first = next(self._pieces(self.resolved()[0], partition, 0), None)
        except unreadable() as error:
            raise self.unreadable(error, partition) from error
        if isinstance(first, Block):
            return {field.name: str(field.type) for field in first.batch.schema}
        record = first.record if isinstance(first, Row) and isinstance(first.record, Mapping) else {}
        return {str(name): type(value).__name__ for name, value in record.items()}

    def door(self) -> Door:
        """What the files' records pass."""
        root = self.resolved()[0] if self.images is None else self._folder(self.images)
        return Door(self.name, self.limits, self.columns, root)

    def resolved(self) -> tuple[Folder, str]:
        """The root, and the path in the file system's own terms."""
        try:
            fs, path = fsspec.core.url_to_fs(self.path)  # trusted: it is the configuration's, never a record's
            if _wild(path):
                root = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
            else:
                root = path.rpartition("/")[0] if fs.isfile(path) else path.rstrip("/")
        except unreadable(ValueError, ImportError) as error:
            raise self.unreadable(error) from error
        return Folder(fs, root), path

    def _folder(self, url: str) -> Folder:
        try:
            fs, path = fsspec.core.url_to_fs(url)
        except unreadable(ValueError, ImportError) as error:
            raise self.unreadable(error) from error
        return Folder(fs, path.rstrip("/"))

    def _pieces(self, folder: Folder, partition: str, position: int) -> Iterator[Block | Row | None]:
        """The file's rows after the first `position`; the file is open from the first to the last of them."""
        path, where = f"{folder.root}/{partition}", f"{self.path}: {partition!r}"
        suffix, codec = _format(partition)
        if self.tail and suffix in LINES and not codec:
            with Growing(folder.fs, path, where) as growing:
                yield from text_rows(growing, position, where, self.limits, grows=True)
            return
        local = suffix in TABLES and isinstance(folder.fs, LocalFileSystem)  # which Arrow reads without Python
        with pa.OSFile(path) if local else folder.fs.open(path, "rb") as file:
            if suffix in TABLES:
                yield from TABLES[suffix](file, position, where, self.columns)
            else:
                yield from TEXTS[suffix](Inflated(file, codec) if codec else file, position, where, self.limits)

    def unreadable(self, error: Exception, partition: str = "") -> SourceError:
        where = f"{self.path}: {partition!r}" if partition else self.path
        return SourceError(f"{where} cannot be read ({error}). Check path, rights and network, or restore the file")


def readable(name: str) -> bool:
    """Whether a file of this name is read."""
    suffix, codec = _format(name)
    return suffix in TEXTS or (suffix in TABLES and not codec)


def _format(name: str) -> tuple[str, str]:
    """The suffix that says the format, and the codec that it is compressed with, or ""."""
    stem, suffix = os.path.splitext(name.lower())
    if suffix in CODECS:
        return os.path.splitext(stem)[1], CODECS[suffix]
    return suffix, ""


def _wild(path: str) -> bool:
    return any(mark in path for mark in "*?[")
