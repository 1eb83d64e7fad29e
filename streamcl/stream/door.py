"""What every source does with a raw record: its shape, its images, the door, and a dead letter if it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from streamcl.errors import BadSample
from streamcl.stream.deadletter import payload
from streamcl.stream.decode import decode
from streamcl.stream.folder import Folder
from streamcl.stream.formats import Row
from streamcl.stream.images import Prove
from streamcl.stream.isolate import CHILD
from streamcl.stream.limits import Limits
from streamcl.stream.shapes import canonical
from streamcl.types import DeadLetter, Sample


@dataclass(frozen=True)
class Door:
    """Takes in the records of one source."""

    source: str
    """Goes into each sample's `source`."""
    limits: Limits = field(default_factory=Limits)
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our names of a record's fields, and the source's."""
    folder: Folder | None = None
    """Where records may name images; None: they hold them."""
    prove: Prove = CHILD.prove
    """Decodes each image once, where it can do no harm."""

    def take(self, row: Row, partition: str) -> Sample | DeadLetter:
        """A raw record as a sample, or why it is none."""
        try:
            if isinstance(row.record, BadSample):
                raise row.record
            record = canonical(row.record, self.columns) if isinstance(row.record, Mapping) else row.record
            sample = decode(self._with_images(record), self.limits, prove=self.prove)
        except BadSample as error:
            name = self._name(row.record)
            return DeadLetter(str(error), name, self.source, partition, row.position, payload(row.raw))
        return replace(sample, source=self.source, partition=partition, position=row.position)

    def _with_images(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """The record with the bytes of those images that it names by key.  Raises BadSample, or OSError."""
        images = record.get("images")
        if self.folder is None or not isinstance(images, list) or len(images) > self.limits.images:
            return record  # which is refused, so nothing is fetched
        limit = self.limits.image_bytes
        return {**record, "images": [self.folder.image(i, limit) if isinstance(i, Mapping) else i for i in images]}

    def _name(self, record: Mapping[str, Any] | BadSample) -> str:
        """The id that a refused record gives itself, as far as it is one."""
        name = record.get(self.columns.get("id", "id")) if isinstance(record, Mapping) else None
        return name[:256].encode("ascii", "backslashreplace").decode() if isinstance(name, str) else ""
