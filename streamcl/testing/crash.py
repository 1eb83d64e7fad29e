"""A small learner on a local store that kills, or stops, itself at a named point. Run again, it goes on.

STREAMCL_KILL_AT="linked:7" python -m streamcl.testing.crash /some/folder
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from streamcl.errors import Fenced, StoreError
from streamcl.registry import upkeep
from streamcl.registry.backends import CommitStore, LocalStore
from streamcl.registry.log import COLLECTED, Log
from streamcl.registry.versions import Registry

BATCHES = ((0, 1, 2), (2, 3), (4, 1), (5, 5, 6))
"""Sample ids as the source delivers them, some twice."""
FENCED, FAILED = 42, 43
"""What a child exits with that found a newer writer, or whose store failed it."""


class KillPoint:
    """Counts the points reached; at `point:nth` the process gets `sign`. Mutable.

    `since`: a point at which counting begins.
    """

    def __init__(self, at: str = "", sign: signal.Signals = signal.SIGKILL, *, since: str = "") -> None:
        self.at, self.sign, self.since = at, sign, since
        self.counting = not since
        self.counts: Counter[str] = Counter()
        self.places: list[str] = []

    def __call__(self, point: str) -> None:
        self.counting = self.counting or point == self.since
        if not self.counting:
            return
        self.counts[point] += 1
        self.places.append(f"{point}:{self.counts[point]}")
        if self.places[-1] == self.at:
            os.kill(os.getpid(), self.sign)


class Learner:
    """Takes in every batch once; freezes a window after every second one, publishes, promotes, collects. Mutable.

    `acknowledge(n)` is the side effect that follows commit n. `reached` hears "acquired". `size`: of the weights.
    """

    def __init__(
        self,
        store: CommitStore,
        *,
        reached: Callable[[str], None] = lambda point: None,
        acknowledge: Callable[[int], None] = lambda n: None,
        batches: Sequence[Sequence[int]] = BATCHES,
        size: int = 1,
        registry: type[Registry] = Registry,
    ) -> None:
        self.log = Log(store, backoff=lambda attempt: None)
        self.registry = registry(self.log, "model")
        self.reached, self.acknowledge, self.batches, self.size = reached, acknowledge, batches, size
        self.state: dict[str, Any] = {}
        self.seen: list[int] = []

    def run(self) -> None:
        """To the end of the source.  Raises Fenced, StoreError."""
        self.log.acquire(f"process {os.getpid()}")
        self.reached("acquired")
        self.recover()
        for position in range(self.state["sources"]["p"], len(self.batches)):
            self.freeze(due=position // 2)
            self.take(position)
        self.freeze(due=len(self.batches) // 2)

    def recover(self) -> None:
        record = upkeep.recover(self.registry)
        assert record is not None, "there is a fence at least"
        self.registry.repair()
        fresh = {"sources": {"p": 0}, "counters": {"in": 0, "accepted": 0, "dup": 0}, "windows": 0}
        self.state = {**fresh, **record.state}
        refs = self.state.get("refs")
        self.seen = json.loads(self.log.get_object(refs["seen"])) if refs else []
        self.answer()

    def take(self, position: int) -> None:
        batch = self.batches[position]
        fresh = [sample for sample in dict.fromkeys(batch) if sample not in self.seen]
        self.seen = self.seen + fresh
        more = {"in": len(batch), "accepted": len(fresh), "dup": len(batch) - len(fresh)}
        counters = {name: count + more[name] for name, count in self.state["counters"].items()}
        seen = self.log.put_object("memory", json.dumps(self.seen).encode(), "json")
        self.commit("data", sources={"p": position + 1}, counters=counters, refs={"seen": seen})

    def freeze(self, *, due: int) -> None:
        if self.state["windows"] < due:
            self.commit("window", windows=due, window={"id": due})
            self.answer()
            upkeep.collect(self.registry, keep=6)

    def commit(self, kind: Any, *, window: dict[str, Any] | None = None, **changes: Any) -> None:
        record = self.log.append(kind, state=changes, window=window)
        self.state |= record.state
        self.acknowledge(record.n)

    def answer(self) -> None:
        window = self.state["windows"]
        if window:
            weights, scores = files(window, self.size), {"accuracy": 0.5}
            version = self.registry.publish(weights, window=window, task="t", base_digest="b", scores=scores)
            self.acknowledge(self.registry.promote(version.number).n)


def files(window: int, size: int = 1) -> dict[str, bytes]:
    return {"adapter_config.json": b"{}", "adapter_model.safetensors": b"trained on window %d" % window * size}


def learn(root: Path, reached: KillPoint, store: type[LocalStore] = LocalStore) -> None:
    """The learner on a folder. Its side effects are lines in a file beside it."""

    def acknowledge(n: int) -> None:
        with open(f"{root}.effects", "a") as file:
            file.write(f"{os.getpid()} {n}\n")

    Learner(store(root, reached=reached), reached=reached, acknowledge=acknowledge).run()


def fork(act: Callable[[], None]) -> int:
    """Runs `act` in a child; its process id. It exits with 0, FENCED, FAILED, or 1 and a traceback."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        act()
        status = 0
    except Fenced:
        status = FENCED
    except StoreError as error:
        print(f"{type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
        status = FAILED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def learn_in_child(root: Path, kill_at: str, store: type[LocalStore] = LocalStore) -> bool:
    """Whether the forked learner was killed; False: it came to its end."""
    _, status = os.waitpid(fork(lambda: learn(root, KillPoint(kill_at), store)), 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, f"the learner failed with {kill_at or 'no kill'}, see its traceback"
    return False


def history(store: CommitStore) -> list[Any]:
    """What the log tells, without what may differ from run to run: fences, collections, names, times."""
    told = []
    for record in Log(store).records():
        if record.kind not in ("fence", "gc"):
            state = {name: value for name, value in record.state.items() if name != COLLECTED}
            state["refs"] = {name: ref["sha256"] for name, ref in state.get("refs", {}).items()}
            version = record.version and (record.version["number"], record.version["digest"], record.version["window"])
            alias = record.alias and (record.alias["version"]["number"], record.alias["before"])
            told.append((record.kind, state, record.window, version, alias))
    return told


if __name__ == "__main__":
    learn(Path(sys.argv[1]), KillPoint(os.environ.get("STREAMCL_KILL_AT", "")))
