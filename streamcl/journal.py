"""What a run looks like to whoever collects logs: a record for everything that happened, with run, window and version.

With `ray.json_logs` Ray writes these records, and those of every worker, as lines of JSON.
"""

from __future__ import annotations

import logging
from typing import Any

from streamcl import events as e
from streamcl.learner import Learned
from streamcl.serve.client import Asked

_log = logging.getLogger("streamcl.run")


class Journal:
    """Logs a run, in place of `console.Screen`. Mutable: which window is in training and which version answers."""

    def __init__(self, run: str) -> None:
        self.about: dict[str, Any] = {"run": run, "window": None, "version": None}
        logging.getLogger("httpx").setLevel(logging.WARNING)  # the client beside the run would log every question

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def began(self, run: str, *, store: str, url: str) -> None:
        """Nobody listens before Ray has started: `watch` hears what follows."""

    def watch(self, happening: object) -> None:
        """Hears events, actions and training progress."""
        match happening:
            case e.Arrived(arrival):
                for letter in arrival.dead:
                    self._warn("dead letter", id=letter.id, partition=letter.partition, reason=letter.reason)
            case e.Frozen(window):
                self.about["window"] = window.id
                self._say("window frozen", task=window.task, samples=window.size)
            case e.Trained(window, result):
                self._say("window trained", task=window.task, loss=result.loss, seconds=dict(result.seconds))
            case e.Failed(window, reason):
                self._warn("window abandoned", task=window.task, reason=reason)
            case e.Swapped(version):
                self.about |= {"window": version.window, "version": version.number}
                self._say("version is live", task=version.task, digest=version.digest, scores=dict(version.scores))
            case e.Finish(ended):
                self._say("stream ended" if ended else "stopped")

    def learned(self, learned: Learned) -> None:
        """One finished window: `watch` heard its version go live."""

    def answered(self, asked: Asked) -> None:
        """A question to the endpoint, after a swap."""
        if asked.answer is None:
            self._warn("no answer", error=asked.error)

    def _say(self, what: str, **more: Any) -> None:
        _log.info(what, extra={**self.about, **more})

    def _warn(self, what: str, **more: Any) -> None:
        _log.warning(what, extra={**self.about, **more})
