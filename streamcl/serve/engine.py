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

from streamcl.errors import NotFinite, StreamclError
from streamcl.serve.generate import Prompt, Request, Response, complete, encode
from streamcl.serve.slots import Slots, read_adapter
from streamcl.train.model import Base, LoRA
from streamcl.train.prompts import prefixed

__all__ = ["Engine", "Request", "Response"]

Label = tuple[int, str]
"""Number and digest of a version."""


@dataclass(frozen=True)
class _Turn:
    """What the compute thread does in one go: `run` gives one result per future."""

    run: Callable[[], Sequence[Any]]
    futures: Sequence[Future[Any]]


class Engine:
    """Answers requests while its adapter is replaced. Mutates `base.model`, which is the engine's own from now on.

    One compute thread runs the model. Requests that wait together are answered as one batch; a version change happens
    between two batches, and the label is read by the compute thread that makes the answer, so label and weights agree.
    A request that is submitted after `load` has returned is answered by that version or a later one.
    """

    slots: ClassVar[type[Slots]] = Slots
    """How adapters are kept: a seam."""

    def __init__(self, base: Base, lora: LoRA, *, max_batch: int = 8) -> None:
        """Starts as version 0, the bare base. `lora`: the expected form of adapters; others cost a rebuilt slot."""
        self._base, self._max_batch = base, max_batch
        self._context: int = base.model.config.get_text_config().max_position_embeddings
        self._slots = self.slots(base.model, lora.config())
        self._label: Label = (0, base.digest)
        self._loading, self._encoding = threading.Lock(), threading.Lock()
        self._wake = threading.Condition()
        self._waiting: deque[tuple[Prompt, Future[Response]]] = deque()
        self._calls: deque[_Turn] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="streamcl-compute", daemon=True)
        self._thread.start()

    @property
    def version(self) -> Label:
        """Number and digest of the version that answers now."""
        return self._label

    def submit(self, request: Request) -> Future[Response]:
        """The answer to come. Decodes and tokenizes in the caller's thread.  Raises BadSample."""
        with self._encoding:  # a fast tokenizer must not be used by two threads
            prompt = encode(self._base.processor, request, context=self._context - self._slots.reserved)
        future: Future[Response] = Future()
        self._put(lambda: self._waiting.append((prompt, future)))
        return future

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """The answers, in order: for replays and audits."""
        return [future.result() for future in [self.submit(request) for request in requests]]

    def load(self, number: int, digest: str, files: Mapping[str, bytes]) -> None:
        """Makes version `number` the one that answers; returns once it is. Number 0 is the bare base, without files.

        Raises Corrupt, ConfigError or NotFinite, and the version before goes on answering.
        """
        with self._loading:
            if (number, digest) == self._label:
                return
            if number == 0:
                self.between_batches(partial(self._change, self._slots.bare, (0, self._base.digest)))
                return
            adapter = read_adapter(files)
            if not self._slots.fits(adapter):
                self.between_batches(partial(self._slots.rebuild, adapter))
            self._slots.write(adapter)
            self.between_batches(partial(self._change, self._slots.flip, (number, digest)))

    def check(self, *, timeout_s: float = 30.0) -> None:
        """Runs one token through the model on the compute thread.  Raises TimeoutError, NotFinite or StreamclError."""
        self.between_batches(self._forward, timeout_s=timeout_s)

    def between_batches(self, call: Callable[[], Any], *, timeout_s: float | None = None) -> None:
        """Runs `call` on the compute thread, before the requests that wait, and raises what it raises."""
        future: Future[None] = Future()
        self._put(lambda: self._calls.append(_Turn(lambda: [call()], [future])))
        future.result(timeout_s)

    def close(self) -> None:
        """Ends the compute thread after the batch at hand; requests that still wait are told so."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        left = [future for _, future in self._waiting] + [future for turn in self._calls for future in turn.futures]
        self._waiting.clear()
        self._calls.clear()
        for future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(StreamclError("the engine was closed before it answered; send the request again"))

    def _change(self, switch: Callable[[], None], label: Label) -> None:
        switch()
        self._label = label

    def _forward(self) -> None:
        ids = torch.tensor([[self._base.processor.tokenizer.eos_token_id]], device=self._base.device)
        with torch.no_grad():
            model = self._slots.model
            logits = model(**prefixed(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})).logits
        if not torch.isfinite(logits).all():
            raise NotFinite(f"version {self._label[0]} answers with NaN or infinity; roll back")

    def _answer(self, prompts: Sequence[Prompt]) -> list[Response]:
        number, digest = self._label
        tokenizer = self._base.processor.tokenizer
        return complete(self._slots.model, tokenizer, prompts, version=number, digest=digest) if prompts else []

    def _put(self, append: Callable[[], None]) -> None:
        with self._wake:
            if self._closed:
                raise StreamclError("the engine is closed; start another")
            append()
            self._wake.notify()

    def _next(self) -> _Turn | None:
        """What to do next, or None at the end. Calls go first: a version change waits for one batch, not for all."""
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._calls or self._waiting)
            if self._closed:
                return None
            if self._calls:
                return self._calls.popleft()
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]
        batch = [(prompt, future) for prompt, future in batch if future.set_running_or_notify_cancel()]
        return _Turn(partial(self._answer, [prompt for prompt, _ in batch]), [future for _, future in batch])

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
