"""A client that asks the endpoint while the model under it changes, and an audit of what it was told.

Real HTTP, one question at a time, at a steady rate. The audit answers every question again with the version that the
answer named, loaded from the registry: an answer that differs was made by another model than it says.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from streamcl.serve.engine import Engine, Request
from streamcl.types import Sample, Version

MAX_TOKENS = 16


@dataclass(frozen=True)
class Asked:
    """One question and what came back."""

    sample: Sample
    answer: str | None
    version: int
    digest: str
    seconds: float
    error: str = ""
    """Why there is no answer; empty if there is one."""


def body(sample: Sample, *, model: str) -> dict[str, Any]:
    """The chat-completions request that asks a sample's question."""
    images = iter(sample.images)
    messages = []
    for message in sample.messages[:-1]:
        content: list[dict[str, Any]] = []
        for part in message.content:
            if part.type == "text":
                content.append({"type": "text", "text": part.text})
            else:
                data = base64.b64encode(next(images)).decode()
                content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
        messages.append({"role": message.role, "content": content})
    return {"model": model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}


def ask(client: httpx.Client, sample: Sample, *, model: str) -> Asked:
    """Asks one question. A failed request is an Asked with an error, not an exception."""
    started = time.monotonic()
    try:
        response = client.post("/v1/chat/completions", json=body(sample, model=model))
        response.raise_for_status()
    except httpx.HTTPError as error:
        return Asked(sample, None, -1, "", time.monotonic() - started, f"{type(error).__name__}: {error}")
    answer = response.json()["choices"][0]["message"]["content"]
    version, digest = int(response.headers["x-streamcl-version"]), response.headers["x-streamcl-digest"]
    return Asked(sample, answer, version, digest, time.monotonic() - started)


class Asker:
    """Asks the samples' questions in turn, `per_second` of them, in a thread of its own. Mutable: `asked` grows."""

    def __init__(self, url: str, samples: Sequence[Sample], *, model: str, per_second: float) -> None:
        self.url, self.samples, self.model, self.period_s = url, samples, model, 1 / per_second
        self.asked: list[Asked] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="streamcl-asker", daemon=True)

    @property
    def started(self) -> bool:
        return self._thread.ident is not None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stops after the question under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60.0) as client:
            due = time.monotonic()
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                sample = self.samples[len(self.asked) % len(self.samples)]
                self.asked.append(ask(client, sample, model=self.model))
                due += self.period_s


def audit(
    asked: Sequence[Asked], engine: Engine, versions: Callable[[int], tuple[Version, dict[str, bytes]]]
) -> list[Asked]:
    """The answers that the version they name does not give. `engine`: fresh; it is loaded with each version in turn.

    `versions(number)`: a version and its files.
    """
    wrong = []
    for number in sorted({one.version for one in asked if one.answer is not None}):
        if number:
            version, files = versions(number)
            engine.load(number, version.digest, files)
        expected = engine.version[1]
        told = {id(one.sample): one for one in asked if one.version == number and one.answer is not None}
        requests = {key: Request(one.sample.messages[:-1], one.sample.images, MAX_TOKENS) for key, one in told.items()}
        truth = dict(zip(told, (response.text for response in engine.answer([*requests.values()])), strict=True))
        wrong += [
            one
            for one in asked
            if one.version == number
            and one.answer is not None
            and (one.answer != truth[id(one.sample)] or one.digest != expected)
        ]
    return wrong
