"""The words of streamcl as values: samples and their Arrow form, windows, versions.

Everything here is frozen. Samples travel between processes as Arrow batches of `SAMPLE_SCHEMA`; the dataclass is the
one-row view of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from streamcl.errors import BadName

PART = pa.struct([("type", pa.string()), ("text", pa.string())])
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.list_(PART))])
SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("messages", pa.list_(MESSAGE), nullable=False),
        pa.field("images", pa.list_(pa.binary()), nullable=False),
        pa.field("task", pa.string()),
        pa.field("time", pa.float64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("partition", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
    ]
)
"""One row a sample. `time`: event time, Unix seconds. `position`: where reading of `partition` resumes *after* it."""

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def checked_name(name: str) -> str:
    """`name`, if it may be used as a task, model or alias name.  Raises BadName."""
    if not NAME.fullmatch(name) or ".." in name:
        raise BadName(f"name {name!r}: use 1 to 63 of a-z 0-9 . _ -, starting with a letter or digit, without '..'")
    return name


@dataclass(frozen=True)
class Part:
    """One piece of a message: `text`, or a placeholder for the next of the sample's images."""

    type: str
    """"text" or "image"."""
    text: str = ""


@dataclass(frozen=True)
class Message:
    role: str
    """"system", "user" or "assistant"."""
    content: tuple[Part, ...]

    @property
    def text(self) -> str:
        return " ".join(part.text for part in self.content if part.type == "text")


@dataclass(frozen=True)
class Sample:
    """One instruction example. The last message is the assistant's: the answer to learn."""

    id: str
    messages: tuple[Message, ...]
    images: tuple[bytes, ...]
    task: str | None = None
    time: float = 0.0
    source: str = ""
    partition: str = ""
    position: int = 0

    @property
    def answer(self) -> str:
        return self.messages[-1].text

    def row(self) -> dict[str, Any]:
        """The sample as a row of SAMPLE_SCHEMA."""
        messages = [
            {"role": m.role, "content": [{"type": p.type, "text": p.text} for p in m.content]} for m in self.messages
        ]
        fields = {name: getattr(self, name) for name in SAMPLE_SCHEMA.names}
        return fields | {"messages": messages, "images": list(self.images)}

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Sample:
        """A row of SAMPLE_SCHEMA as a sample."""
        messages = tuple(
            Message(m["role"], tuple(Part(p["type"], p["text"] or "") for p in m["content"])) for m in row["messages"]
        )
        fields = {name: row[name] for name in SAMPLE_SCHEMA.names}
        return Sample(**(fields | {"messages": messages, "images": tuple(row["images"])}))


def to_batch(samples: Sequence[Sample]) -> pa.RecordBatch:
    """Samples as one Arrow batch of SAMPLE_SCHEMA."""
    return pa.RecordBatch.from_pylist([sample.row() for sample in samples], schema=SAMPLE_SCHEMA)


def from_batch(batch: pa.RecordBatch | pa.Table) -> list[Sample]:
    """The rows of an Arrow batch (or table) as samples; columns beyond SAMPLE_SCHEMA are left out."""
    return [Sample.from_row(row) for row in batch.select(SAMPLE_SCHEMA.names).to_pylist()]


@dataclass(frozen=True)
class DeadLetter:
    """A sample that could not be taken in, and why."""

    reason: str
    """A word from `stream/deadletter.py`'s list, then details: "image: truncated PNG"."""
    id: str
    source: str
    partition: str
    position: int
    payload: str = ""
    """The first 2,000 characters of the raw record, for whoever repairs it."""


@dataclass(frozen=True)
class Rows:
    """Rows of one Arrow file in the run's store: how samples are named without being moved."""

    key: str
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @staticmethod
    def from_json(values: Sequence[Mapping[str, Any]]) -> tuple[Rows, ...]:
        """The parts whose `dataclasses.asdict` went through JSON."""
        return tuple(Rows(part["key"], tuple(part["rows"])) for part in values)


Ref = Mapping[str, str]
"""An object in the run's store: its `key` and the `sha256` of its content."""
Refs = tuple[Ref, ...]


@dataclass(frozen=True)
class Window:
    """The frozen input of one training job. Two jobs with equal windows give equal adapters."""

    id: int
    task: str
    samples: tuple[Rows, ...]
    replay: tuple[Rows, ...]
    seed: int
    base: int
    """The version whose adapter training starts from; 0 is the bare base model."""
    index: int
    """How many tasks were finished before this one: 0 for the first task."""
    closes_task: bool
    """Consolidate the task when this window has been trained."""
    memory: Refs | None = None
    """The task memory that earlier tasks left, one object a shard; None before the first."""
    again: tuple[Rows, ...] = ()
    """Rows of the task's last window, if its version was not made live: they are trained on once more."""
    known: tuple[str, ...] = ()
    """Tasks met so far, this one included, in order of first sight."""
    heldout: Mapping[str, tuple[Rows, ...]] = field(default_factory=dict)
    """For each known task, rows that no window trains on: what scores are taken on."""

    @property
    def size(self) -> int:
        """Samples that it is the first window to train on."""
        return sum(map(len, self.samples))

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Window:
        """The window whose `dataclasses.asdict` went through JSON."""
        heldout = {task: Rows.from_json(rows) for task, rows in values["heldout"].items()}
        samples, replay, again = (Rows.from_json(values.get(name, ())) for name in ("samples", "replay", "again"))
        known, memory = tuple(values["known"]), values["memory"] and tuple(values["memory"])
        rows = {"samples": samples, "replay": replay, "again": again, "heldout": heldout}
        return Window(**{**values, **rows, "known": known, "memory": memory})


@dataclass(frozen=True)
class Version:
    """An immutable, content-addressed adapter and where it came from."""

    number: int
    digest: str
    """sha256 over the version directory's files, hex."""
    path: str
    """Key of the version directory under the run's store."""
    window: int
    task: str
    base_digest: str
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """What answers, and what a window that starts from it needs."""

    number: int = 0
    """The version; 0 is the bare base model."""
    memory: Refs | None = None
    """The task memory after it."""
    learned: tuple[str, ...] = ()
    """The tasks that it and those it came from were trained on."""

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Standing:
        """The standing whose `dataclasses.asdict` went through JSON."""
        memory, learned = values["memory"], tuple(values["learned"])
        return Standing(values["number"], memory and tuple(memory), learned)
