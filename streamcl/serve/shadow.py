"""Live answers made again by a candidate, where nobody sees or waits for it, and compared.

One at a time, after the live answer was given. A shadow begins only while the batch has places to spare, and is given
up before its next token when others want its place.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

from streamcl.errors import Busy
from streamcl.serve.batch import Answer
from streamcl.serve.engine import Engine, Request, Response

Result = Literal["same", "different", "failed", "dropped"]
RESULTS: tuple[Result, ...] = ("same", "different", "failed", "dropped")
"""Text and number of tokens are those of the live answer, or not; an error; no room, no live answer, no candidate."""
DEPTH = 8
"""Answers that may wait to be made again."""


class _Made(NamedTuple):
    """A live answer that is to be made again by a candidate."""

    request: Request
    candidate: int
    answer: Response
    seconds: float


class Shadow:
    """Makes a share of the answers again. Mutable; for any thread.

    Each request of that share ends in one of RESULTS. `tokens` and `seconds` are those of the compared answers, by who
    made them; a shadow's time is longer by what it waits for, and shorter where the live answer had to queue.
    """

    def __init__(self, engine: Engine, current: Callable[[], int | None], *, share: float, spare: int) -> None:
        """`current`: who is on trial. A shadow runs beside at most `spare` requests."""
        self.engine, self.current, self.share, self.spare = engine, current, share, spare
        self.results, self.tokens = Counter[str](), Counter[str]()
        self.seconds = {"live": 0.0, "candidate": 0.0}
        self._asked, self._counting = 0, threading.Lock()
        self._made: queue.Queue[_Made | None] = queue.Queue(DEPTH)
        self._running: Answer | None = None
        self._thread = threading.Thread(target=self._work, name="streamcl-shadow", daemon=True)
        self._thread.start()

    def offer(self, request: Request, candidate: int, answer: Answer, *, began: float) -> None:
        """A request that the live version answers: every (1 / share)-th is made again once it was answered."""
        with self._counting:
            self._asked += 1
            due = int(self._asked * self.share) > int((self._asked - 1) * self.share)
        if due:
            answer.add_done_callback(partial(self._answered, request, candidate, began))

    def make_room(self) -> None:
        """Gives the running shadow up if others want its place: to be called after each request that came."""
        running = self._running
        if running is not None and sum(self.engine.queued) - 1 > self.spare:
            running.cancel()

    def close(self) -> None:
        """Ends after the answers that wait."""
        self._made.put(None)
        self._thread.join()

    def _answered(self, request: Request, candidate: int, began: float, done: Answer) -> None:
        """On the compute thread, or that of a client who goes away: must be quick."""
        if done.cancelled() or done.exception():
            self._count("dropped")
            return
        try:
            self._made.put_nowait(_Made(request, candidate, done.result(), time.monotonic() - began))
        except queue.Full:
            self._count("dropped")

    def _work(self) -> None:
        while (made := self._made.get()) is not None:
            result = self._compared(made)
            self._running = None
            self._count(result)

    def _compared(self, made: _Made) -> Result:
        over = made.candidate != self.current() or made.answer.version == made.candidate
        if over or sum(self.engine.queued) > self.spare:
            return "dropped"
        began = time.monotonic()
        try:
            self._running = self.engine.submit(replace(made.request, version=made.candidate))
            self.make_room()  # for who came before it was known to run
            answer = self._running.result()
        except (Busy, CancelledError):
            return "dropped"
        except Exception:  # whatever it is, it is the candidate's, and counted
            return "failed"
        with self._counting:
            self.tokens.update(live=made.answer.completion_tokens, candidate=answer.completion_tokens)
            self.seconds["live"] += made.seconds
            self.seconds["candidate"] += time.monotonic() - began
        alike = (answer.text, answer.completion_tokens) == (made.answer.text, made.answer.completion_tokens)
        return "same" if alike else "different"

    def _count(self, result: Result) -> None:
        with self._counting:
            self.results[result] += 1
