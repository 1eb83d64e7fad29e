"""The serving engine: a request is answered by the version it began with, and the answer says which."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from streamcl.errors import Busy, NoSuchVersion, NotFinite, StreamclError
from streamcl.serve.generate import Prompt, Request, Response, complete, encode
from streamcl.serve.loaded import Held, Label, Loaded
from streamcl.serve.slots import Slots, read_adapter
from streamcl.train.model import Base, LoRA
from streamcl.train.prompts import Prompts, prefixed

__all__ = ["Engine", "Label", "Request", "Response"]

Fetch = Callable[[int], tuple[str, Mapping[str, bytes]]]
"""Digest and files of a version by its number.  Raises NoSuchVersion."""


def nothing(number: int) -> tuple[str, Mapping[str, bytes]]:
    raise NoSuchVersion(f"version {number} is not loaded here, and nothing says where to find it")


@dataclass(frozen=True)
class _Turn:
    """What the compute thread does in one go: `run` gives one result per future."""

    run: Callable[[], Sequence[Any]]
    futures: Sequence[Future[Any]]


class Engine:
    """Answers requests while versions come and go. Mutates `base.model`, which is the engine's own from now on.

    One compute thread runs the model. Up to `slots` versions lie in memory side by side, and any of them answers the
    requests that are pinned to it (`Request.version`); one is live and answers all others. `load` puts a version beside
    them, `flip` makes a loaded one live: a label that is changed between two steps, so it takes no time. A request
    keeps the version it began with to its last token, and its answer names that one.

    A request that is submitted after `flip` (or `load`) has returned is answered by that version or a later one, unless
    it is pinned. A version leaves memory only when its slot is wanted, it is not live and no request needs it; the one
    that was asked for longest ago goes first. One that is pinned to and not in memory is fetched by `fetch`, in the
    thread that submits.
    """

    slots: ClassVar[type[Slots]] = Slots
    """How adapters are kept: a seam."""

    def __init__(self, base: Base, lora: LoRA, *, max_batch: int = 8, slots: int = 4, fetch: Fetch = nothing) -> None:
        """Starts as version 0, the bare base. `lora`: the expected form of adapters; others cost a rebuilt slot."""
        self._base, self._max_batch, self._fetch = base, max_batch, fetch
        self._context: int = base.model.config.get_text_config().max_position_embeddings
        self._slots = self.slots(base.model, lora.config(), count=slots)
        self._loaded = Loaded(base.digest, self._slots.names)
        self._loading, self._encoding = threading.RLock(), threading.Lock()
        self._wake = threading.Condition()
        """Guards all that follows, and the table of versions."""
        self._waiting: deque[tuple[Prompt, Held | None, Future[Response]]] = deque()
        self._calls: deque[_Turn] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="streamcl-compute", daemon=True)
        self._thread.start()

    @property
    def version(self) -> Label:
        """Number and digest of the live version."""
        return self._loaded.live.label

    @property
    def versions(self) -> tuple[Label, ...]:
        """All versions in memory, the live one first."""
        with self._wake:
            return self._loaded.labels

    def submit(self, request: Request) -> Future[Response]:
        """The answer to come. Decodes, tokenizes, and fetches a pinned version, in the caller's thread.

        Raises BadSample; for a pinned version NoSuchVersion, Corrupt, ConfigError, NotFinite, or Busy when every slot
        holds a version that is needed.
        """
        held = None if request.version is None else self._pinned(request.version)
        try:
            reserved = (held or self._loaded.live).reserved
            with self._encoding:  # a fast tokenizer must not be used by two threads
                prompt = encode(self._base.processor, request, context=self._context - reserved)
            future: Future[Response] = Future()
            self._put(lambda: self._waiting.append((prompt, held, future)))
        except BaseException:
            self._give(held)
            raise
        return future

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """The answers, in order: for replays and audits."""
        return [future.result() for future in [self.submit(request) for request in requests]]

    def load(
        self, number: int, digest: str, files: Mapping[str, bytes], *, live: bool = True, timeout_s: float = 30.0
    ) -> None:
        """Puts version `number` in memory, beside those that answer, and makes it live unless told otherwise.

        Loading what is loaded reads nothing. Number 0 is the bare base, without files. Raises Corrupt, ConfigError or
        NotFinite, or Busy when no slot came free in `timeout_s`; whatever answered before goes on answering.
        """
        with self._loading:
            if number and not self._loaded.find(number, digest):
                self._hold((number, digest), files, timeout_s=timeout_s)
            if live:
                self.flip(number)

    def flip(self, number: int) -> None:
        """Makes a loaded version live.  Raises NoSuchVersion if it is not loaded."""
        with self._wake:
            held = self._loaded.find(number)
            if held is None:
                have = [label[0] for label in self._loaded.labels]
                raise NoSuchVersion(f"version {number} is not loaded; {have} are: load it first")
            self._loaded.live = held
            self._wake.notify_all()  # the version before may be what someone waits to replace

    def check(self, number: int | None = None, *, timeout_s: float = 30.0) -> None:
        """Runs one token through a loaded version, the live one if not told, on the compute thread.

        Raises TimeoutError, NoSuchVersion, NotFinite or StreamclError.
        """
        held = self._pinned(self.version[0] if number is None else number)
        try:
            self.between_batches(partial(self._forward, held), timeout_s=timeout_s)
        finally:
            self._give(held)

    def between_batches(self, call: Callable[[], Any], *, timeout_s: float | None = None) -> None:
        """Runs `call` on the compute thread, before the requests that wait, and raises what it raises."""
        future: Future[None] = Future()
        self._put(lambda: self._calls.append(_Turn(lambda: [call()], [future])))
        future.result(timeout_s)

    def close(self) -> None:
        """Ends the compute thread after the batch at hand; requests that still wait are told so."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join()
        left = [future for *_, future in self._waiting] + [future for turn in self._calls for future in turn.futures]
        self._waiting.clear()
        self._calls.clear()
        for future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(StreamclError("the engine was closed before it answered; send the request again"))

    # --- versions ----------------------------------------------------------------------------------------------

    def _hold(self, label: Label, files: Mapping[str, bytes], *, timeout_s: float) -> None:
        """Puts a version into a slot that nobody needs."""
        adapter = read_adapter(files)
        slot = self._room(timeout_s)
        try:
            pool = None
            if isinstance(adapter.shape, Prompts):
                pool = self._slots.pool(adapter)
            else:
                if not self._slots.fits(slot, adapter):
                    self.between_batches(partial(self._slots.rebuild, slot, adapter))
                self._slots.write(slot, adapter)
        except BaseException:
            with self._wake:
                self._loaded.free(slot)
            raise
        with self._wake:
            self._loaded.put(Held(label, slot, pool))

    def _room(self, timeout_s: float) -> str:
        with self._wake:
            found: list[str] = []

            def look() -> bool:
                slot = self._loaded.room()
                found.extend([slot] if slot else [])
                return bool(found)

            if not self._wake.wait_for(look, timeout_s):
                have = [label[0] for label in self._loaded.labels]
                raise Busy(f"versions {have} are all needed by requests under way; ask again, or raise serve.slots")
            return found[0]

    def _pinned(self, number: int) -> Held:
        """Version `number`, needed by one more request; fetched if it is not in memory."""
        with self._loading:
            if held := self._taken(number):
                return held
            digest, files = self._fetch(number)
            self.load(number, digest, files, live=False, timeout_s=0.0)
            held = self._taken(number)
            assert held is not None, "nobody else loads meanwhile"
            return held

    def _taken(self, number: int) -> Held | None:
        with self._wake:
            held = self._loaded.find(number)
            return self._loaded.take(held) if held else None

    def _give(self, held: Held | None) -> None:
        """One request less needs `held`."""
        if held is not None:
            with self._wake:
                held.requests -= 1
                self._wake.notify_all()

    # --- the compute thread ------------------------------------------------------------------------------------

    def _forward(self, held: Held) -> None:
        self._slots.use(held.place)
        ids = torch.tensor([[self._base.processor.tokenizer.eos_token_id]], device=self._base.device)
        with torch.no_grad():
            model = self._slots.model
            logits = model(**prefixed(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})).logits
        if not torch.isfinite(logits).all():
            raise NotFinite(f"version {held.label[0]} answers with NaN or infinity; roll back")

    def _answer(self, held: Held, prompts: Sequence[Prompt]) -> list[Response]:
        number, digest = held.label
        try:
            self._slots.use(held.place)
            tokenizer = self._base.processor.tokenizer
            return complete(self._slots.model, tokenizer, prompts, version=number, digest=digest) if prompts else []
        finally:
            for _ in prompts:
                self._give(held)

    def _put(self, append: Callable[[], None]) -> None:
        with self._wake:
            if self._closed:
                raise StreamclError("the engine is closed; start another")
            append()
            self._wake.notify_all()

    def _next(self) -> _Turn | None:
        """What to do next, or None at the end. Calls go first: a version change waits for one batch, not for all."""
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._calls or self._waiting)
            if self._closed:
                return None
            if self._calls:
                return self._calls.popleft()
            first = self._waiting[0][1] or self._loaded.live
            batch: list[tuple[Prompt, Future[Response]]] = []
            while self._waiting and len(batch) < self._max_batch:
                if (self._waiting[0][1] or self._loaded.live) is not first:
                    break
                prompt, pinned, future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    batch.append((prompt, future))
                    if pinned is None:
                        self._loaded.take(first)
                elif pinned is not None:
                    pinned.requests -= 1
        return _Turn(partial(self._answer, first, [prompt for prompt, _ in batch]), [future for _, future in batch])

    def _work(self) -> None:
        while (turn := self._next()) is not None:
            try:
                results = turn.run()
            except BaseException as error:  # whatever it is, it is the callers' to see; this thread goes on
                for future in turn.futures:
                    future.set_exception(error)
            else:
                for future, result in zip(turn.futures, results, strict=True):
                    future.set_result(result)
