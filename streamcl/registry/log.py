"""The commit log: dense, hash-chained, each commit created with put-if-absent. Nothing is visible without one.

A writer first commits a fence with a higher epoch: that record is the lock, without lease or clock. Readers need none.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from streamcl.errors import Corrupt, Fenced, StoreError
from streamcl.registry.backends import CommitStore, settle, sha256, uuid7, wait
from streamcl.registry.record import Kind, Record, canonical, check_balance, check_kind

__all__ = ["Kind", "Log", "Record", "commit_key"]

COLLECTED = "collected"
"""In a state: the oldest commit that the last collection kept whole. Objects of those below it may be gone."""
HINT = "hint/latest.json"
HINT_EVERY = 16
"""Commits between two hints: object stores limit how often one key may be rewritten."""

_log = logging.getLogger(__name__)


def commit_key(n: int) -> str:
    return f"commits/{n:020d}.json"


class Log:
    """Reads a store's commits and, once it holds a fence, appends to them. For one thread.

    Mutable: remembers its own last commit, and how far the log is known to reach.
    `backoff(attempt)` waits before a write of unknown outcome is tried again.
    """

    def __init__(
        self, store: CommitStore, clock: Callable[[], float] = time.time, *, backoff: Callable[[int], None] = wait
    ) -> None:
        self.store = store
        self.clock = clock
        self.backoff = backoff
        self._mine: Record | None = None
        self._end_seen = 0
        self._head: Record | None = None

    # --- reading -----------------------------------------------------------------------------------------------

    def head(self) -> Record | None:
        """The newest commit, or None in an empty log.  Raises Corrupt if it cannot be trusted."""
        end = self._end()
        if end and (self._head is None or self._head.n != end):
            self._head = self._read(end)
        return self._head

    @property
    def seen(self) -> int:
        """Number of the newest commit that was read or written through this value. Asks nobody."""
        return self._end_seen

    def records(self, start: int = 1) -> Iterator[Record]:
        """The commits from `start` to the newest, oldest first.

        Raises Corrupt at a commit that is broken, unless a later fence went past it, or does not continue the last.
        """
        before: Record | None = None
        broken: list[Corrupt] = []
        for n in range(start, self._end(listed=start == 1) + 1):  # a whole reading also finds a missing commit
            try:
                record = self._read(n)
            except Corrupt as error:
                broken.append(error)
                continue
            if before is not None or n - len(broken) == 1:
                _check_link(record, before, broken)
            yield record
            before, broken = record, []
        if broken:
            raise broken[0]

    def back(self, record: Record | None = None) -> Iterator[Record]:
        """The commits from `record` (the newest) to the first, each checked against the one after it.

        Broken ones are left out.
        """
        record = record or self.head()
        while record is not None:
            yield record
            record = self._before(record)

    def lineage(self, record: Record | None = None) -> Iterator[Record]:
        """`back`, without the commits that a rollback undid."""
        limit: int | None = None
        for before in self.back(record):
            if limit is None or before.n <= limit:
                yield before
                limit = before.to if before.kind == "rollback" else limit

    def last(self, kind: Kind) -> Record | None:
        """The newest commit of `kind`, or None."""
        check_kind(kind)
        return next((record for record in self.back() if record.kind == kind), None)

    def get(self, n: int) -> Record:
        """Commit `n`.  Raises Corrupt if it is missing or was changed."""
        return self._read(n)

    # --- writing -----------------------------------------------------------------------------------------------

    def acquire(self, owner: str) -> Record:
        """Become the writer: commit a fence with a new epoch. The writer before gets Fenced at its next append.

        Goes past broken commits at the end, with the state of the newest intact one; the fence's `why` names them.
        """
        while True:
            end = self._end(listed=True)
            last, broken = self._newest_intact(end)
            lost = end - (last.n if last else 0)  # each may have been a fence of its own
            epoch = (last.epoch if last else 0) + lost + 1
            record = self._next(last, "fence", n=end + 1, epoch=epoch, owner=owner, why=broken)
            if self._place(record):
                return self._finish(record)

    def append(
        self,
        kind: Kind,
        *,
        state: Mapping[str, Any] | None = None,
        window: Mapping[str, Any] | None = None,
        version: Mapping[str, Any] | None = None,
        alias: Mapping[str, Any] | None = None,
        why: str = "",
    ) -> Record:
        """Commit one record. When this returns, it is durable and no newer writer was there: side effects may follow.

        `state` replaces the keys it names; the others are carried on from the last commit.
        Raises Fenced (stop: a newer writer is there), or StoreError (in doubt: `acquire` again, then `recover`).
        """
        mine = self._fence_held()
        return self._append(kind, {**mine.state, **(state or {})}, window=window, version=version, alias=alias, why=why)

    def recover(self, verify: Callable[[Record], bool] | None = None) -> Record | None:
        """The newest commit whose state can be loaded: its refs all exist and match their sha256, and `verify` agrees.

        If that is not the newest one, commits a `rollback` to it, whose `why` names what was broken, and returns that:
        go on from its state, and read the sources again from its positions. None in an empty log.
        Never goes below what a collection has kept.
        """
        end = self._end()
        broken: dict[str, None] = {}
        lowest = 1
        for n in range(end, 0, -1):
            if n < lowest:
                break
            try:
                record = self._read(n)
                lowest = max(lowest, record.state.get(COLLECTED, 1))
                for ref in record.state.get("refs", {}).values():
                    self.get_object(ref)
            except Corrupt as error:
                broken[str(error)] = None
                continue
            if verify is not None and not verify(record):
                broken[f"commit {n} was refused by the caller's check"] = None
            elif not broken:
                return record
            else:
                why = f"commits {n + 1} to {end}: {'; '.join(broken)}"
                kept = {COLLECTED: lowest} if lowest > 1 else {}  # a rollback does not bring objects back
                return self._append("rollback", {**record.state, **kept}, to=n, why=why)
        if broken:
            raise Corrupt(
                f"no commit of {lowest} to {end} is intact: {'; '.join(broken)}. Restore the store from a copy"
            )
        return None

    # --- objects -----------------------------------------------------------------------------------------------

    def put_object(self, name_prefix: str, data: bytes, suffix: str) -> dict[str, str]:
        """Write `data` under `data/<name_prefix>/`; returns the ref `{"key", "sha256"}` for a commit to name."""
        key = self.store.put_unique(f"data/{name_prefix}".rstrip("/"), data, suffix)
        return {"key": key, "sha256": sha256(data)}

    def get_object(self, ref: Mapping[str, str]) -> bytes:
        """The bytes behind a ref.  Raises Corrupt if they are missing or changed."""
        data = self.store.get(ref["key"])
        if data is None:
            raise Corrupt(f"object {ref['key']!r} is missing")
        if sha256(data) != ref["sha256"]:
            raise Corrupt(f"object {ref['key']!r} has sha256 {sha256(data)}, but was committed with {ref['sha256']}")
        return data

    # --- inside ------------------------------------------------------------------------------------------------

    def _end(self, *, listed: bool = False) -> int:
        """The number of the newest commit, 0 if there is none: from the hint (or a listing), then one by one."""
        n = self._end_seen or self._hint()
        if listed or (not self._end_seen and (n == 0 or self.store.get(commit_key(n)) is None)):
            there = [int(key[-25:-5]) for key in self.store.list("commits")]  # sees past a missing commit
            n = max([self._end_seen, *there])
        while self.store.get(commit_key(n + 1)) is not None:
            n += 1
        self._end_seen = n
        return n

    def _hint(self) -> int:
        try:
            return int(json.loads(self.store.get(HINT) or b"{}").get("n", 0))
        except (ValueError, TypeError, AttributeError):
            return 0  # only advice: a listing replaces it

    def _read(self, n: int) -> Record:
        data = self.store.get(commit_key(n))
        if data is None:
            raise Corrupt(f"commit {n} is missing from the store, though later ones were made")
        return Record.parse(data, n=n)

    def _before(self, record: Record) -> Record | None:
        if record.prev is None:
            return None
        try:
            before = self._read(record.prev["n"])
        except Corrupt as error:
            _log.warning("%s; reading on below it", error)
            return self._newest_intact(record.prev["n"] - 1)[0]
        if before.link != record.prev:
            raise Corrupt(f"commit {record.n} continues {record.prev}, but there lies {before.link}")
        return before

    def _newest_intact(self, end: int) -> tuple[Record | None, str]:
        broken = ""
        for n in range(end, 0, -1):
            try:
                return self._read(n), broken
            except Corrupt as error:
                broken += f"went past {error}; "
        return None, broken

    def _fence_held(self) -> Record:
        if self._mine is None:
            raise Fenced("this log holds no fence, or its last commit is in doubt: acquire(owner) and recover() first")
        return self._mine

    def _append(self, kind: Kind, state: Mapping[str, Any], **fields: Any) -> Record:
        check_kind(kind)
        check_balance(state)
        mine = self._fence_held()
        record = self._next(mine, kind, n=mine.n + 1, epoch=mine.epoch, owner=mine.owner, state=state, **fields)
        if not self._place(record):
            raise self._lost_to(record)
        return self._finish(record)

    def _next(self, last: Record | None, kind: Kind, *, n: int, **fields: Any) -> Record:
        base = {"state": last.state if last else {}, "prev": last.link if last else None}
        record = Record(**{**base, **fields, "n": n, "kind": kind, "txn": uuid7(), "time": self.clock()})
        return Record.parse(record.encode(), n=n)  # as a reader will see it, and no part of it shared with the caller

    def _place(self, record: Record) -> bool:
        """Put the record at its n; whether it is ours that lies there."""
        self._mine = None  # in doubt until the outcome is known
        found = settle(self.store, commit_key(record.n), record.encode(), backoff=self.backoff)
        self._end_seen = max(self._end_seen, record.n)
        return self._is_ours(found, record)

    def _is_ours(self, found: bytes, record: Record) -> bool:
        """A lost reply leaves our own commit there: the transaction tells."""
        return Record.parse(found, n=record.n).txn == record.txn

    def _lost_to(self, record: Record) -> StoreError:
        other = self._read(record.n)
        if other.epoch < record.epoch:
            return StoreError(f"commit {other.n} has epoch {other.epoch}, older than our {record.epoch}: unsafe store")
        who = f"{other.owner!r} (epoch {other.epoch}, ours {record.epoch})"
        return Fenced(f"commit {other.n} was written by {who}: stop, that learner writes now")

    def _finish(self, record: Record) -> Record:
        self._check_still_newest(record)
        self._mine = self._head = record
        if record.kind == "fence" or record.n % HINT_EVERY == 0:
            self.store.put(HINT, canonical({"n": record.n}))
        return record

    def _check_still_newest(self, record: Record) -> None:
        if self.store.get(commit_key(record.n + 1)) is not None:
            self._end_seen = record.n + 1
            raise Fenced(f"commit {record.n} was made, but {record.n + 1} is another writer's: no side effects, stop")


def _check_link(record: Record, before: Record | None, broken: list[Corrupt]) -> None:
    if record.prev == (before.link if before else None):
        return
    if broken:
        raise broken[0]
    raise Corrupt(f"commit {record.n} continues {record.prev}, but before it lies {before.link if before else None}")
