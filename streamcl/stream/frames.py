"""A segment of the write-ahead log as bytes: a head, then frames that tell whether they are whole.

    MAGIC | SYNC length crc payload | SYNC length crc payload | ... | END

The check sum covers the length and the payload. END, a frame without payload, is what a writer leaves last if it can:
before it nothing may be broken. What a dying writer left half-written lies behind the last whole frame.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

MAGIC = b"streamcl wal 1\n\0"
SYNC = b"\xf5WA\xaf"
"""Not UTF-8, so no payload that is JSON holds it."""
_HEAD = struct.Struct("<4sII")
_OFFSET_BITS = 32


@dataclass(frozen=True)
class Frame:
    """A whole frame; `start` and `stop` are where it lies in the bytes that were searched."""

    start: int
    stop: int
    payload: bytes


def framed(payload: bytes) -> bytes:
    """The frame of a payload of less than 4 GiB."""
    return _HEAD.pack(SYNC, len(payload), _sum(len(payload), payload)) + payload


def frame_at(data: bytes, at: int) -> Frame | None:
    """The frame that begins at `at`; None if it is broken or not all there."""
    if at + _HEAD.size > len(data):
        return None
    sync, length, found = _HEAD.unpack_from(data, at)
    start, stop = at + _HEAD.size, at + _HEAD.size + length
    if sync != SYNC or stop > len(data):
        return None
    payload = data[start:stop]
    return Frame(at, stop, payload) if _sum(length, payload) == found else None


def frame_after(data: bytes, at: int) -> Frame | None:
    """The first whole frame that begins behind `at`, or None: how reading goes on after damage."""
    while (at := data.find(SYNC, at + 1)) >= 0:
        if frame := frame_at(data, at):
            return frame
    return None


def position(segment: int, offset: int) -> int:
    """Where reading resumes: a segment, and the bytes of it that have been read. 0 is the start."""
    assert 0 <= offset < 1 << _OFFSET_BITS, offset
    return segment << _OFFSET_BITS | offset


def place(position: int) -> tuple[int, int]:
    """The segment and offset of a position."""
    return position >> _OFFSET_BITS, position & (1 << _OFFSET_BITS) - 1


def _sum(length: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(length.to_bytes(4, "little")))


END = framed(b"")
