"""Two writers on a store that loses, delays and repeats replies: no commit is lost or doubled; the twins' are."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from streamcl.errors import Corrupt, Fenced, StoreError
from streamcl.registry.backends import TRIES
from streamcl.registry.log import Log, Record

from .stores import FaultyStore, NoPostCommitCheck, NoTxnCheck, Overwriting, quick

FAULTS = st.sampled_from(["", "lost", "dropped", "delayed", "repeated", "overtaken", "preceded", "given up"])
WRITER = st.sampled_from([0, 1])


class TwoWriters(RuleBasedStateMachine):
    """Each writer adds numbered operations to `state.done`, and repeats what was not acknowledged."""

    log: type[Log] = Log
    store: type[FaultyStore] = FaultyStore

    def __init__(self) -> None:
        super().__init__()
        self.disk = self.store()
        self.logs = [quick(self.disk, self.log) for _ in range(2)]
        self.held: list[Record | None] = [None, None]
        self.wanted: list[int | None] = [None, None]
        self.operations = 0
        self.acknowledged: list[int] = []
        self.kept: dict[int, str] = {}

    def acquire(self, writer: int) -> None:
        self.held[writer] = None
        faults, self.disk.faults = self.disk.faults, []
        self.held[writer] = self.logs[writer].acquire(f"writer {writer}")
        self.disk.faults = faults

    def add(self, writer: int, record: Record) -> None:
        operation = self.wanted[writer]
        if operation not in record.state.get("done", []):
            self.held[writer] = None
            done = [*record.state.get("done", []), operation]
            record = self.logs[writer].append("data", state={"done": done})
            head = quick(self.disk).head()
            assert head is not None
            assert head.txn == record.txn, f"commit {record.n} was acknowledged, but its writer is not the newest"
            self.held[writer] = record
            self.kept[record.n] = record.txn
        self.acknowledged.append(operation)
        self.wanted[writer] = None

    @rule(writer=WRITER)
    def take_over(self, writer: int) -> None:
        self.acquire(writer)

    @rule(writer=WRITER, faults=st.lists(FAULTS, max_size=3))
    def commit(self, writer: int, faults: list[str]) -> None:
        if self.wanted[writer] is None:
            self.operations += 1
            self.wanted[writer] = self.operations
        self.disk.intruder = lambda: self.acquire(1 - writer)
        try:
            if self.held[writer] is None:
                self.acquire(writer)
            self.disk.faults = ["delayed"] * TRIES if "given up" in faults else faults
            record = self.held[writer]
            assert record is not None
            self.add(writer, record)
        except Fenced:
            self.held[writer] = None
        except StoreError:
            if "given up" not in faults:
                raise
            self.held[writer] = None
        finally:
            self.disk.faults = []

    @rule()
    def land(self) -> None:
        self.disk.land()

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        records = list(quick(self.disk).records())
        assert [record.n for record in records] == list(range(1, len(records) + 1))
        assert [r.epoch for r in records] == sorted(r.epoch for r in records)
        done = records[-1].state.get("done", []) if records else []
        assert len(set(done)) == len(done), f"an operation was committed twice: {done}"
        assert set(self.acknowledged) <= set(done), f"{self.acknowledged} were acknowledged, only {done} are there"
        assert all(records[n - 1].txn == txn for n, txn in self.kept.items()), "an acknowledged commit was replaced"


def explore(machine: type[TwoWriters], examples: int) -> None:
    options = settings(
        max_examples=examples,
        stateful_step_count=12,
        deadline=None,
        derandomize=True,
        database=None,
        print_blob=False,
        phases=[Phase.generate],  # the draw is fixed, so a failure comes back; shrinking the twins' takes long
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=options)  # type: ignore[no-untyped-call]


def test_no_commit_is_lost_or_doubled_whatever_the_store_does() -> None:
    explore(TwoWriters, 200)


@pytest.mark.parametrize("twin", [NoTxnCheck, NoPostCommitCheck, Overwriting])
def test_every_broken_twin_is_caught(twin: type) -> None:
    broken = {"store" if issubclass(twin, FaultyStore) else "log": twin}
    with pytest.raises((AssertionError, Corrupt)):
        explore(type(f"TwoWritersWith{twin.__name__}", (TwoWriters,), broken), 150)
