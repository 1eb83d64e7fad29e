"""An engine of this process behind the API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from streamcl.serve.batch import Answer, Listen
from streamcl.serve.engine import Engine, Label, Request


class Local:
    """What `build_app` asks. `published`: versions that may be fetched, beside those that the engine holds."""

    def __init__(self, engine: Engine, published: Callable[[], Sequence[Label]] = tuple) -> None:
        self.engine, self.published = engine, published

    def models(self) -> list[Label]:
        live, *others = self.engine.versions
        return [live, *sorted({*others, *self.published(), (0, self.engine.base_digest)} - {live})]

    async def submit(self, request: Request, listen: Listen) -> Answer:
        return await asyncio.to_thread(self.engine.submit, request, listen)

    async def check(self) -> None:
        await asyncio.to_thread(self.engine.check)

    def queued(self) -> tuple[int, int]:
        return self.engine.queued
