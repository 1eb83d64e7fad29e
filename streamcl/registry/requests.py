"""What an operator asks of a run: an object in the store that the running learner answers, since it holds the fence.

    requests/<id>.json  ─▶ the learner looks twice a second, does it in a commit ─▶  answers/<id>.json

A learner says that it lives by a beat that changes every second. Where none does, whoever asks may take the fence. A
request names the version to go to, never "one back", so doing it twice changes nothing.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import Literal

from streamcl.errors import Refused, StoreError
from streamcl.registry.backends import CommitStore
from streamcl.registry.log import Log
from streamcl.registry.record import Record, canonical
from streamcl.registry.versions import Registry
from streamcl.types import Ref, Refs, Version

BEAT = "hint/alive.json"
BEAT_S = 1.0
SILENT_S = 3.0
"""After so long without a beat nobody is there: a learner that was stopped for longer finds itself fenced."""


def who() -> str:
    """The user at this machine, for the log."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


@dataclass(frozen=True)
class Request:
    """One thing to do."""

    verb: Literal["move", "purge"]
    number: int = 0
    """The version that is to answer."""
    expects: int | None = None
    """The version that must be live, or it is not done; None: any."""
    source: str = ""
    """The source whose samples are to be dropped."""
    why: str = ""
    who: str = field(default_factory=who)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def key(self) -> str:
        return f"requests/{self.id}.json"


@dataclass(frozen=True)
class Answer:
    """What came of a request."""

    done: bool
    text: str


def pending(store: CommitStore) -> list[Request]:
    """What is asked for and not answered yet."""
    found = [(store.get(key), key) for key in sorted(store.list("requests"))]
    return [Request(**json.loads(data)) for data, _ in found if data]


def answer(store: CommitStore, request: Request, given: Answer) -> None:
    """Says what came of a request, and takes it away."""
    store.put(f"answers/{request.id}.json", canonical(asdict(given)))
    store.delete(request.key)


def ask(store: CommitStore, request: Request, *, patience_s: float = 60.0) -> Answer | None:
    """The running learner's answer; None if no learner is there: the request is then withdrawn.

    Raises Refused when one is there and does not answer in `patience_s`.
    """
    store.put_if_absent(request.key, canonical(asdict(request)))
    beat, heard, started = store.get(BEAT), time.monotonic(), time.monotonic()
    while True:
        if data := store.get(f"answers/{request.id}.json"):
            store.delete(f"answers/{request.id}.json")
            return Answer(**json.loads(data))
        now = time.monotonic()
        if (latest := store.get(BEAT)) != beat:
            beat, heard = latest, now
        if now - heard > SILENT_S:
            store.delete(request.key)
            return None
        if now - started > patience_s:
            store.delete(request.key)
            raise Refused(f"the learner lives but did not answer in {patience_s:.0f} s: look at its log, ask again")
        time.sleep(0.05)


class Beat(threading.Thread):
    """Says every second that this process lives, until `close`."""

    def __init__(self, store: CommitStore, owner: str) -> None:
        super().__init__(name="streamcl-beat", daemon=True)
        self.store, self.owner, self.ended = store, owner, threading.Event()

    def run(self) -> None:
        count = 0
        while not self.ended.is_set():
            with contextlib.suppress(OSError, StoreError):  # the store is away: whoever asks through it waits, too
                self.store.put(BEAT, canonical({"owner": self.owner, "beat": count}))
            count += 1
            self.ended.wait(BEAT_S)

    def close(self) -> None:
        self.ended.set()
        self.join()


def move(registry: Registry, request: Request) -> tuple[Version, Record | None]:
    """Makes the version live in one commit, once its files and its task memory were read and checked.

    Returns the commit; None if it was live already.  Raises Refused, NoSuchVersion or Corrupt, and nothing has moved.
    """
    live = registry.resolve("live")
    now = live.number if live else 0
    version = registry.get(request.number)
    if now == request.number:
        return version, None
    if request.expects is not None and request.expects != now:
        raise Refused(f"v{now} is live, and not v{request.expects}, as when this was asked for: look, and ask again")
    memory = registry.standing_of(version.number).memory
    for ref in memory or ():
        registry.log.get_object(ref)
    state = {"refs": with_memory(registry.log, memory)}
    registry.rollback(to=version.number, why=request.why, who=request.who, state=state)
    return version, registry.log.head()


def with_memory(log: Log, memory: Refs | None) -> dict[str, Ref]:
    """The references at the log's head, with those of another task memory."""
    head = log.head()
    refs: dict[str, Ref] = head.state.get("refs", {}) if head else {}
    kept = {name: ref for name, ref in refs.items() if not name.startswith("memory/")}
    return {**kept, **{f"memory/{shard}": ref for shard, ref in enumerate(memory or ())}}
