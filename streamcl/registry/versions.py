"""The registry: versions, and aliases, which say who answers. Each move of an alias is a commit: who, from, to, why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from streamcl.errors import Corrupt, NoSuchVersion
from streamcl.registry.log import Log
from streamcl.registry.published import Published
from streamcl.registry.record import Record, canonical
from streamcl.types import Standing, Version, checked_name

CANDIDATE = "candidate"
"""The alias of the newest version that the gate did not make live."""


class Registry(Published):
    """A model's versions and aliases in a log. Reading needs no fence; `publish` and `move` do. For one thread.

    Mutable: remembers the newest alias commit it has seen, so a stale pointer never takes a reader back.
    """

    def __init__(self, log: Log, name: str) -> None:
        super().__init__(log, name)
        self._aliased: dict[str, Record] = {}

    def promote(
        self, number: int, alias: str = "live", why: str = "", *, who: str = "", state: Mapping[str, Any] | None = None
    ) -> Record:
        """Let `alias` answer with version `number`: one commit, then the pointer. No new commit if it does already.

        `who` asked for it; empty: the writer of the log by itself. `state` as for `Log.append`.
        """
        version = self.get(number)
        now = self._alias_record(alias)
        if _number(now) == number and now is not None:
            self._point(now)
            return now
        return self._commit_alias(version, alias, now=now, before=_number(now), why=why, who=who, state=state)

    def rollback(
        self, alias: str = "live", to: int | None = None, why: str = "", *, who: str = "",
        state: Mapping[str, Any] | None = None,
    ) -> Version:  # fmt: skip
        """Let `alias` answer with the version that did before, or with `to`, once its files were read and checked."""
        now = self._alias_record(alias)
        version = self.get(self.earlier(alias) if to is None else to)
        self.read(version)
        before = self._before(alias, version.number, never=_number(now))
        self._commit_alias(version, alias, now=now, before=before, why=why, who=who, state=state)
        return version

    def withdraw(self, alias: str, why: str = "", *, who: str = "") -> None:
        """Let `alias` answer with nothing: one commit, and the pointer goes before it. No commit if it has nothing."""
        now = self._alias_record(alias)
        if now is not None:
            self.log.store.delete(f"aliases/{alias}.json")
            self._commit_alias(None, alias, now=now, before=_number(now), why=why, who=who, state=None)

    def earlier(self, alias: str = "live") -> int:
        """The version that a rollback goes to.  Raises NoSuchVersion when there is none."""
        number = _number(self._alias_record(alias))
        target = self._before(alias, number)
        if target is None:
            have = [version.number for version in self.versions()]
            raise NoSuchVersion(f"alias {alias!r} had no version before {number}: give `to`, one of {have}")
        return target

    def resolve(self, alias: str = "live") -> Version | None:
        """The version that `alias` answers with, None before the first promotion.

        The first look is at the log, since a writer that was stopped may wake and set the pointer back.
        """
        record = (self._pointed(alias) if alias in self._aliased else None) or self._alias_record(alias)
        if record is None:
            self._aliased.pop(alias, None)
            return None
        self._aliased[alias] = record
        return aliased(record)

    def contenders(self) -> tuple[Version | None, Version | None]:
        """What `live` answers with, and the candidate that is on trial beside it, if there is one.

        A trial lasts from the commit that sets a version aside until `live` moves, another one is set aside, or it is
        withdrawn.
        """
        live, candidate = self.resolve("live"), self.resolve(CANDIDATE)
        if live is None or candidate is None:
            return live, candidate
        older = self._aliased[CANDIDATE].n < self._aliased["live"].n
        return live, None if older or candidate.number == live.number else candidate

    def standing(self) -> Standing:
        """What `live` answers with as of the commits that hold, and what a window that starts from it needs."""
        for record in self.log.lineage():
            moved = record.alias or {}
            if (moved.get("name"), moved.get("alias")) == (self.name, "live"):
                return self.standing_of(moved["version"]["number"])
        return Standing()

    def standing_of(self, number: int) -> Standing:
        """The same for version `number`; 0 is the bare base."""
        if not number:
            return Standing()
        made = self.record(number).version or {}
        memory = made["extra"].get("memory")
        return Standing(number, memory and tuple(memory), tuple(made["extra"].get("learned", ())))

    def aliases(self) -> dict[str, int]:
        """The commit that last moved each alias; without those that were withdrawn."""
        for record in self.log.back():
            if record.alias and record.alias["name"] == self.name:
                moved = {record.alias["alias"]: record.n} if record.alias["version"] else {}
                return {**record.alias["others"], **moved}
        return {}

    def repair(self) -> list[str]:
        """Rewrite the pointers that are missing or lag behind the log; returns the aliases it mended. Anyone may."""
        mended = []
        for alias, n in self.aliases().items():
            if self._pointer(alias).get("n") != n or self._pointed(alias) is None:
                self._point(self.log.get(n))
                mended.append(alias)
        return mended

    # --- inside --------------------------------------------------------------------------------------------------

    def _commit_alias(
        self, version: Version | None, alias: str, *, now: Record | None, before: int | None, why: str, who: str,
        state: Mapping[str, Any] | None,
    ) -> Record:  # fmt: skip
        others = {name: n for name, n in self.aliases().items() if name != alias}
        fields = {
            "name": self.name, "alias": checked_name(alias), "before": before, "others": others,
            "from": _number(now), "who": who,
            "version": version and {**vars(version), "scores": dict(version.scores)},
        }  # fmt: skip
        record = self.log.append("alias", alias=fields, state=state, why=why)
        if version is not None:
            self._point(record)
        return record

    def _alias_record(self, alias: str) -> Record | None:
        n = self.aliases().get(alias)
        return None if n is None else self.log.get(n)

    def _before(self, alias: str, number: int | None, *, never: int | None = None) -> int | None:
        """What was live before `number` when it last became live, so that rolling back twice goes back two steps."""
        for record in self.log.back():
            moved = record.alias or {}
            if (moved.get("name"), moved.get("alias"), _number(record)) == (self.name, alias, number):
                before: int | None = moved["before"]
                return before
        return never

    def _point(self, record: Record) -> None:
        assert record.alias is not None, f"commit {record.n} is a {record.kind}, not an alias"
        version = record.alias["version"]
        pointer = {"number": version["number"], "digest": version["digest"], "path": version["path"], "n": record.n}
        self.log.store.put(f"aliases/{record.alias['alias']}.json", canonical(pointer))
        self._aliased[record.alias["alias"]] = record

    def _pointer(self, alias: str) -> dict[str, Any]:
        """What the alias' pointer says; {} if it is missing or broken: the log knows better."""
        try:
            pointer = json.loads(self.log.store.get(f"aliases/{checked_name(alias)}.json") or b"{}")
        except ValueError:
            return {}
        return pointer if isinstance(pointer, dict) else {}

    def _pointed(self, alias: str) -> Record | None:
        """The alias commit that the pointer names, if the two agree and it is not older than one seen before."""
        pointer, seen = self._pointer(alias), self._aliased.get(alias)
        n = pointer.get("n")
        if not isinstance(n, int) or (seen is not None and n < seen.n):
            return None
        try:
            record = seen if seen is not None and seen.n == n else self.log.get(n)
        except Corrupt:
            return None  # a torn or forged pointer: the log is asked instead
        moved = record.alias or {}
        same = (moved.get("name"), moved.get("alias"), _number(record)) == (self.name, alias, pointer.get("number"))
        there = moved.get("version") or {}  # a withdrawal has none
        return record if same and there.get("digest", "") == pointer.get("digest") else None


def _number(record: Record | None) -> int | None:
    """The version that an alias commit made live, if it is one and was no withdrawal."""
    version = record.alias["version"] if record is not None and record.alias else None
    return version["number"] if version else None


def aliased(record: Record) -> Version:
    """The version that an alias commit made live."""
    assert record.alias is not None, f"commit {record.n} is a {record.kind}, not an alias"
    return Version(**record.alias["version"])
