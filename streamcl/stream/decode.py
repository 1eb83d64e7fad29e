"""The door: a raw record becomes a Sample, or BadSample says why not.

A raw record is what JSON or Parquet give, and untrusted:

    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
                  {"role": "assistant", "content": "a fox"}],
     "images": [<bytes, or base64 text>],     as many as there are image parts, in their order
     "id": "fox-1", "task": "animals", "time": 1700000000.0, "schema": 1}                   each may be absent

A string as `content` is one text part. Roles: at most one system message, first; then user and assistant in turn, since
chat templates refuse anything else; the assistant's text comes last. An absent `id` becomes a hash of messages and
images, so that a repeated delivery is recognised. Fields that are not named here are ignored.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from streamcl.errors import BadName
from streamcl.stream.deadletter import refuse, shown
from streamcl.stream.images import Prove, checked_image, prove
from streamcl.stream.limits import Limits
from streamcl.types import Message, Part, Sample, checked_name

__all__ = ["SCHEMA", "Limits", "decode", "escaped"]

SCHEMA = 1
"""The newest record schema that this version reads."""
ID_CHARS = 256
PARTS = 64
"""Parts in a message, at most."""
LAST_TIME = 253_402_300_800
"""The end of the year 9999, Unix seconds: beyond lie milliseconds taken for seconds."""

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
SPECIAL = re.compile(
    r"<(?=\|)|<(/?(?:image|img|video|audio|image_soft_token|img_context|start_of_(?:image|turn)|end_of_(?:image|turn)"
    r"|s|bos|eos|pad|unk|mask))>",
    re.IGNORECASE,
)
"""Texts that common tokenizers and processors take for a command. A model's other ones are its tokenizer's business."""


def decode(raw: Mapping[str, Any], limits: Limits, *, prove: Prove = prove) -> Sample:
    """The sample in a raw record; its source, partition and position are still to be set.  Raises BadSample only.

    `prove` decodes an image: here, or (`isolate.Isolated`) where it can do no harm.
    """
    if not isinstance(raw, Mapping):
        raise refuse("schema", f"got {shown(raw)}; need an object with 'messages'")
    _check_schema(raw.get("schema"))
    time, task = _time(raw.get("time")), _task(raw.get("task"))
    messages = _messages(raw.get("messages"), limits)
    images = _images(raw.get("images"), limits, prove)
    places = sum(part.type == "image" for message in messages for part in message.content)
    if places != len(images):
        raise refuse("image", f'{len(images)} images for {places} parts of {{"type": "image"}}; need one part an image')
    return Sample(id=_id(raw.get("id"), messages, images), messages=messages, images=images, task=task, time=time)


def escaped(text: str) -> str:
    """`text` without what a tokenizer or processor would obey: `<image>` becomes `‹image›`, `<|` becomes `‹|`."""
    return SPECIAL.sub(lambda match: f"‹{match[1]}›" if match[1] else "‹", text)


def _check_schema(value: object) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise refuse("schema", f"schema is {shown(value)}; need a whole number from 1 to {SCHEMA}")
    if value > SCHEMA:
        raise refuse("schema", f"schema {shown(value)} is newer than {SCHEMA}, the newest read here; upgrade streamcl")


def _time(value: object) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse("time", f"got {shown(value)}; need Unix seconds as a number")
    if not -LAST_TIME <= value <= LAST_TIME:  # false for NaN, and exact for an integer that no float can hold
        raise refuse("time", f"got {shown(value)}; need finite Unix seconds (not milliseconds), before the year 10000")
    return float(value)


def _task(value: object) -> str | None:
    if value is None:
        return None
    task = _string(value, "schema", "task")
    if len(task) > ID_CHARS:
        raise refuse("schema", f"task of {len(task)} characters; need at most 63")
    try:
        return checked_name(task)
    except BadName as error:
        raise refuse("schema", f"task {error}") from error


def _id(value: object, messages: tuple[Message, ...], images: tuple[bytes, ...]) -> str:
    if value is None:
        texts = [[m.role, [[part.type, part.text] for part in m.content]] for m in messages]
        content = json.dumps([texts, [hashlib.sha256(image).hexdigest() for image in images]])
        return hashlib.sha256(content.encode()).hexdigest()[:32]
    name = _string(value, "id", "id")
    if not 1 <= len(name) <= ID_CHARS or CONTROL.search(name):
        raise refuse("id", f"{shown(name)}; need 1 to {ID_CHARS} characters, none of them a control character")
    return name


def _messages(value: object, limits: Limits) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise refuse("schema", f"messages is {shown(value)}; need a list of objects with role and content, not empty")
    if len(value) > limits.messages:
        raise refuse("too_large", f"{len(value)} messages; at most {limits.messages} are allowed")
    messages = tuple(_message(message, f"message {i}", limits) for i, message in enumerate(value))
    if (chars := sum(len(part.text) for m in messages for part in m.content)) > limits.text_chars:
        raise refuse("too_large", f"{chars} characters of text; at most {limits.text_chars} are allowed")
    if messages[-1].role != "assistant":
        raise refuse("answer", f"the last message is the {messages[-1].role}'s; need the assistant's answer")
    if not messages[-1].text.strip() or any(part.type != "text" for part in messages[-1].content):
        raise refuse("answer", "the assistant's last message is empty or holds an image; need a text")
    turns = [m.role for m in messages[messages[0].role == "system" :]]
    if turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        raise refuse("text", f"roles are {shown(', '.join(turns))}; need user and assistant in turn, one system first")
    return messages


def _message(value: object, where: str, limits: Limits) -> Message:
    if not isinstance(value, Mapping):
        raise refuse("schema", f"{where} is {shown(value)}; need an object with role and content")
    role, content = value.get("role"), value.get("content")
    if role not in ("system", "user", "assistant"):
        raise refuse("text", f"{where} has role {shown(role)}; need system, user or assistant")
    if isinstance(content, str | bytes):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        raise refuse("schema", f"{where} has content {shown(content)}; need a text or a list of parts")
    if len(content) > PARTS:
        raise refuse("too_large", f"{where} has {len(content)} parts; at most {PARTS} are allowed")
    return Message(role, tuple(_part(part, where, limits) for part in content))


def _part(value: object, where: str, limits: Limits) -> Part:
    if not isinstance(value, Mapping):
        raise refuse("schema", f"{where} has part {shown(value)}; need an object with type")
    if value.get("type") == "image":
        return Part("image")
    if value.get("type") != "text":
        raise refuse("text", f"{where} has a part of type {shown(value.get('type'))}; need text or image")
    text = value.get("text")
    if isinstance(text, str | bytes) and len(text) > 4 * limits.text_chars:  # 4: bytes of the longest UTF-8 character
        raise refuse("too_large", f"{where} has a text of length {len(text)}; at most {limits.text_chars} are allowed")
    return Part("text", escaped(_string(text, "text", f"{where}'s text")))


def _string(value: object, reason: str, what: str) -> str:
    """`value` as Unicode text without lone surrogates, which JSON can spell and Arrow cannot hold."""
    try:
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, str):
            value.encode()
            return value
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise refuse("utf8", f"{what}: {error.reason} at {error.start}") from error
    raise refuse(reason, f"{what} is {shown(value)}; need a text")


def _images(value: object, limits: Limits, prove: Prove) -> tuple[bytes, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise refuse("schema", f"images is {shown(value)}; need a list")
    if len(value) > limits.images:
        raise refuse("too_large", f"{len(value)} images; at most {limits.images} are allowed")
    return tuple(checked_image(image, f"image {i}", limits, prove) for i, image in enumerate(value))
