"""The shapes that records have elsewhere, as the one that `decode` reads.

- LLaVA's conversations: {"id", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, ...]}
- LLaVA's questions, as UCIT and CoIN test: {"question_id", "image": "a.jpg", "text": "What?", "answer": "A fox"}
- a question and its answer, or TRL's prompt and completion, as texts or as lists of messages
- TRL's messages with images; OpenAI's chat messages, whose parts hold data URLs
- any of these under other names: `columns` in YAML says which

LLaVA's ids name pictures or count within one file, so two samples may have the same: they are not taken, and a sample's
id is the hash of its content, unless `columns` names the field.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL.Image import Image

from streamcl.errors import ConfigError
from streamcl.stream.deadletter import refuse, shown

Record = Mapping[str, Any]
FOREIGN: Mapping[str, tuple[str, ...]] = {
    "schema": (),
    "id": (),
    "messages": ("conversations",),
    "question": ("text", "prompt"),
    "answer": ("completion",),
    "images": ("image",),
    "task": (),
    "time": (),
}
"""What a record may hold, and by which other names it goes where `columns` says nothing."""
TAKEN = frozenset(name for ours, theirs in FOREIGN.items() for name in (ours, *theirs))
SPEAKERS = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
PLACE = "<image>"
LONGEST_KEY = 2_000


def check_columns(columns: Mapping[str, str]) -> None:
    """Raises ConfigError for a column that no record holds."""
    if unknown := sorted({*columns} - {*FOREIGN}):
        raise ConfigError(
            f"columns: unknown {unknown[0]!r}; may be {', '.join(FOREIGN)}, each with its name in the source"
        )


def wanted(columns: Mapping[str, str]) -> set[str]:
    """The names under which something may stand that is read."""
    return {*TAKEN, *columns.values()}


def holds_samples(names: Sequence[str], columns: Mapping[str, str]) -> bool:
    """Whether records of these fields can be samples."""
    has = {ours for ours, theirs in FOREIGN.items() if {columns.get(ours, ours), *theirs} & {*names}}
    return "messages" in has or {"question", "answer"} <= has


def canonical(raw: Record, columns: Mapping[str, str]) -> Record:
    """The record in the shape that `decode` reads; what it does not understand, it leaves for `decode` to refuse.

    Raises BadSample.
    """
    record = dict(_named(raw, columns))
    if "id" not in columns and ("conversations" in raw or "question_id" in raw):
        record.pop("id", None)
    if "images" in record:
        record["images"] = _images(record["images"], one=columns.get("images", "image") in raw)
    if "messages" not in record and "answer" in record:
        record["messages"] = _asked(record.pop("question", None), record.pop("answer"))
    if isinstance(messages := record.get("messages"), list):
        inline: list[Any] = []
        said = [_message(message, inline) for message in messages]
        if inline and not record.get("images"):
            record["images"] = inline
        if isinstance(images := record.get("images"), list) and all(_is_text(message) for message in messages):
            said = _with_places(said, len(images))
        record["messages"] = said
    return record


def _named(raw: Record, columns: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for ours, theirs in FOREIGN.items():
        for name in (columns[ours],) if ours in columns else (ours, *theirs):
            if name in raw and (name in (ours, columns.get(ours)) or raw[name] is not None):
                yield ours, raw[name]
                break


def _images(value: object, *, one: bool) -> object:
    """A list of images; `one`: a single image may stand for a list of one."""
    if isinstance(value, list | tuple):
        return [_image(image) for image in value]
    return [_image(value)] if one and value is not None else value


def _image(value: object) -> object:
    """Bytes, base64 text or {"path": key}: what `decode` and the folder read."""
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return value["bytes"]
        return {"path": _key(value["path"])} if "path" in value else value
    if isinstance(value, str) and value.startswith("data:"):
        return _from_url(value)
    if isinstance(value, str) and "." in value[:LONGEST_KEY]:  # which base64 cannot hold
        return {"path": _key(value)}
    if isinstance(value, Image):
        sink = io.BytesIO()
        value.convert("RGBA" if value.mode in ("RGBA", "LA", "PA") else "RGB").save(sink, "PNG")
        return sink.getvalue()
    return value


def _key(path: object) -> object:
    return path.removeprefix("./") if isinstance(path, str) else path


def _from_url(url: object) -> str:
    """The base64 text of a data URL."""
    head, comma, _ = url[:100].partition(",") if isinstance(url, str) else ("", "", "")
    if not (isinstance(url, str) and comma and head.startswith("data:image/") and head.endswith(";base64")):
        raise refuse("image", f"{shown(url)} is not fetched; need a data URL, data:image/png;base64,...")
    return url[len(head) + 1 :]


def _asked(question: object, answer: object) -> list[Any]:
    """A question and an answer as messages; both may be lists of messages themselves."""
    asked = (
        question if isinstance(question, list) else [{"role": "user", "content": "" if question is None else question}]
    )
    return asked + (answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}])


def _message(message: object, inline: list[Any]) -> object:
    """A message of LLaVA or OpenAI as one of ours; images in its parts go to `inline`."""
    if not isinstance(message, Mapping):
        return message
    if "from" in message and "role" not in message:
        role = message["from"]
        return {"role": SPEAKERS.get(role, role) if isinstance(role, str) else role, "content": message.get("value")}
    if isinstance(content := message.get("content"), list):
        return {**message, "content": [_part(part, inline) for part in content]}
    return message


def _part(part: object, inline: list[Any]) -> object:
    if not isinstance(part, Mapping) or part.get("type") != "image_url":
        return part
    url = part.get("image_url")
    inline.append(_from_url(url.get("url") if isinstance(url, Mapping) else url))
    return {"type": "image"}


def _is_text(message: object) -> bool:
    return isinstance(message, Mapping) and isinstance(message.get("content", message.get("value")), str | bytes)


def _with_places(messages: list[Any], images: int) -> list[Any]:
    """Texts with "<image>" in them as parts; images that none stands for come before the first question.

    Only the user's texts: what an assistant wrote about "<image>" is no picture.
    """
    asks = [m for m in messages if m["role"] == "user" and isinstance(m["content"], str)]
    places = sum(m["content"].count(PLACE) for m in asks)
    said = [{**m, "content": _parts(m["content"])} if m in asks and PLACE in m["content"] else m for m in messages]
    if images and not places and asks:
        first = messages.index(asks[0])
        text = [{"type": "text", "text": messages[first]["content"]}] if messages[first]["content"] else []
        said[first] = {**messages[first], "content": [{"type": "image"}] * images + text}
    return said


def _parts(text: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(PLACE)):
        parts += [{"type": "image"}] * bool(number)
        parts += [{"type": "text", "text": piece.strip("\n")}] * bool(piece.strip())
    return parts
