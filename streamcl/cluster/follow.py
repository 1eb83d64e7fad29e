"""What a replica does about versions: its engine follows the registry, and fetches what is asked for by number."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from streamcl.errors import ConfigError, NoSuchVersion, StreamclError
from streamcl.registry.versions import Registry
from streamcl.sections import ServeConfig
from streamcl.serve.engine import Engine, Label
from streamcl.serve.trial import Trial
from streamcl.train.model import Base
from streamcl.train.settings import LoRA
from streamcl.types import Version

ABSENT_S = 3.0
"""So long a number that the registry did not have is refused without another look."""
RETRY_S = 10.0
"""So long after it could not be loaded a candidate is tried again."""

log = logging.getLogger(__name__)


class Follower:
    """An engine at what the registry says. Mutable; for any thread.

    Locks are taken in the order `following`, the engine's own, `reading`: never one of the former under the latter.
    """

    def __init__(
        self, registry: Registry, base: Base, lora: LoRA, settings: ServeConfig, *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.registry, self.base_digest, self.clock = registry, base.digest, clock
        self.following, self.reading = threading.Lock(), threading.Lock()
        """One replica moves to one version at a time; the registry is for one thread."""
        self.known: dict[int, Version] = {}
        """What may be asked for by number, as of the last change of the live version or the last unknown number."""
        self.looked = float("-inf")
        self.failed = (0, float("-inf"))
        """The candidate that could not be loaded, and when."""
        self.engine = Engine(base, lora, max_batch=settings.max_batch, slots=settings.slots, fetch=self._fetch)
        self.trial = Trial(
            self.engine, canary=settings.canary, shadow=settings.shadow, spare=settings.max_batch // 2
        )  # fmt: skip

    def published(self) -> list[Label]:
        """What may be asked for by number."""
        return [(version.number, version.digest) for version in self.known.values()]

    def follow(self) -> int:
        """Brings the engine to the live version of the registry, and answers its number. A trial that is over ends."""
        with self.following:
            files: Mapping[str, bytes] = {}
            with self.reading:
                live, candidate = self.registry.contenders() if self.trial.wanted else (self.registry.resolve(), None)
                moved = live is not None and live.number != self.engine.version[0]
                if live is not None and moved:
                    files = self._files(live)
                    if live.number not in self.known:  # a list takes a walk along the log
                        self._look()
            self.trial.put(candidate.number if candidate else None)
            if live is not None and moved:
                self.engine.load(live.number, live.digest, files)
        return self.engine.version[0]

    def admit(self) -> None:
        """Loads who is on trial, and runs a token through it: then it may answer. If it cannot, that is logged."""
        number, (failed, when) = self.trial.number(), self.failed
        if number is None or self.trial.admitted or (number == failed and self.clock() - when < RETRY_S):
            return
        try:
            self.prepare(number)
        except (OSError, RuntimeError, StreamclError) as error:  # torch's too: requests that it misses are counted
            self.failed = (number, self.clock())
            log.warning("candidate v%d cannot answer, the live version does: %s", number, error)
            return
        with self.following:
            self.trial.admit(number)

    def prepare(self, number: int) -> None:
        """Loads a version beside the live one and runs a token through it.

        Raises NoSuchVersion, Corrupt, ConfigError, NotFinite or Busy. It stays in memory while no other wants its slot.
        """
        self.looked = float("-inf")  # whoever asks for it knows that it is there
        self.engine.check(number)

    def _fetch(self, number: int) -> tuple[str, Mapping[str, bytes]]:
        """A version that a request is pinned to."""
        with self.reading:
            if number not in self.known and self.clock() - self.looked > ABSENT_S:
                self._look()
            if number not in self.known:
                have = f"have 1-{max(self.known)}" if self.known else "none was published yet"
                raise NoSuchVersion(f"no version {number}; {have}")
            return self.known[number].digest, self._files(self.known[number])

    def _look(self) -> None:
        self.known = {version.number: version for version in self.registry.versions()}
        self.looked = self.clock()

    def _files(self, version: Version) -> Mapping[str, bytes]:
        if version.base_digest != self.base_digest:
            raise ConfigError(
                f"version {version.number} was trained on base {version.base_digest[:12]}, this replica has "
                f"{self.base_digest[:12]}: serve it with the model that it was trained on"
            )
        return self.registry.read(version)
