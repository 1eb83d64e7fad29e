"""The commit log under a hypothesis state machine: two writers, a collector, readers, damage, and a store that fails.

What the model believes is compared with what the log says after every step. Needs hypothesis.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from streamcl.errors import Corrupt, Fenced, StoreError
from streamcl.registry import upkeep
from streamcl.registry.backends import TRIES, born
from streamcl.registry.log import COLLECTED, Log, commit_key
from streamcl.registry.record import Record, canonical
from streamcl.registry.versions import Registry
from streamcl.testing.stores import Damage, FaultyStore, quick

FAULTS = st.lists(
    st.sampled_from(["", "lost", "dropped", "delayed", "repeated", "overtaken", "preceded", "given up"]), max_size=3
)
WRITER = st.sampled_from([0, 1])


class TwoWriters(RuleBasedStateMachine):
    """Each writer commits numbered operations, and repeats what was not acknowledged. One number, one place in `done`.

    The class attributes are where broken twins go.
    """

    log: type[Log] = Log
    store: type[FaultyStore] = FaultyStore
    registry: type[Registry] = Registry
    collect: Callable[..., list[str]] = staticmethod(upkeep.collect)
    happened: ClassVar[dict[str, int]] = {}
    """How often each thing happened, over all runs."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = self.store()
        self.disk.now = 1.0
        self.registries = [self.registry(quick(self.disk, self.log), "model") for _ in range(2)]
        self.reader = Registry(quick(self.disk), "model")
        self.held = [False, False]
        self.known: list[dict[str, Any]] = [{}, {}]
        self.wanted: list[int | None] = [None, None]
        self.leaves: list[str | None] = [None, None]
        self.operations = 0
        self.undone: list[int] = []
        self.acknowledged: list[int] = []
        self.kept: dict[int, str] = {}
        self.bad = Damage(self.disk)
        self.over = False
        self.count("runs")

    def count(self, what: str) -> None:
        self.happened[what] = self.happened.get(what, 0) + 1

    # -- what a writer does ------------------------------------------------------------------------------------------

    def acquire(self, writer: int) -> None:
        self.held[writer] = False
        faults, self.disk.faults = self.disk.faults, []
        registry = self.registries[writer]
        registry.log.acquire(f"writer {writer}")
        record = upkeep.recover(registry)
        registry.repair()
        assert record is not None, "there is a fence at least"
        self.held[writer], self.known[writer], self.leaves[writer] = True, dict(record.state), None
        self.disk.faults = faults

    def attempt(self, writer: int, faults: list[str], act: Callable[[int], None]) -> None:
        """Take over if need be, and act; fenced or in doubt, stop."""
        if self.over:
            return
        assert self.disk.now is not None
        self.disk.now += 1
        self.disk.intruder = lambda: self.acquire(1 - writer)
        try:
            if not self.held[writer]:
                self.acquire(writer)
            self.disk.faults = ["delayed"] * TRIES if "given up" in faults else list(faults)
            self.held[writer] = False
            act(writer)
            self.held[writer] = True
        except Fenced:
            self.count("fenced")
        except StoreError as error:
            if not (self.bad.spoilt if isinstance(error, Corrupt) else "given up" in faults):
                raise
            self.count("in doubt")
        finally:
            self.disk.faults = []

    def add(self, writer: int) -> None:
        """Commit an operation and acknowledge it."""
        if self.wanted[writer] is None:
            self.operations += not self.undone
            self.wanted[writer] = self.undone.pop() if self.undone else self.operations
        operation, state, log = self.wanted[writer], self.known[writer], self.registries[writer].log
        assert operation is not None
        if operation not in state.get("done", []):
            leaf, self.leaves[writer] = self.leaves[writer], None
            if leaf is None or leaf not in self.disk.objects:
                leaf = log.put_object("leaf", b"%d" % operation, "bin")["key"]
            done, leaves = [*state.get("done", []), operation], [*state.get("leaves", []), leaf][-3:]
            ref = log.put_object("done", canonical([done, leaves]), "json")
            record = log.append("data", state={"done": done, "leaves": leaves, "refs": {"done": ref}})
            self.side_effect(record)
            self.known[writer] = dict(record.state)
        self.acknowledged.append(operation)
        self.wanted[writer] = None

    def publish(self, writer: int) -> None:
        """Answer the next window with a version, and make it live."""
        registry = self.registries[writer]
        window = self.known[writer].get("windows", 0) + 1
        version = registry.publish(
            files(window), window=window, task="t", base_digest="b", scores={}, state={"windows": window}
        )
        before = registry.log.head()
        moved = registry.promote(version.number)
        head = registry.log.head()
        assert before is not None
        assert head is not None
        if moved.n > before.n:  # it was not so already
            self.side_effect(moved)
        self.known[writer] = dict(head.state)
        self.count("versions")

    def side_effect(self, record: Record) -> None:
        head = quick(self.disk).head()
        assert head is not None
        assert head.txn == record.txn, f"commit {record.n} was acknowledged, but its writer is not the newest"
        self.kept[record.n] = record.txn
        self.count("acknowledged")

    # -- what happens ------------------------------------------------------------------------------------------------

    @rule(writer=WRITER)
    def take_over(self, writer: int) -> None:
        self.attempt(writer, [], self.acquire)

    @rule(writer=WRITER, faults=FAULTS)
    def commit(self, writer: int, faults: list[str]) -> None:
        self.attempt(writer, faults, self.add)

    @rule(writer=WRITER, faults=FAULTS)
    def commit_version(self, writer: int, faults: list[str]) -> None:
        self.attempt(writer, faults, self.publish)

    @rule(writer=WRITER)
    def write_early(self, writer: int) -> None:
        """An object that only a later commit will name."""
        self.leaves[writer] = self.registries[writer].log.put_object("leaf", b"early", "bin")["key"]

    @rule(writer=WRITER, faults=FAULTS, keep=st.integers(1, 4), stopped=st.booleans())
    def collect_garbage(self, writer: int, faults: list[str], keep: int, stopped: bool) -> None:
        """`stopped`: the collector sleeps before its first deletion, and the other one goes on meanwhile."""

        def act(writer: int) -> None:
            self.disk.deleting = (lambda: self.go_on(1 - writer)) if stopped else lambda: None
            since = self.time_of(keep)
            young = [key for key in self.disk.list("data") if born(key.rpartition("/")[2]) >= since]
            before = set(self.disk.objects)
            try:
                swept = self.collect(self.registries[writer], keep=keep)
            except Fenced:
                assert before <= set(self.disk.objects), "a writer without fence deleted something"
                raise
            finally:
                self.disk.deleting = lambda: None
            assert not set(swept) & set(young), "what may be on its way into a commit was deleted"
            self.happened["swept"] = self.happened.get("swept", 0) + len(swept)
            self.known[writer] = {**self.known[writer], COLLECTED: 1}

        self.attempt(writer, faults, act)

    def time_of(self, keep: int) -> float:
        """When the oldest of the newest `keep` commits that an earlier collection has left was made."""
        records = [*quick(self.disk).back()]
        lowest = records[0].state.get(COLLECTED, 1) if records else 1
        made = [r.time for r in records if r.kind not in ("fence", "gc") and r.n >= lowest]
        every = [r.time for r in records if r.n >= lowest]
        return min(made[:keep] if len(made) >= keep else [*every, math.inf])

    def go_on(self, writer: int) -> None:
        faults, self.disk.faults = self.disk.faults, []
        self.acquire(writer)
        self.publish(writer)
        self.add(writer)
        self.disk.faults = faults

    @rule()
    def land(self) -> None:
        self.disk.land()

    @rule()
    def read(self) -> None:
        """A reader that stays sees what one that has just come sees, whole; or, after damage, its own or nothing."""
        version, fresh = self.reader.resolve(), Registry(quick(self.disk), "model").resolve()
        assert version == fresh or self.bad.spoilt, f"a reader sees {version}, the log says {fresh}"
        if version is not None:
            try:
                assert self.reader.read(version) == files(version.window)
            except Corrupt:
                assert any(key.startswith(version.path) for key in self.bad.spoilt), f"half of {version}"
            self.count("reads")

    @rule(writer=WRITER, choice=st.integers(0, 9), how=st.sampled_from(["flip", "cut", "delete"]))
    def damage(self, writer: int, choice: int, how: str) -> None:
        """A newest object goes bad, and a writer recovers: to the newest commit that is whole."""
        head = quick(self.disk).head()
        if head is None or self.over:
            return
        self.disk.land()
        version = Registry(quick(self.disk), "model").newest()
        keys = [commit_key(head.n), *(ref["key"] for ref in head.state.get("refs", {}).values())]
        keys += self.disk.list(version.path) if version else []
        self.bad.spoil(keys[choice % len(keys)], how)
        expected = self.bad.newest_whole()
        try:
            self.acquire(writer)
        except Corrupt:
            assert expected is None, f"commit {expected.n} is whole" if expected else ""
            self.over = True
            return
        assert expected is not None
        done = self.known[writer].get("done", [])
        assert done == expected.state.get("done", []), f"recovered {done}, not those of commit {expected.n}"
        self.undone = [number for number in {*self.acknowledged, *self.undone} if number not in done]
        self.acknowledged = [number for number in self.acknowledged if number in done]
        self.known[1 - writer] = {}  # what it was told may have been undone
        self.kept = {n: txn for n, txn in self.kept.items() if n <= expected.n}
        self.count("recoveries")

    # -- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if self.over:
            return
        log = quick(self.disk)
        records = [*log.back()][::-1]
        assert [r.epoch for r in records] == sorted(r.epoch for r in records)
        assert self.bad.spoilt or [r.n for r in records] == list(range(1, len(records) + 1))
        state: Mapping[str, Any] = records[-1].state if records else {}
        done = state.get("done", [])
        assert len(set(done)) == len(done), f"an operation was committed twice: {done}"
        assert set(self.acknowledged) <= set(done), f"{self.acknowledged} were acknowledged, only {done} are there"
        present = {r.n: r.txn for r in records}
        assert all(present.get(n, txn) == txn for n, txn in self.kept.items()), "an acknowledged commit was replaced"
        windows = [r.version["window"] for r in log.lineage() if r.version]
        forgotten = any(key.startswith("commits/") for key in self.bad.spoilt)  # a rollback may be among them
        assert forgotten or len(set(windows)) == len(windows), f"a window has two versions: {windows}"

    @invariant()
    def what_is_kept_can_be_loaded(self) -> None:
        if self.over:
            return
        records = [*quick(self.disk).back()]
        lowest = records[0].state.get(COLLECTED, 1) if records else 1
        for record in records:
            ref = record.state.get("refs", {}).get("done")
            if record.n < lowest or ref is None or self.bad.spoiled(ref["key"]):
                continue
            assert json.loads(self.disk.objects.get(ref["key"], b"null")) == [
                record.state["done"],
                record.state["leaves"],
            ]
            lost = [key for key in record.state["leaves"] if key not in self.disk.objects]
            assert not lost, f"commit {record.n}, to which recovery may go, lost {lost}"


def files(window: int) -> dict[str, bytes]:
    """Three different contents, so that folders come again."""
    return {"adapter": b"weights %d" % (window % 3)}


def explore(machine: type[TwoWriters], examples: int, *, steps: int = 12) -> None:
    """Runs of the machine, the same ones each time.  Raises what the first violation raises."""
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        print_blob=False,
        phases=[Phase.generate],  # the draw is fixed, so a failure comes back; shrinking the twins' takes long
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=options)
