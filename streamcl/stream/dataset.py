"""Samples from a dataset: Hugging Face, Ray Data, or anything in Python that can be gone through again.

A position counts rows, so the rows must come in the same order each time: of a Ray Data dataset that is so where it
preserves order (`ray.data.DataContext.get_current().execution_options.preserve_order = True`), of a function where it
draws nothing at random.
"""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from streamcl.errors import SourceError
from streamcl.stream.base import Source
from streamcl.stream.deadletter import refuse, shown
from streamcl.stream.door import Door
from streamcl.stream.formats import Row, shorter
from streamcl.stream.limits import Limits
from streamcl.stream.reader import DoorReader
from streamcl.stream.shapes import check_columns
from streamcl.stream.tables import ROWS, Block, checked_columns

PARTITION = "rows"


@dataclass(frozen=True)
class Iterable(Source):
    """Any rows as a source: dicts with the fields of a record, images as bytes, base64 text or PIL images."""

    rows: Any
    """A list, a Hugging Face or Ray Data dataset, an iterable, or a function that gives one. Not an iterator."""
    limits: Limits = field(default_factory=Limits)
    columns: dict[str, str] = field(default_factory=dict)
    """Our names of a row's fields, and the dataset's own."""
    name: str = "dataset"
    """Goes into each sample's `source`."""

    def __post_init__(self) -> None:
        check_columns(self.columns)

    def partitions(self) -> list[str]:
        """The one there is."""
        return [PARTITION]

    def open(self, partition: str, position: int) -> DoorReader:
        """Reads from a row on.  Raises SourceError."""
        door = Door(self.name, self.limits, self.columns)
        return DoorReader(door, partition, position, self._pieces(position), self._unreadable)

    def _pieces(self, position: int) -> Iterator[Block | Row]:
        where = f"dataset {self.name!r}"
        if isinstance(self.rows, Iterator):
            raise SourceError(f"{where} is an iterator, which ends after one reading: give a function that makes it")
        rows = self.rows() if callable(self.rows) else self.rows
        if hasattr(rows, "with_format") and hasattr(rows, "num_rows"):
            yield from _tables(rows, position, where, self.columns)
            return
        if iter_rows := getattr(rows, "iter_rows", None):
            rows = iter_rows()  # as Ray Data has it
        passed = iter(rows)
        if (count := sum(1 for _ in itertools.islice(passed, position))) < position:
            raise shorter(where, count, position)
        for at, record in enumerate(passed, position + 1):
            if not isinstance(record, dict):
                yield Row(at, refuse("schema", f"a row is {shown(record)}; need a dict"), b"")
                continue
            yield Row(at, record, record)

    def _unreadable(self, error: Exception) -> SourceError:
        return SourceError(f"dataset {self.name!r} cannot be read ({error}). Make it readable, or start a new run")


def _tables(rows: Any, start: int, where: str, columns: dict[str, str]) -> Iterator[Block]:
    """A Hugging Face dataset's rows, which are Arrow tables within."""
    if rows.num_rows < start:
        raise shorter(where, rows.num_rows, start)
    arrow = rows.with_format("arrow")
    for at in range(start, rows.num_rows, ROWS):
        table = arrow[at : at + ROWS]
        table = table.select(checked_columns(table.schema, where, columns)).combine_chunks()
        yield from (Block(at, batch) for batch in table.to_batches())


@dataclass(frozen=True)
class Dataset(Source):
    """A Hugging Face dataset, or what a function of yours gives."""

    path: str
    """A folder that `save_to_disk` wrote, a name on the hub (extra `streamcl[hf]`), or "module:function" of your own:
    called without arguments, it gives the rows, and the same ones each time."""
    split: str = "train"
    """Which part of a Hugging Face dataset."""
    limits: Limits = field(default_factory=Limits)
    columns: dict[str, str] = field(default_factory=dict)
    """Our names of a row's fields, and the dataset's own: {question: q, answer: a, images: picture}."""
    name: str = "dataset"
    """Goes into each sample's `source`."""

    def __post_init__(self) -> None:
        check_columns(self.columns)

    def partitions(self) -> list[str]:
        """The one there is.  Raises SourceError."""
        return self._rows().partitions()

    def open(self, partition: str, position: int) -> DoorReader:
        """Reads from a row on.  Raises SourceError."""
        return self._rows().open(partition, position)

    def _rows(self) -> Iterable:
        return Iterable(self._loaded(), self.limits, self.columns, self.name)

    def _loaded(self) -> Any:
        module, colon, function = self.path.partition(":")
        try:
            if colon and "/" not in self.path:
                return getattr(importlib.import_module(module), function)
            return _hugging_face(self.path, self.split)
        except ImportError as error:
            raise SourceError(f"dataset {self.path!r} needs {error.name}: pip install 'streamcl[hf]'") from error
        except (OSError, AttributeError, ValueError, LookupError) as error:
            raise SourceError(
                f"dataset {self.path!r} cannot be loaded ({error}). Name a folder that save_to_disk wrote, "
                "a data set on the hub, or module:function"
            ) from error


def _hugging_face(path: str, split: str) -> Any:
    import datasets

    if not os.path.isdir(path):
        return datasets.load_dataset(path, split=split)
    found = datasets.load_from_disk(path)
    return found[split] if isinstance(found, datasets.DatasetDict) else found
