"""A candidate on trial beside the live version: it answers a share of the callers, and unseen a share of the requests.

A caller falls to the candidate or not for the whole trial, by a hash, on every replica alike. Answers name the version
that made them, as ever.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import NamedTuple

from streamcl.errors import BadSample, StreamclError
from streamcl.serve.batch import Answer, Listen
from streamcl.serve.engine import Engine, Request
from streamcl.serve.shadow import RESULTS, Shadow

SENT = ("sent", "unavailable")
"""What becomes of requests of the candidate's callers: given to it, or to the live version since it is not loaded."""
Counts = Mapping[str, Mapping[str, float]]
"""By family, then by label: `{"canary_total": {'result="sent"': 3}}`."""


class Candidate(NamedTuple):
    """Who is on trial."""

    number: int
    ready: bool = False
    """Whether it was loaded, and a token went through it."""


def place(caller: str, candidate: int) -> float:
    """Where a caller lies in [0, 1) in the trial of a candidate: the lowest are answered by it. Another in each."""
    return int.from_bytes(sha256(f"{candidate}:{caller}".encode()).digest()[:6]) / 2**48


class Trial:
    """What requests pass on their way to the engine. Mutable; for any thread.

    Whoever follows the registry says who is on trial: `put`, and `admit` once that one was loaded and tried.
    """

    def __init__(self, engine: Engine, *, canary: float = 0.0, shadow: float = 0.0, spare: int = 4) -> None:
        """`canary`: share of callers; `shadow`: share of requests. A shadow runs beside at most `spare` requests."""
        self.engine, self.canary = engine, canary
        self.candidate: Candidate | None = None
        self.shadow = Shadow(engine, self.number, share=shadow, spare=spare) if shadow else None
        self._sent, self._counting = Counter[str](), threading.Lock()

    @property
    def wanted(self) -> bool:
        """Whether candidates are tried at all."""
        return bool(self.canary or self.shadow)

    def number(self) -> int | None:
        """Who is on trial."""
        return self.candidate and self.candidate.number

    def put(self, number: int | None) -> None:
        """This version is on trial from now on, or none."""
        if number != self.number():
            self.candidate = None if number is None else Candidate(number)

    @property
    def admitted(self) -> bool:
        """Whether who is on trial may answer."""
        return self.candidate is not None and self.candidate.ready

    def admit(self, number: int) -> None:
        """This version may answer, if it is still on trial."""
        if number == self.number():
            self.candidate = Candidate(number, ready=True)

    def submit(self, request: Request, listen: Listen = lambda piece, label: None) -> Answer:
        """As `Engine.submit`; a request that is not pinned may be answered by the candidate, or by both."""
        candidate = self.candidate if request.version is None else None
        answer = self._canary(request, listen, candidate) if candidate else None
        if answer is None:
            began = time.monotonic()
            answer = self.engine.submit(request, listen)
            if self.shadow and candidate and candidate.ready:
                self.shadow.offer(request, candidate.number, answer, began=began)
        if self.shadow:
            self.shadow.make_room()
        return answer

    def results(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """How often each of SENT, and each of RESULTS, since the start."""
        shadowed = self.shadow.results if self.shadow else Counter[str]()
        return {result: self._sent[result] for result in SENT}, {result: shadowed[result] for result in RESULTS}

    def counts(self) -> Counts:
        """What happened since the start; nothing where candidates are not tried."""
        if not self.wanted:
            return {}
        families: dict[str, Mapping[str, float]] = {
            name: {f'result="{result}"': count for result, count in counts.items()}
            for name, counts in zip(("canary_total", "shadow_total"), self.results(), strict=True)
        }
        if shadow := self.shadow:
            families["shadow_tokens_total"] = {f'by="{who}"': shadow.tokens[who] for who in shadow.seconds}
            families["shadow_seconds_total"] = {f'by="{who}"': seconds for who, seconds in shadow.seconds.items()}
        return families

    def _canary(self, request: Request, listen: Listen, candidate: Candidate) -> Answer | None:
        """The candidate's answer to come, if it is its caller's request and it can be loaded."""
        if place(request.caller or uuid.uuid4().hex, candidate.number) >= self.canary:
            return None
        answer = None
        if candidate.ready:
            try:
                answer = self.engine.submit(replace(request, version=candidate.number), listen)
            except BadSample:  # the live version has room for more, or says what is wrong
                return None
            except (OSError, StreamclError):  # counted; the live version answers
                pass
        with self._counting:
            self._sent["sent" if answer else "unavailable"] += 1
        return answer
