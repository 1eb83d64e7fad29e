"""The serving engine: a request is answered by the version it began with, and the answer says which."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch

from streamcl.errors import Busy, NoSuchVersion, NotFinite, StreamclError
from streamcl.serve.batch import Answer, Batch, Listen, Row
from streamcl.serve.generate import Prompt, Request, Response, encode
from streamcl.serve.loaded import Held, Label, Loaded
from streamcl.serve.slots import Slots, read_adapter
from streamcl.train.model import Base, peft_config
from streamcl.train.prompts import prefixed
from streamcl.train.settings import LoRA, Prompts

__all__ = ["Engine", "Label", "Request", "Response"]

Fetch = Callable[[int], tuple[str, Mapping[str, bytes]]]
"""Digest and files of a version by its number.  Raises NoSuchVersion."""


def nothing(number: int) -> tuple[str, Mapping[str, bytes]]:
    raise NoSuchVersion(f"version {number} is not loaded here, and nothing says where to find it")


class _Asked(NamedTuple):
    """A request that waits."""

    prompt: Prompt
    pinned: Held | None
    answer: Answer
    listen: Listen


class Engine:
    """Answers requests while versions come and go. Mutates `base.model`, which is the engine's own from now on.

    One compute thread runs the model: requests join and leave its batch between two steps, of one token each. Up to
    `slots` versions lie in memory side by side, and any of them answers the requests that are pinned to it
    (`Request.version`); one is live and answers all others. `load` puts a version beside them, `flip` makes a loaded
    one live: a label that changes between two steps, so it takes no time. A request keeps the version it began with to
    its last token, and its answer names that one.

    A request that is submitted after `flip` (or `load`) has returned is answered by that version or a later one, unless
    it is pinned. A version leaves memory only when its slot is wanted, it is not live and no request needs it; the one
    that was asked for longest ago goes first. One that is pinned to and is not there is fetched by who submits.
    """

    slots: ClassVar[type[Slots]] = Slots
    """How adapters are kept: a seam."""

    def __init__(self, base: Base, lora: LoRA, *, max_batch: int = 8, slots: int = 4, fetch: Fetch = nothing) -> None:
        """Starts as version 0, the bare base. `lora`: the expected form of adapters; others cost a rebuilt slot."""
        self._base, self._max_batch, self._fetch = base, max_batch, fetch
        self._context: int = base.model.config.get_text_config().max_position_embeddings
        self._slots = self.slots(base.model, peft_config(lora), count=slots)
        self._loaded = Loaded(base.digest, self._slots.names)
        self._loading, self._encoding = threading.RLock(), threading.Lock()
        self._wake = threading.Condition()
        """Guards all that follows, and the table of versions."""
        self._waiting: deque[_Asked] = deque()
        self._calls: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._closed = False
        self._batch = Batch(self._slots, base.processor.tokenizer)
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

    @property
    def queued(self) -> tuple[int, int]:
        """How many requests wait, and how many are under way."""
        return len(self._waiting), len(self._batch.rows)

    @property
    def base_digest(self) -> str:
        return self._base.digest

    def submit(self, request: Request, listen: Listen = lambda piece, label: None) -> Answer:
        """The answer to come. Decodes, tokenizes, and fetches a pinned version, in the caller's thread.

        `listen` hears the text as it comes, on the compute thread: it must be quick. Raises BadSample; for a pinned
        version NoSuchVersion, Corrupt, ConfigError, NotFinite, or Busy when every slot holds a version that is needed.
        """
        held = None if request.version is None else self._pinned(request.version)
        try:
            reserved = (held or self._loaded.live).reserved
            with self._encoding:  # a fast tokenizer must not be used by two threads
                prompt = encode(self._base.processor, request, context=self._context - reserved)
            asked = _Asked(prompt, held, Answer(), listen)
            self._put(lambda: self._waiting.append(asked))
        except BaseException:
            self._give(held)
            raise
        return asked.answer

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
            self.between_steps(partial(self._forward, held), timeout_s=timeout_s)
        finally:
            self._give(held)

    def between_steps(self, call: Callable[[], Any], *, timeout_s: float | None = None) -> None:
        """Runs `call` on the compute thread, before the next step, and raises what it raises."""
        future: Future[None] = Future()
        self._put(lambda: self._calls.append((call, future)))
        future.result(timeout_s)

    def close(self) -> None:
        """Ends the compute thread after the step at hand; requests without an answer are told so."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join()
        ended = StreamclError("the engine was closed before it answered; send the request again")
        for row in self._batch.clear():
            row.answer.set_exception(ended)
        left = [*(asked.answer for asked in self._waiting), *(future for _, future in self._calls)]
        self._waiting.clear()
        self._calls.clear()
        for future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(ended)

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
                    self.between_steps(partial(self._slots.rebuild, slot, adapter))
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

    def _put(self, append: Callable[[], None]) -> None:
        with self._wake:
            if self._closed:
                raise StreamclError("the engine is closed; start another")
            append()
            self._wake.notify_all()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._calls or self._waiting or self._batch.rows)
                if self._closed:
                    return
                calls, self._calls = self._calls, []
                newcomers = self._admit()
            for call, future in calls:
                try:
                    future.set_result(call())
                except BaseException as error:  # whatever it is, it is the caller's to see; this thread goes on
                    future.set_exception(error)
            for held, rows in newcomers.items():
                self._go(partial(self._batch.join, held, rows), rows)
            self._end(self._batch.leave())
            if self._batch.rows:
                self._go(self._batch.step, self._batch.rows)
                self._end(self._batch.leave())

    def _admit(self) -> dict[Held, list[Row]]:
        """The requests that join now, by version: the pinned one, or the one that is live at this moment."""
        newcomers: dict[Held, list[Row]] = {}
        room = self._max_batch - len(self._batch.rows)
        while self._waiting and room:
            asked = self._waiting.popleft()
            if not asked.answer.set_running_or_notify_cancel():
                self._give(asked.pinned)
                continue
            held = asked.pinned or self._loaded.take(self._loaded.live)
            row = Row(asked.prompt, held, asked.answer, asked.listen, self._base.processor.tokenizer)
            newcomers.setdefault(held, []).append(row)
            room -= 1
        return newcomers

    def _go(self, move: Callable[[], None], rows: Sequence[Row]) -> None:
        """Lets the batch make a move; if that fails, it fails for these rows, and for all of a batch left half-way."""
        try:
            move()
        except BaseException as error:  # whatever it is, it is the callers' to see; this thread goes on
            for row in {*rows, *self._batch.clear()}:
                row.answer.set_exception(error)
                self._give(row.held)

    def _end(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._give(row.held)
            if row.reason:
                row.answer.set_result(row.response())
            else:
                row.answer.set_exception(CancelledError())
