"""Compressed files as they are read: in bounded memory, and no further than a bomb shows that it is one."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa

from streamcl.stream.deadletter import refuse

CODECS = {".gz": "gzip", ".zst": "zstd"}
RATIO = 200
"""How many times its size a file may inflate to. Text with little in it reaches 30, a bomb 1,000 and more."""
FREE_BYTES = 16 * 2**20
"""What any file may inflate to, however small it is."""


class _Counted(io.RawIOBase):
    """A file, and how much of it was read.  Mutates."""

    def __init__(self, file: Any) -> None:
        self.file, self.size = file, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = bytes(self.file.read(size))
        self.size += len(data)
        return data

    def close(self) -> None:
        self.file.close()
        super().close()


class Inflated(io.RawIOBase):
    """The content of a gzip or zstd file, also of several one after the other.

    Reading raises BadSample from where the content is more than RATIO times what was read of the file.
    """

    def __init__(self, file: Any, codec: str) -> None:
        self._file = _Counted(file)
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._file, "r"), codec)
        self._size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._size += len(data)
        if self._size > FREE_BYTES and self._size > RATIO * self._file.size:
            raise refuse(
                "too_large", f"the file inflates to more than {RATIO} times its size; what follows is not read"
            )
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
