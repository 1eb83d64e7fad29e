"""An engine of this process behind the API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from streamcl.serve.batch import Answer, Listen
from streamcl.serve.engine import Engine, Label, Request
from streamcl.serve.trial import Counts, Trial


class Local:
    """What `build_app` asks. `published`: versions that may be fetched, beside those that the engine holds. `trial`:
    where a candidate is tried."""

    def __init__(
        self, engine: Engine, published: Callable[[], Sequence[Label]] = tuple, *, trial: Trial | None = None
    ) -> None:
        self.engine, self.published, self.trial = engine, published, trial or Trial(engine)

    def models(self) -> list[Label]:
        live, *others = self.engine.versions
        return [live, *sorted({*others, *self.published(), (0, self.engine.base_digest)} - {live})]

    async def submit(self, request: Request, listen: Listen) -> Answer:
        return await asyncio.to_thread(self.trial.submit, request, listen)

    async def check(self) -> None:
        await asyncio.to_thread(self.engine.check)

    def queued(self) -> tuple[int, int]:
        return self.engine.queued

    def tried(self) -> Counts:
        return self.trial.counts()
