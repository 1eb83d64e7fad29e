"""What the API answers, in OpenAI's shapes. Every answer names the version that made it."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from streamcl.serve.generate import Response
from streamcl.serve.loaded import Label


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: None
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    version: int
    digest: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    """The name that clients ask for, or one of its versions."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    """The version that answers under this id."""
    parent: str | None
    """The base model that its adapter belongs to; None for the base itself, version 0."""
    version: int
    digest: str


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok"]
    version: int
    digest: str


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class Error(BaseModel):
    error: ErrorDetail


class Reply:
    """One answer's messages under the model name `name`, which all carry the same id and version."""

    def __init__(self, name: str, label: Label) -> None:
        number, digest = label
        self.base: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": f"{name}@{number}",
            "system_fingerprint": f"v{number}-{digest[:12]}",
            "version": number,
            "digest": digest,
        }
        self.headers = {"x-streamcl-version": str(number), "x-streamcl-digest": digest}

    def whole(self, answer: Response) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        return self.base | {"object": "chat.completion", "choices": [choice], "usage": usage(answer)}

    def piece(self, text: str, *, first: bool) -> str:
        role = {"role": "assistant"} if first else {}
        return self._event(choices=[{"index": 0, "delta": role | {"content": text}, "finish_reason": None}])

    def end(self, answer: Response, *, with_usage: bool) -> str:
        done = self._event(choices=[{"index": 0, "delta": {}, "finish_reason": answer.finish_reason}])
        return done + (self._event(choices=[], usage=usage(answer)) if with_usage else "") + "data: [DONE]\n\n"

    def _event(self, **fields: Any) -> str:
        return f"data: {json.dumps(self.base | {'object': 'chat.completion.chunk'} | fields)}\n\n"


def usage(answer: Response) -> dict[str, int]:
    total = answer.prompt_tokens + answer.completion_tokens
    return {
        "prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens, "total_tokens": total
    }  # fmt: skip


def models(name: str, labels: Sequence[Label]) -> dict[str, Any]:
    """The list of models: the name, which the first of `labels` answers, and each version under its own id."""
    cards = [(name, labels[0])] if labels else []
    cards += [(f"{name}@{label[0]}", label) for label in sorted(set(labels))]
    data = [
        {
            "id": id, "object": "model", "created": 0, "owned_by": "streamcl", "root": f"{name}@{number}",
            "parent": f"{name}@0" if number else None, "version": number, "digest": digest,
        }
        for id, (number, digest) in cards
    ]  # fmt: skip
    return {"object": "list", "data": data}
