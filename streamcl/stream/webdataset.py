"""WebDataset tar files: members with one key, such as 000017.jpg, 000017.json, are one sample.

A json member is a record of any shape that is read elsewhere; a txt member is the caption of the picture. The pictures
(jpg, jpeg, png, webp) are the sample's images, in the order in which they lie in the tar; a record that names images is
not asked for them.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

from streamcl.errors import BadSample, SourceError
from streamcl.stream.deadletter import refuse, shown
from streamcl.stream.formats import BLOCK_BYTES, Row, parsed, shorter
from streamcl.stream.limits import Limits

BLOCK = 512
PICTURES = ("jpg", "jpeg", "png", "webp")
CAPTION = "Describe the picture."
"""The instruction that a caption answers."""
NAME_BYTES = 2**16
"""The longest name that an extended header may give."""
Members = dict[str, bytes]


def tar_rows(file: Any, start: int, where: str, limits: Limits) -> Iterator[Row]:
    """The samples after the first `start`; the members of those are passed over."""
    position = 0
    for position, key, members in _samples(file, start, where, limits):
        if position > start:
            yield Row(position, _record(members, limits), {"key": key, "members": ", ".join(members)})
    if position < start:
        raise shorter(where, position, start)


def _samples(file: Any, start: int, where: str, limits: Limits) -> Iterator[tuple[int, str, Members]]:
    """Position, key and members of each sample; members are empty up to `start`."""
    position, key, members = 0, None, Members()
    for name, size in _headers(file, where):
        stem, _, suffix = name.rpartition("/")[2].partition(".")
        place = (name.rpartition("/")[0], stem)
        if place != key:
            if key is not None:
                yield position, "/".join(filter(None, key)), members
            position, key, members = position + 1, place, {}
        wanted = suffix.lower() if position > start else ""
        if wanted.rpartition(".")[2] in (*PICTURES, "json", "txt") and len(members) < limits.images + 2:
            most = limits.image_bytes if wanted.rpartition(".")[2] in PICTURES else limits.record_bytes
            members[wanted] = _read(file, min(size, most + 1), where)
            size -= len(members[wanted])
        _pass(file, size, where)
    if key is not None:
        yield position, "/".join(filter(None, key)), members


def _record(members: Members, limits: Limits) -> Mapping[str, Any] | BadSample:
    images = [data for suffix, data in members.items() if suffix.rpartition(".")[2] in PICTURES]
    if "json" in members:
        record = parsed(members["json"], limits)
        if isinstance(record, BadSample) or not images:
            return record
        return {**{name: value for name, value in record.items() if name != "image"}, "images": images}
    if "txt" in members:
        return {"question": CAPTION, "answer": members["txt"].strip(), "images": images}
    return refuse(
        "schema", f"members {shown(', '.join(members) or 'of other kinds')}; need a json or txt beside pictures"
    )


def _headers(file: Any, where: str) -> Iterator[tuple[str, int]]:
    """Name and size of each file; whoever iterates reads or passes over its content and padding (`_pass`)."""
    long = ""
    while block := file.read(BLOCK):
        if not block.strip(b"\0"):
            return  # the end mark
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _cut(where) from error
        if info.size < 0:
            raise _cut(where)
        padded = -(-info.size // BLOCK) * BLOCK
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            if info.size > NAME_BYTES:
                raise SourceError(
                    f"{where} has a header of {info.size} bytes; at most {NAME_BYTES} are read. Write it anew"
                )
            long = _long(_read(file, padded, where)[: info.size], info.type) or long
        elif info.isfile():
            yield long or info.name, info.size
            long = ""
            _pass(file, padded - info.size, where)
        else:
            long = long if info.type == tarfile.GNUTYPE_LONGLINK else ""
            _pass(file, padded, where)


def _long(content: bytes, kind: bytes) -> str:
    """The name in an extended header, if it gives one."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return content.rstrip(b"\0").decode(errors="surrogateescape")
    for record in content.split(b"\n"):  # a value with a line feed only spoils its own name
        if b" path=" in record:
            return record.partition(b" path=")[2].decode(errors="surrogateescape")
    return ""


def _read(file: Any, size: int, where: str) -> bytes:
    parts = []
    while size:
        part = file.read(min(size, BLOCK_BYTES))
        if not part:
            raise _cut(where)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _pass(file: Any, size: int, where: str) -> None:
    """Goes on behind the next `size` bytes."""
    if size and file.seekable():
        file.seek(size, 1)
        return
    while size:
        part = file.read(min(size, BLOCK_BYTES))
        if not part:
            raise _cut(where)
        size -= len(part)


def _cut(where: str) -> SourceError:
    return SourceError(f"{where} is not a tar file, or is cut short; write it anew")
