"""Samples that were refused: the reasons there are, and how the letters lie on disk (JSON Lines)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from streamcl.errors import BadSample, Corrupt
from streamcl.types import DeadLetter

REASONS = (
    "schema",  # not an object, a field missing or of the wrong type, a newer schema
    "id",  # not a short string of visible characters
    "text",  # roles out of order, a part that is neither text nor image
    "image",  # not a JPEG, PNG or WEBP; truncated; animated; a bad reference; more or fewer images than parts
    "answer",  # the last message is not a non-empty text of the assistant
    "too_large",  # beyond one of `Limits`
    "utf8",  # bytes or code points that are not Unicode text
    "time",  # not a finite number of Unix seconds
    "crash",  # killed the process that decodes it, each time it was tried
    "damaged",  # bytes of a write-ahead log that do not match their check sum
    "lost",  # deleted by the broker before it was read, where that is accepted
    "encode",  # refused by the model's processor, or its features hold NaN or infinity
)
"""The first word of every dead letter's reason."""

RING_BYTES = 4 * 2**20
"""How much a run keeps of its dead letters, as `to_jsonl` writes them: some thousands. The oldest give way."""
PAYLOAD_CHARS = 2_000
SHOWN_CHARS = 60


def refuse(reason: str, details: str) -> BadSample:
    """The error for a sample that is refused; `reason` is one of REASONS."""
    assert reason in REASONS, reason
    return BadSample(f"{reason}: {details}")


def shown(value: object) -> str:
    """`value` as it may stand in a reason: short, on one line, and never the whole of something huge or deep."""
    if isinstance(value, str):
        return repr(value[:SHOWN_CHARS]) + ("..." if len(value) > SHOWN_CHARS else "")
    if value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**18):
        return repr(value)
    return type(value).__name__


def payload(raw: bytes | Mapping[str, Any]) -> str:
    """The first characters of a raw record, for whoever repairs it; bytes that are not UTF-8 become `\\xff` escapes."""
    if isinstance(raw, bytes):
        return raw[:PAYLOAD_CHARS].decode(errors="backslashreplace")[:PAYLOAD_CHARS]
    return json.dumps(raw, default=_told)[:PAYLOAD_CHARS]


def _told(value: object) -> str:
    size = f", {len(value)} bytes" if isinstance(value, bytes | bytearray | memoryview) else ""
    return f"<{type(value).__name__}{size}>"


def to_jsonl(letters: Sequence[DeadLetter]) -> bytes:
    """Dead letters as JSON Lines in ASCII: whatever a payload holds, no control character reaches a terminal."""
    return b"".join(json.dumps(asdict(letter)).encode() + b"\n" for letter in letters)


def from_jsonl(data: bytes) -> list[DeadLetter]:
    """What `to_jsonl` wrote.  Raises Corrupt."""
    letters = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            letters.append(DeadLetter(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise Corrupt(f"line {number} is not a dead letter ({error}); leave the file out or restore it") from error
    return letters


def ring(kept: bytes, new: Sequence[DeadLetter], *, most: int = RING_BYTES) -> tuple[bytes, int]:
    """Kept letters and new ones as JSON Lines of at most `most` bytes, and how many of the oldest gave way."""
    lines = [*kept.splitlines(keepends=True), *to_jsonl(new).splitlines(keepends=True)]
    size, dropped = sum(map(len, lines)), 0
    while size > most:
        size -= len(lines[dropped])
        dropped += 1
    return b"".join(lines[dropped:]), dropped
