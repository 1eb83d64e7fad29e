"""Where samples come from: sources, the door that refuses bad samples, and what becomes of those.

    source = Files("data/")
    merged = Merged(source, positions={})
    while (polled := merged.poll(256)) is not None:
        ...

`polled.batch` holds the accepted rows, `polled.dead` the others with their reasons.
"""

from __future__ import annotations

from streamcl.stream.base import Merged, Polled, Reader, Source
from streamcl.stream.dataset import Dataset, Iterable
from streamcl.stream.deadletter import REASONS, from_jsonl, to_jsonl
from streamcl.stream.decode import Limits, decode
from streamcl.stream.files import Files
from streamcl.stream.kafka import Kafka
from streamcl.stream.push import Push

KINDS = {"dataset": Dataset, "files": Files, "kafka": Kafka, "push": Push}
"""What `source.kind` in YAML may say."""

__all__ = [
    "KINDS",
    "REASONS",
    "Dataset",
    "Files",
    "Iterable",
    "Kafka",
    "Limits",
    "Merged",
    "Polled",
    "Push",
    "Reader",
    "Source",
    "decode",
    "from_jsonl",
    "to_jsonl",
]
