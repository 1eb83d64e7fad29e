"""What the driver writes into the log: windows, versions, who answers, and what a restarted learner needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from streamcl import events as e
from streamcl.cluster.replay import Drawn
from streamcl.errors import Refused, StreamclError
from streamcl.registry import upkeep
from streamcl.registry.log import Log
from streamcl.registry.record import Kind
from streamcl.registry.requests import Answer, Request, answer, move, with_memory
from streamcl.registry.versions import CANDIDATE, Registry
from streamcl.sections import Config
from streamcl.stream.deadletter import ring
from streamcl.train.gate import Verdict
from streamcl.train.model import to_files
from streamcl.types import DeadLetter, Ref, Standing, Version, Window

COLLECT_EVERY = 32
"""Versions between two collections of what the store does not need any more."""


class Commits:
    """The driver's hand at the log. For one thread."""

    config: Config
    log: Log
    registry: Registry
    base_digest: str
    pool: Any

    def _commit_window(self, action: e.Freeze, drawn: Drawn) -> Window:
        """Commits the window with what was drawn for it. What a crash leaves of this may be done again."""
        window = replace(action.window, replay=drawn.replay, heldout=drawn.heldout)
        refs = {**drawn.refs, "window": self.log.put_object("window", json.dumps(asdict(window)).encode(), "json")}
        checkpoint = replace(action.checkpoint, training=window.id)
        about = {name: getattr(window, name) for name in ("id", "task", "index", "base", "closes_task", "size")}
        about |= {"replay": sum(map(len, window.replay)), "again": sum(map(len, window.again))}
        self._commit("window", checkpoint, refs, about)
        return window

    def _commit(self, kind: Kind, checkpoint: e.Checkpoint, refs: Mapping[str, Ref], window: Any = None) -> None:
        """One record of the checkpoint. Once it is durable, the source may tell others how far it goes."""
        self.log.append(kind, state=self._state(checkpoint, refs), window=window)
        self.pool.submit(self.config.source.committed, checkpoint.positions)

    def _commit_version(self, window: Window, result: e.TrainResult, verdict: Verdict) -> e.Published:
        """Commits the version that answers a window, then the alias that the verdict gives it."""
        files = to_files(self.config.form, self.log.get_object(result.adapter))
        learned = dict.fromkeys([*self.registry.standing_of(window.base).learned, window.task])
        extra = {name: getattr(result, name) for name in ("before", "loss", "steps", "seconds", "memory")}
        extra |= {"closes_task": window.closes_task, "index": window.index, "base": window.base}
        extra |= {"learned": list(learned), "gate": {**asdict(verdict), **asdict(result.evidence)}}
        version = self.registry.publish(
            files,
            window=window.id,
            task=window.task,
            base_digest=result.evidence.base or self.base_digest,
            scores=result.scores,
            state={"refs": with_memory(self.log, result.memory)} if verdict.passed else None,
            extra=extra,
        )
        standing = self._place(version, verdict)
        if version.number % COLLECT_EVERY == 0:
            upkeep.collect(self.registry, keep=self.config.store.keep)
        return e.Published(version, standing, verdict.why)

    def _place(self, version: Version, verdict: Verdict) -> Standing:
        """Moves the alias that a new version is for; what stands then."""
        why = f"window {version.window} of {version.task}: {verdict.why}"
        self.registry.promote(version.number, "live" if verdict.passed else CANDIDATE, why)
        return self.registry.standing()

    def _answer(self, window: Window) -> e.Published | e.Failed | None:
        """What the log already says of a window that was in training when a learner ended.

        Its version gets its alias, unless one was moved since: then that was done, or somebody decided otherwise.
        """
        moved = False
        for record in self.log.lineage():
            moved = moved or bool(record.alias)
            if record.version and record.version["window"] == window.id:
                version = self.registry.get(record.version["number"])
                told = record.version["extra"].get("gate", {})
                verdict = Verdict(told.get("passed", True), told.get("why", ""))
                standing = self.registry.standing() if moved else self._place(version, verdict)
                return e.Published(version, standing, verdict.why)
            if record.window and record.window["id"] == window.id:
                return e.Failed(window, record.why) if record.window.get("abandoned") else None
        return None

    def _move(self, request: Request, hindrance: str) -> list[e.Event]:
        """Makes a version live for whoever asked, unless a replica could not load it; says so in any case."""
        store, number = self.log.store, request.number
        try:
            if hindrance:
                raise Refused(f"a replica cannot answer with v{number}: {hindrance}")
            version, record = move(self.registry, request)
        except StreamclError as error:
            answer(store, request, Answer(False, str(error)))
            return []
        answer(store, request, Answer(True, f"v{number} is live" if record else f"v{number} was live already"))
        return [e.Moved(version, self.registry.standing())]

    def _refs(self) -> dict[str, Ref]:
        head = self.log.head()
        return dict(head.state.get("refs", {})) if head else {}

    def _state(self, checkpoint: e.Checkpoint, refs: Mapping[str, Ref]) -> dict[str, Any]:
        """A record's state: the checkpoint, written, and what it refers to."""
        learner = self.log.put_object("learner", json.dumps(checkpoint.state).encode(), "json")
        renewed = {name.partition("/")[0] for name in refs}  # a shard that is no more leaves nothing behind
        kept = {name: ref for name, ref in self._refs().items() if name.partition("/")[0] not in renewed}
        state = {
            "sources": checkpoint.positions,
            "counters": checkpoint.counters,
            "watermark": checkpoint.watermark,
            "training": checkpoint.training,
            "refs": {**kept, **refs, "learner": learner},
        }
        return bury(self.log, state, checkpoint.dead)


def bury(log: Log, state: dict[str, Any], letters: Sequence[DeadLetter]) -> dict[str, Any]:
    """`state` with these dead letters after those that its `refs` have; the oldest may give way, and are counted."""
    if not letters:
        return state
    head, refs = log.head(), state["refs"]
    before = (head.state.get("dropped") or 0) if head else 0
    kept, dropped = ring(log.get_object(refs["dead"]) if "dead" in refs else b"", letters)
    dead = log.put_object("dead", kept, "jsonl")
    return {**state, "refs": {**refs, "dead": dead}, "dropped": before + dropped}
