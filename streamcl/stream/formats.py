"""The raw rows of one text file, from any row on, without loading the file: JSON Lines, or one JSON array."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from streamcl.errors import BadSample, SourceError
from streamcl.stream.deadletter import refuse
from streamcl.stream.limits import Limits

BLOCK_BYTES = 2**20
OUTSIDE = re.compile(rb'["\[\]{},]')
"""What matters between the strings of a JSON text."""
INSIDE = re.compile(rb'["\\]')
"""What matters inside one."""


@dataclass(frozen=True)
class Row:
    """One raw row."""

    position: int
    """Rows of the file up to and including this one: where reading resumes after it."""
    record: Mapping[str, Any] | BadSample
    """What is to be decoded, or why there is nothing."""
    raw: bytes | Mapping[str, Any]
    """The row as it came, for a dead letter."""


def numbered(pieces: Iterator[bytes | None], start: int, where: str) -> Iterator[tuple[int, bytes | BadSample | None]]:
    """The pieces after the first `start`, each with its position; None, which has none, is nothing now.

    A piece that cannot be had (BadSample) is the last: what follows it cannot be had either.  Raises SourceError.
    """
    position = 0
    while position < start:
        try:
            if next(pieces, None) is None:
                raise shorter(where, position, start)
        except BadSample:
            if position + 1 < start:
                raise shorter(where, position, start) from None
            return
        position += 1
    while True:
        try:
            piece = next(pieces)
        except StopIteration:
            return
        except BadSample as error:
            yield position + 1, error
            return
        position += piece is not None
        yield position, piece


def shorter(where: str, rows: int, position: int) -> SourceError:
    return SourceError(
        f"{where} changed under a committed position: it has {rows} rows, and {position} have been read. "
        "Files may be added, not cut or replaced: restore it, or start a new run"
    )


def text_rows(file: Any, start: int, where: str, limits: Limits, *, grows: bool = False) -> Iterator[Row | None]:
    """The lines after the first `start`. Those are read over, not parsed. Blank lines count, and give no row.

    `grows`: a last line without its end is not there yet, and None is given where there is nothing now.
    """
    buffered = io.BufferedReader(file, BLOCK_BYTES)
    lines = _growing(buffered, limits.record_bytes) if grows else _lines(buffered, limits.record_bytes)
    return _rows(lines, start, where, limits)


def json_rows(file: Any, start: int, where: str, limits: Limits) -> Iterator[Row | None]:
    """The elements of one JSON array after the first `start`; or lines, if the text does not begin with "["."""
    buffered = io.BufferedReader(file, BLOCK_BYTES)
    if buffered.peek(64)[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        return _rows(elements(buffered, limits.record_bytes), start, where, limits)
    return _rows(_lines(buffered, limits.record_bytes), start, where, limits)


def _rows(pieces: Iterator[bytes | None], start: int, where: str, limits: Limits) -> Iterator[Row | None]:
    for position, piece in numbered(pieces, start, where):
        if piece is None:
            yield None
        elif isinstance(piece, BadSample):
            yield Row(position, piece, b"")
        elif piece.strip():
            yield Row(position, parsed(piece, limits), piece.strip(b"\r\n"))


def _lines(file: BinaryIO, limit: int) -> Iterator[bytes]:
    """Each line, at most `limit` + 1 bytes of it."""
    while line := file.readline(limit + 1):
        yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(BLOCK_BYTES)


def _growing(file: BinaryIO, limit: int) -> Iterator[bytes | None]:
    """Each line that is there to its end, at most `limit` + 1 bytes of it; None while there is none."""
    line = bytearray()
    while True:
        part = file.readline(BLOCK_BYTES)
        line += part[: limit + 1 - len(line)]
        if part.endswith(b"\n"):
            yield bytes(line)
            line = bytearray()
        elif not part:
            yield None


def elements(file: BinaryIO, limit: int) -> Iterator[bytes]:
    """Each element of the array that the file holds, at most `limit` + 1 bytes of it.  Raises BadSample for no array.

    Elements are told apart by their brackets alone, so that a broken one does not take the next ones along.
    """
    depth, quoted, part = 0, False, bytearray()
    carried = b""  # of a backslash at a block's end
    while block := file.read(BLOCK_BYTES):
        block, carried = carried + block, b""
        at = begun = 0
        while found := (INSIDE if quoted else OUTSIDE).search(block, at):
            mark, at = found[0], found.end()
            if mark == b"\\":
                at += 1
            elif mark == b'"':
                quoted = not quoted
            elif mark == b"," and depth == 1:
                yield bytes(_kept(part, block[begun : at - 1], limit))
                part, begun = bytearray(), at
            elif mark != b",":
                depth += 1 if mark in b"[{" else -1
                if depth == 1 and mark == b"[":
                    begun = at
                if not depth:
                    yield from filter(bytes.strip, [bytes(_kept(part, block[begun : at - 1], limit))])
                    _nothing_follows(block[at:], file)
                    return
        if at > len(block):
            block, carried = block[:-1], block[-1:]
        _kept(part, block[begun:], limit)
    raise refuse("schema", "the file ends within its JSON array; what follows the last whole element is lost")


def _kept(part: bytearray, more: bytes, limit: int) -> bytearray:
    part += more[: limit + 1 - len(part)]
    return part


def _nothing_follows(rest: bytes, file: BinaryIO) -> None:
    if rest.strip() or file.read(BLOCK_BYTES).strip():
        raise refuse("schema", "something follows the JSON array; need one array, or one object a line")


def parsed(line: bytes, limits: Limits) -> Mapping[str, Any] | BadSample:
    """The JSON object in `line`, or why there is none."""
    if len(line) > limits.record_bytes:
        return refuse("too_large", f"a record of more than {limits.record_bytes} bytes")
    if (values := sum(map(line.count, (b",", b"[", b"{")))) > limits.record_values:
        return refuse("too_large", f"{values} commas and brackets; at most {limits.record_values} are allowed")
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return refuse("utf8", f"{error.reason} at byte {error.start}")
    except ValueError as error:
        return refuse("schema", f"not JSON, one object a line or an array of objects: {error}")
    except RecursionError:
        return refuse("schema", "JSON nested too deeply")
    if not isinstance(record, dict):
        return refuse("schema", f"a JSON {type(record).__name__}; need one object a line")
    return record
