"""Learners that are broken on purpose, one guard each. The scenarios must catch every one of them.

The transaction check and the syncs have their twins at the log: only there does no other guard stand behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from streamcl import events as e
from streamcl.bench.reliability_faults import DAMAGED_AT, damages, zombies
from streamcl.bench.reliability_kill import Ground, Killed, run
from streamcl.bench.reliability_learner import Parts, Small
from streamcl.controller import Controller
from streamcl.learner import controller_of
from streamcl.registry.backends import sha256
from streamcl.registry.log import Log
from streamcl.registry.published import _digest
from streamcl.registry.record import Record
from streamcl.registry.versions import Registry
from streamcl.sections import Config
from streamcl.store.recent import Recent


class NoIds(Recent):
    """Remembers no id."""

    def __contains__(self, id_hash: int) -> bool:
        return False


def no_dedupe(config: Config) -> Controller:
    """Counts and trains a sample each time that it comes."""
    controller = controller_of(config)
    controller.recent = NoIds(1)
    return controller


class NoEpoch(Log):
    """When another's commit lies at its number, takes the next number instead of stopping."""

    def _append(self, kind: Any, state: Mapping[str, Any], **fields: Any) -> Record:
        mine = self._fence_held()
        while True:
            record = self._next(mine, kind, n=mine.n + 1, epoch=mine.epoch, owner=mine.owner, state=state, **fields)
            if self._place(record):
                self._mine = self._head = record
                return record
            mine = self._read(record.n)


class NoPostCommitCheck(Log):
    """Does not look whether a newer writer came while it committed."""

    def _check_still_newest(self, record: Record) -> None:
        return


class NoSum(Log):
    """Believes whatever an object holds."""

    def get_object(self, ref: Mapping[str, str]) -> bytes:
        return self.store.get(ref["key"]) or b""


class PositionsFirst(Small):
    """Commits how far it has read before it commits what it has read."""

    def _freeze(self, action: e.Freeze) -> None:
        self.log.append("data", state={"sources": dict(action.checkpoint.positions)})
        super()._freeze(action)


class CountersLast(Small):
    """Commits the counters after the window that they count."""

    def _freeze(self, action: e.Freeze) -> None:
        checkpoint, head = action.checkpoint, self.log.head()
        before = (head.state.get("counters") if head else None) or dict.fromkeys(checkpoint.counters, 0)
        state = {**checkpoint.state, "counters": {name: before[name] for name in checkpoint.state["counters"]}}
        super()._freeze(replace(action, checkpoint=replace(checkpoint, state=state, counters=before)))
        self.log.append("data", state=self._state(replace(checkpoint, training=action.window.id, dead=()), {}))


class WeightsLast(Registry):
    """Makes a version visible, then writes its files."""

    def _write(self, files: Mapping[str, bytes]) -> tuple[str, str]:
        self.owed = files
        digest = _digest({name: sha256(data) for name, data in files.items()})
        return digest, f"versions/{self.name}/{digest}"

    def promote(self, number: int, alias: str = "live", why: str = "", **fields: Any) -> Record:
        record = super().promote(number, alias, why, **fields)
        super()._write(self.owed)
        return record


CAUGHT_BY_KILLS = {
    "no dedupe": (Parts(controller=no_dedupe), "after Publish:2"),
    "positions before state": (Parts(runtime=PositionsFirst), "commits/window asked:5"),
    "counters after the commit": (Parts(runtime=CountersLast), "commits/window linked:5"),
    "published before its weights": (Parts(registry=WeightsLast), "versions asked:4"),
}
CAUGHT_BY_ZOMBIES = {
    "no epoch check": (Parts(log=NoEpoch), "commits/window synced:3"),
    "no check after the commit": (Parts(log=NoPostCommitCheck), "commits/alias linked:3"),
}
"""Twins, and a place that matters to each. The healthy learner passes all of these."""
PLACES = [place for _, place in CAUGHT_BY_KILLS.values()]
STOPS = [place for _, place in CAUGHT_BY_ZOMBIES.values()]


def caught(ground: Ground) -> dict[str, str]:
    """By twin, the violation that the scenarios found; empty where one passed as healthy."""
    found = {name: run(ground, [Killed([place])], parts).violations for name, (parts, place) in CAUGHT_BY_KILLS.items()}
    found |= {name: zombies(ground, [place], parts).violations for name, (parts, place) in CAUGHT_BY_ZOMBIES.items()}
    found["no sha256 check"] = damages(ground, DAMAGED_AT, Parts(log=NoSum), only="data/learner").violations
    healthy = run(ground, [Killed([place]) for place in PLACES]) + zombies(ground, STOPS)
    assert not healthy.violations, f"the healthy learner fails where its twins should: {healthy.violations}"
    return {name: violations[0] if violations else "" for name, violations in found.items()}
