"""Broken twins of the log's guards: each must be caught by a test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamcl.errors import Corrupt
from streamcl.registry import upkeep
from streamcl.registry.backends import LocalStore, Outcome, sha256
from streamcl.registry.log import COLLECTED, Kind, Log
from streamcl.registry.published import MANIFEST, _digest
from streamcl.registry.record import Record, canonical
from streamcl.registry.versions import Registry
from streamcl.testing.stores import FaultyStore


class Overwriting(FaultyStore):
    """Broken twin: put without the condition, as a plain PUT does."""

    def put_if_absent(self, key: str, data: bytes) -> Outcome:
        outcome = super().put_if_absent(key, data)
        if outcome == "exists":
            self.objects[key] = data
            return "created"
        return outcome

    def land(self) -> None:
        for key, data in self.late:
            self.objects[key] = data
        self.late = []


class NoTxnCheck(Log):
    """Broken twin: takes whatever lies at its number for its own."""

    def _is_ours(self, found: bytes, record: Record) -> bool:
        return True


class NoPostCommitCheck(Log):
    """Broken twin: does not look whether a newer writer came while it committed."""

    def _check_still_newest(self, record: Record) -> None:
        return


class NoEpoch(Log):
    """Broken twin: a writer that lost its place to another goes on behind it, as if there were no fence."""

    def _append(self, kind: Kind, state: Mapping[str, Any], **fields: Any) -> Record:
        while True:
            mine = self._fence_held()
            record = self._next(mine, kind, n=mine.n + 1, epoch=mine.epoch, owner=mine.owner, state=state, **fields)
            if self._place(record):
                return self._finish(record)
            self._mine = self._read(record.n)


class NoDigestCheck(Log):
    """Broken twin: takes an object for what was committed if it is there."""

    def get_object(self, ref: Mapping[str, str]) -> bytes:
        data = self.store.get(ref["key"])
        if data is None:
            raise Corrupt(ref["key"])
        return data


class SameFolder(Registry):
    """Broken twin: writes a version to the folder of its digest, though a collector may still be about to delete it."""

    def _write(self, files: Mapping[str, bytes]) -> tuple[str, str]:
        digest, path = super()._write(files)
        path = path.partition("-")[0]
        assert self._fill(path, {name: self.log.store.get(f"{path}/{name}") or data for name, data in files.items()})
        return digest, path


def deletes_first(registry: Registry, *, keep: int) -> list[str]:
    """Broken twin: deletes what it saw unused, then commits."""
    objects = registry.log.store
    needed = upkeep._needed(registry.log, upkeep._recent(registry.log, keep))
    swept = [key for key in objects.list("data") if upkeep._stem(key) not in needed]
    for key in swept:
        objects.delete(key)
    head = registry.log.head()
    registry.log.append("gc", state={COLLECTED: head.n if head else 1})
    return swept


def sweeps_the_young(registry: Registry, *, keep: int) -> list[str]:
    """Broken twin: whatever no commit names goes, also what is on its way into one."""
    recent = upkeep._recent(registry.log, keep)
    needed = upkeep._needed(registry.log, recent)
    registry.log.append("gc", state={COLLECTED: recent[-1].n})
    swept = [key for key in registry.log.store.list("data") if upkeep._stem(key) not in needed]
    for key in swept:
        registry.log.store.delete(key)
    return swept


def forgets_its_horizon(registry: Registry, *, keep: int) -> list[str]:
    """Broken twin: recovery may go back to commits whose objects are gone."""
    head = registry.log.head()
    swept = upkeep.collect(registry, keep=keep)
    registry.log.append("data", state={COLLECTED: head.state.get(COLLECTED, 1) if head else 1})
    return swept


class PointsFirst(Registry):
    """Broken twin: the files of a version come after the pointer to it."""

    late: Mapping[str, bytes]

    def _write(self, files: Mapping[str, bytes]) -> tuple[str, str]:
        digest = _digest(_sums(files))
        self.late = files
        return digest, f"versions/{self.name}/{digest}-{digest[:8]}"

    def promote(self, number: int, alias: str = "live", why: str = "", **fields: Any) -> Record:
        record = super().promote(number, alias, why, **fields)
        version = self.get(number)
        whole = {**self.late, MANIFEST: canonical({"digest": version.digest, "files": _sums(self.late)})}
        assert self._fill(version.path, whole)
        return record


def _sums(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: sha256(data) for name, data in files.items()}


class InPlace(LocalStore):
    """Broken twin: writes under the final name, so a killed writer leaves half a file there."""

    def put_if_absent(self, key: str, data: bytes) -> Outcome:
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(file, "xb", buffering=0) as half:
                half.write(data[: len(data) // 2])
                self.reached("half")
                half.write(data[len(data) // 2 :])
        except FileExistsError:
            return "exists"
        return "created"
