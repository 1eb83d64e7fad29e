"""A file that somebody goes on writing to, as one that can be read again and again at its end."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

from streamcl.errors import SourceError

LOOK_S = 1.0
"""How often a file that has been read to its end is asked whether it has grown."""


class Growing(io.RawIOBase):
    """Reads as far as the file goes now; at its end it is closed, and opened again once it has grown.  Mutates."""

    def __init__(self, fs: Any, path: str, where: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._fs, self._path, self._where, self._clock = fs, path, where, clock
        self._file: Any = None
        self._offset, self._next = 0, float("-inf")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Bytes read; 0 if there are none now.  Raises OSError, SourceError."""
        if self._file is None and not self._grown():
            return 0
        data = self._file.read(len(buffer))
        if not data:
            self._file.close()
            self._file = None
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    def _grown(self) -> bool:
        """Looks, at most every LOOK_S, whether there is more, and opens the file there if so."""
        if self._clock() < self._next:
            return False
        self._next = self._clock() + LOOK_S
        self._fs.invalidate_cache(self._path)
        size = self._fs.info(self._path)["size"]
        if size < self._offset:
            raise SourceError(
                f"{self._where} was cut: it has {size} bytes, and {self._offset} have been read. "
                "A file may grow, or others be added: restore it, or start a new run"
            )
        if size > self._offset:
            self._file = self._fs.open(self._path, "rb")
            self._file.seek(self._offset)
        return bool(size > self._offset)
