"""What a run has left on its disk, without what may differ from run to run: names of files, times, fences.

And a reader beside it that knows nothing of our code: pointer, manifest, weights, sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamcl.cluster import replay
from streamcl.learner import reservoir_key
from streamcl.registry.backends import LocalStore, sha256
from streamcl.registry.log import Log
from streamcl.registry.record import Record, check_balance
from streamcl.registry.versions import Registry
from streamcl.sections import Config
from streamcl.store.memory import TaskMemory
from streamcl.store.snapshot import unpack
from streamcl.stream import from_jsonl
from streamcl.types import Rows, Window

Ending = dict[str, Any]
REST_S = 0.005
"""How long the reader rests between two looks: it shares the machine with the learner."""


class Names:
    """The ids behind rows of the run's Arrow files, each of which is read once (mutable)."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.files: dict[str, list[str]] = {}

    def of(self, wanted: Sequence[Rows]) -> list[str]:
        return [self._file(part.key)[row] for part in wanted for row in part.rows]

    def _file(self, key: str) -> list[str]:
        if key not in self.files:
            data = self.log.store.get(key)
            hold(data is not None and sha256(data)[:12] in key, f"G1: {key} is gone or damaged")
            self.files[key] = pa.ipc.open_file(pa.BufferReader(data)).read_all()["id"].to_pylist()
        return self.files[key]


class Violation(AssertionError):
    """A guarantee that did not hold. The message begins with its number: "G2: ..."."""


def hold(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)


def ending(config: Config, *, whole_log: bool = True) -> Ending:
    """The final state of a run on a local store; equal for runs that learned the same.  Raises Violation, Corrupt.

    `whole_log`: the log is dense and chained; otherwise broken commits are left out.
    """
    log = Log(LocalStore(config.store.path))
    names = Names(log)
    for record in log.records() if whole_log else log.back():
        try:
            check_balance(record.state)
        except AssertionError as error:
            raise Violation(f"G3: commit {record.n}: {error}") from error
    lineage = [*log.lineage()][::-1]
    head = lineage[-1].state
    learner = json.loads(log.get_object(head["refs"]["learner"]))
    digests = {r.version["number"]: r.version["digest"] for r in log.back() if r.version}
    windows = [_window(log, names, digests, record) for record in lineage if record.kind == "window"]
    trained = Counter(id for window in windows for id in window["samples"])
    twice = [id for id, times in trained.items() if times > 1]
    hold(not twice, f"G2: {twice} are in more than one window")
    answered = Counter(record.version["window"] for record in lineage if record.version)
    hold(max(answered.values()) == 1, f"G24: a window has several versions: {answered}")
    return {
        "counters": head["counters"],
        "positions": head["sources"],
        "watermark": head["watermark"],
        "tasks": learner["tasks"],
        "seen": (learner["seen"], learner["windows"], learner["recent"], learner["detector"]),
        "windows": windows,
        "sum of ids": sum(int(number[0]) for id in trained if (number := re.search(r"\d+$", id))),
        "multiset hash": multiset_hash(trained),
        "versions": [_version(record) for record in lineage if record.version],
        "abandoned": sorted({r.window["id"] for r in lineage if r.window and r.window.get("abandoned")}),
        "live": _live(Registry(log, config.name)),
        "pointer": json.loads(log.store.get("aliases/live.json") or b"{}").get("digest"),
        "reservoir": _reservoir(config, log, names),
        "memory": _memory(log, head["refs"]),
        "dead letters": _dead(log, head),
    }


def multiset_hash(ids: Mapping[str, int]) -> str:
    """The sum of the ids' sha256, each as often as it occurs: the same in any order."""
    total = sum(times * int.from_bytes(hashlib.sha256(id.encode()).digest(), "big") for id, times in ids.items())
    return f"{total % 2**256:064x}"


def different(found: Ending, expected: Ending) -> str:
    """Which parts of two endings differ, and how; empty if none does."""
    wrong = [name for name in expected if found[name] != expected[name]]
    return "; ".join(f"{name}: {str(found[name])[:300]} instead of {str(expected[name])[:300]}" for name in wrong)


def _window(log: Log, names: Names, digests: Mapping[int, str], record: Record) -> dict[str, Any]:
    window = Window.from_json(json.loads(log.get_object(record.state["refs"]["window"])))
    hold(record.window is not None and window.id == record.window["id"], f"G1: commit {record.n} has another's window")
    plain = {name: getattr(window, name) for name in ("id", "task", "seed", "index", "closes_task", "known")}
    return {
        **plain,
        "base": digests.get(window.base),  # a version that was undone and made again has another number
        "samples": names.of(window.samples),
        "replay": sorted(names.of(window.replay)),
        "heldout": {task: sorted(names.of(rows)) for task, rows in window.heldout.items()},
    }


def _version(record: Record) -> dict[str, Any]:
    assert record.version is not None
    kept = ("digest", "window", "task", "base_digest", "scores")
    return {name: record.version[name] for name in kept}


def _live(registry: Registry) -> str:
    """The digest of the version that a new reader finds live, and can read."""
    live = registry.resolve()
    if live is None:
        raise Violation("G4: no version is live")
    registry.read(live)
    return live.digest


def _reservoir(config: Config, log: Log, names: Names) -> list[tuple[Any, ...]]:
    """The rows of every heap by hash and rank, and the ids of the samples that are there."""
    whole = replay.committed(log, config, reservoir_key(config, log.store))
    _, parts = unpack(whole.snapshot())
    found = []
    for part in parts:
        rows = zip(part.rows.hash.tolist(), part.rows.rank.tolist(), part.rows.key, part.rows.row.tolist(), strict=True)
        for hashed, rank, key, row in rows:
            found.append((part.task, part.held, part.bound, hashed, rank, *names.of([Rows(key, (row,))])))
    return found


def _memory(log: Log, refs: Mapping[str, Any]) -> str:
    parts = [log.get_object(ref) for name, ref in sorted(refs.items()) if name.startswith("memory/")]
    return hashlib.sha256(TaskMemory.join([TaskMemory.from_bytes(part) for part in parts]).to_bytes()).hexdigest()


def _dead(log: Log, head: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Every dead letter that is kept, as often as it is told."""
    kept = head["refs"].get("dead")
    letters = from_jsonl(log.get_object(kept)) if kept else []
    return sorted((letter.partition, letter.position, letter.reason) for letter in letters)


# -- the reader --------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What the reader met (mutable)."""

    reads: int = 0
    violation: str = ""
    root: str = ""
    newest: int = 0

    def look(self) -> None:
        """Reads what is live, if something is."""
        root = Path(self.root)
        try:
            pointer = json.loads((root / "aliases/live.json").read_bytes())
        except FileNotFoundError:
            return
        folder = root / pointer["path"]
        sums = json.loads((folder / "manifest.json").read_bytes())["files"]
        for name, digest in sums.items():
            hold(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, f"G4: {name} is not {digest}")
        told = json.dumps(sorted(sums.items()), separators=(",", ":")).encode()
        hold(hashlib.sha256(told).hexdigest() == pointer["digest"], f"G4: {pointer} names other files than {sums}")
        hold(pointer["number"] >= self.newest, f"G4: version {pointer['number']} came after {self.newest}")
        self.newest = pointer["number"]
        self.reads += 1


class Watcher:
    """A process that goes on reading what is live in one store after the other."""

    def __init__(self) -> None:
        theirs, self.orders = os.pipe()
        self.answers, mine = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.orders)
            _watch(theirs, mine)
        os.close(theirs)
        os.close(mine)

    def turn_to(self, root: Path) -> Seen:
        """What it has seen where it was; its reads are of all stores together. From now on it reads in `root`."""
        return self._say(str(root))

    def close(self) -> Seen:
        seen = self._say("-")
        os.waitpid(self.pid, 0)
        os.close(self.orders)
        os.close(self.answers)
        return seen

    def _say(self, order: str) -> Seen:
        os.write(self.orders, f"{order}\n".encode())
        return Seen(**json.loads(os.read(self.answers, 65_536)))


def _watch(orders: int, answers: int) -> None:
    seen = Seen()
    while True:
        if select.select([orders], [], [], REST_S)[0]:
            order = os.read(orders, 65_536).decode().strip() or "-"
            os.write(answers, json.dumps(vars(seen)).encode())
            seen.root, seen.newest, seen.violation = order, 0, ""
            if order == "-":
                os._exit(0)
        try:
            if seen.root and not seen.violation:
                seen.look()
        except (Violation, OSError, ValueError, KeyError) as error:
            seen.violation = f"{type(error).__name__}: {error}"
