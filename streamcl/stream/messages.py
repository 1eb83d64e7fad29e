"""What a message's bytes are (a JSON record, an Arrow record, or an image) shows in the first of them.

An image is the value as it is; its message's headers say the rest, as UTF-8: `answer`, and if wanted `instruction`,
`id`, `task`, `time` (Unix seconds). The other two hold one record each, in any shape that the door knows.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from streamcl.errors import BadSample
from streamcl.stream.deadletter import refuse
from streamcl.stream.formats import parsed
from streamcl.stream.limits import Limits

ARROW = b"\xff\xff\xff\xff"
IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")
HEADERS = ("id", "instruction", "answer", "task", "time")
MESSAGES_READ = 8
"""Arrow messages looked at in one value: a schema, a batch, and nothing else is wanted."""


def record_of(value: bytes, headers: Mapping[str, bytes], limits: Limits) -> Mapping[str, Any]:
    """The raw record in a message, to be decoded.  Raises BadSample."""
    if len(value) > limits.record_bytes:
        raise refuse("too_large", f"a message of {len(value)} bytes; at most {limits.record_bytes} are allowed")
    if is_image(value):
        return _of_image(value, headers)
    record = _of_arrow(value) if value.startswith(ARROW) else parsed(value, limits)
    if isinstance(record, BadSample):
        raise record
    return record


def is_image(value: bytes) -> bool:
    return value.startswith(IMAGES)


def _of_image(value: bytes, headers: Mapping[str, bytes]) -> dict[str, Any]:
    said: dict[str, Any] = {name: headers[name] for name in HEADERS if name in headers}
    if "time" in said:
        try:
            said["time"] = float(said["time"])
        except ValueError:
            raise refuse("time", "header time is not a number; need Unix seconds") from None
    parts: list[dict[str, Any]] = [{"type": "image"}]
    if "instruction" in said:
        parts.append({"type": "text", "text": said.pop("instruction")})
    talk = [{"role": "user", "content": parts}, {"role": "assistant", "content": said.pop("answer", b"")}]
    return {**said, "messages": talk, "images": [value]}


def _of_arrow(value: bytes) -> Mapping[str, Any]:
    """The one row of an Arrow IPC stream. Everything that could cost more memory than the value has is refused."""
    if b"ARROW:extension" in value:
        raise refuse("schema", "Arrow extension types can run code when read; need plain columns")
    try:
        batch = _only_batch(value)
        if batch.num_rows != 1:
            raise refuse("schema", f"{batch.num_rows} rows in an Arrow message; need one sample a message")
        batch.validate(full=True)
        record: Mapping[str, Any] = batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        raise refuse("utf8", f"a text is not UTF-8: {error.reason} at byte {error.start}") from error
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        if isinstance(error, BadSample):
            raise
        raise refuse("schema", f"not an Arrow IPC stream: {type(error).__name__}") from error
    return record


def _only_batch(value: bytes) -> pa.RecordBatch:
    reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(value))
    messages: list[pa.Message] = []
    while len(messages) < MESSAGES_READ:
        try:
            messages.append(reader.read_next_message())
        except StopIteration:
            break
    kinds = [message.type for message in messages]
    if kinds != ["schema", "record batch"]:
        raise refuse("schema", f"an Arrow stream of {', '.join(kinds)}; need a schema and one batch, no dictionaries")
    schema = pa.ipc.read_schema(messages[0])
    for field in schema:
        if not (pa.types.is_null(field.type) or _bounded(field.type)):
            raise refuse("schema", f"column of Arrow's {str(field.type)[:60]}; need texts, bytes, numbers, lists")
    if _compressed(messages[1].metadata.to_pybytes()):
        raise refuse("schema", "a compressed Arrow batch; let the producer compress instead (compression.type)")
    return pa.ipc.read_record_batch(messages[1], schema)


def _bounded(kind: pa.DataType) -> bool:
    """Whether every value of this type has bytes of its own: no nulls, dictionaries or views that stand for many."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _bounded(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_bounded(kind.field(i).type) for i in range(kind.num_fields))
    tests = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary,
        pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _compressed(metadata: bytes) -> bool:
    """Whether a record batch's flatbuffer has the field `compression`: the fourth of the table behind the third."""
    message = struct.unpack_from("<I", metadata, 0)[0]
    header = _field(metadata, message, 2)
    if not header:
        raise refuse("schema", "an Arrow message without a header")
    return bool(_field(metadata, header + struct.unpack_from("<I", metadata, header)[0], 3))


def _field(metadata: bytes, table: int, index: int) -> int:
    """Where a flatbuffer table's field lies; 0 if the table does not have it."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if vtable < 0 or 4 + 2 * index >= struct.unpack_from("<H", metadata, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", metadata, vtable + 4 + 2 * index)[0]
    return table + int(offset) if offset else 0
