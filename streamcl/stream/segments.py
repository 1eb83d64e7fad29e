"""What lies in a write-ahead log, for its readers: shards of numbered segments, in a folder or a bucket.

wal/<shard>/<number>.seg
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec

from streamcl.errors import SourceError
from streamcl.stream.frames import place

FOLDER = "wal"
"""Of the run's store."""
_NAME = re.compile(r"(?:.*/)?(\d+)/(\d{10})\.seg")


def segment_name(number: int) -> str:
    return f"{number:010d}.seg"


def spent(key: str, positions: Mapping[str, int]) -> bool:
    """Whether `key` of a store is a segment that lies wholly before these positions, and which no reader needs."""
    found = _NAME.fullmatch(key)
    return found is not None and int(found[2]) < place(positions.get(found[1], 0))[0]


@dataclass(frozen=True)
class Segments:
    """The log at an fsspec URL. It need not be there yet. Every method may raise SourceError."""

    url: str

    def shards(self) -> list[str]:
        """Names of the shards that hold a segment, sorted."""
        return [shard for shard in sorted(self._names("")) if shard.isdigit() and self.sizes(shard)]

    def sizes(self, shard: str) -> dict[int, int]:
        """The bytes of each segment by its number, ascending."""
        found = {_NAME.fullmatch(f"{shard}/{name}"): size for name, size in self._names(shard).items()}
        return dict(sorted((int(match[2]), size) for match, size in found.items() if match))

    def exists(self, shard: str, number: int) -> bool:
        fs, root = self._resolved()
        try:
            return bool(fs.exists(f"{root}/{shard}/{segment_name(number)}"))
        except OSError as error:
            raise self._unreadable(error) from error

    def read(self, shard: str, number: int, start: int) -> bytes:
        """The bytes of a segment from `start` on."""
        fs, root = self._resolved()
        try:
            return bytes(fs.cat_file(f"{root}/{shard}/{segment_name(number)}", start=start))
        except OSError as error:
            raise self._unreadable(error) from error

    def _names(self, folder: str) -> dict[str, int]:
        """What lies in a folder of the log, with sizes."""
        fs, root = self._resolved()
        try:
            fs.invalidate_cache()
            found = fs.ls(f"{root}/{folder}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._unreadable(error) from error
        return {entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] or 0 for entry in found}

    def _resolved(self) -> tuple[Any, str]:
        try:
            fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (OSError, ValueError, ImportError) as error:
            raise self._unreadable(error) from error
        return fs, root.rstrip("/")

    def _unreadable(self, error: Exception) -> SourceError:
        return SourceError(f"{self.url} cannot be read ({error}). Check path, rights and network, or restore the file")
