"""What a chat-completions request may hold, and the engine's request that it becomes.

A subset of OpenAI's, and an error wherever the subset ends. Images come as data: URLs; no URL is ever fetched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streamcl.errors import BadSample
from streamcl.serve.errors import ApiError
from streamcl.serve.generate import Request
from streamcl.stream.decode import escaped
from streamcl.stream.images import checked_image
from streamcl.stream.isolate import CHILD
from streamcl.stream.limits import Limits
from streamcl.types import Message, Part

VERSION = re.compile(r"[0-9]{1,9}")
DATA_URL = re.compile(r"data:image/(?:jpeg|png|webp);base64,")


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Wire):
    type: Literal["text"]
    text: str


class ImageUrl(_Wire):
    url: str
    detail: Literal["auto"] | None = None


class ImagePart(_Wire):
    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(_Wire):
    role: Literal["system", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class StreamOptions(_Wire):
    include_usage: bool = False


class ChatRequest(_Wire):
    """The body of a request. Fields of which one value is allowed are there for clients that send their default."""

    model: str
    """NAME is answered by the live version, NAME@7 by version 7."""
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    """0 when absent, unlike OpenAI's 1: an answer can be made again."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """0 when absent, for the same reason."""
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    """While a candidate is on trial, one user is answered by one version."""
    n: Literal[1] | None = None
    top_p: float | None = Field(None, ge=1, le=1)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)

    def request(self, limits: Limits, *, max_tokens: int, version: int | None = None) -> Request:
        """What the engine is asked: images taken from their URLs, special tokens made harmless.  Raises BadSample."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        parts = [part for message in self.messages if not isinstance(message.content, str) for part in message.content]
        urls = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
        messages = tuple(_message(message) for message in self.messages)
        _check_size(messages, len(urls), stop, limits)
        _check_turns([message.role for message in messages])
        wanted = self.max_completion_tokens or self.max_tokens or Request.max_tokens
        if wanted > max_tokens:
            raise BadSample(f"max_tokens is {wanted}; at most {max_tokens} are allowed")
        images = tuple(_image(url, f"image {index}", limits) for index, url in enumerate(urls))
        return Request(
            messages, images, wanted, self.temperature or 0.0, self.seed or 0, tuple(stop), version, self.user or ""
        )


def _message(message: ChatMessage) -> Message:
    content = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
    parts = (Part("text", escaped(part.text)) if isinstance(part, TextPart) else Part("image") for part in content)
    return Message(message.role, tuple(parts))


def _check_size(messages: Sequence[Message], images: int, stop: Sequence[str], limits: Limits) -> None:
    chars = sum(len(part.text) for message in messages for part in message.content)
    for what, count, most in (
        ("messages", len(messages), limits.messages),
        ("characters of text", chars, limits.text_chars),
        ("images", images, limits.images),
        ("stop strings", len(stop), 4),
    ):
        if count > most:
            raise BadSample(f"{count} {what}; at most {most} are allowed")


def _check_turns(roles: Sequence[str]) -> None:
    """Chat templates raise on anything else."""
    turns = list(roles[roles[0] == "system" :])
    if len(turns) % 2 == 0 or turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        raise BadSample(f"roles {', '.join(roles)}; need user and assistant in turn, user last; system only first")


def _image(url: str, where: str, limits: Limits) -> bytes:
    if not (match := DATA_URL.match(url)):
        raise BadSample(f"{where}: {url[:40]!r} is not fetched; give data:image/jpeg, png or webp;base64,…")
    return checked_image(url[match.end() :], where, limits, CHILD.prove)


def parse(body: bytes, name: str, limits: Limits, *, max_tokens: int) -> tuple[ChatRequest, Request]:
    """The request in a body, for the model `name`.  Raises ApiError."""
    try:
        chat = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        deepest = max(errors, key=lambda one: len(one["loc"]))  # the others are of types that were not meant
        where = ".".join(map(str, deepest["loc"])) or None
        status = 400 if deepest["type"] == "json_invalid" else 422
        raise ApiError(status, f"{where or 'body'}: {deepest['msg']}", code="invalid_request", param=where) from error
    model, at, version = chat.model.partition("@")
    if model != name or (at and not VERSION.fullmatch(version)):
        message = f"no model {chat.model[:80]!r}; this server has {name!r}, and {name}@7 for its version 7"
        raise ApiError(404, message, code="model_not_found", param="model")
    try:
        return chat, chat.request(limits, max_tokens=max_tokens, version=int(version) if at else None)
    except BadSample as error:
        raise ApiError(400, str(error), code="invalid_request", param="messages") from error


def schemas() -> dict[str, Any]:
    """ChatRequest and what it refers to, as OpenAPI's components."""
    schema = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    parts: dict[str, Any] = schema.pop("$defs")
    return {ChatRequest.__name__: schema, **parts}
