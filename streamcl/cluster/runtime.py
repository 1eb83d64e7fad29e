"""Executes the controller's actions on Ray and turns what comes back into events.

Whatever takes time runs in an actor or a helper thread; its future puts itself into one queue when it is done, and the
driver's single thread takes from there. So nothing here needs a lock, and commits happen in one place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import ray
import ray.exceptions

from streamcl import events as e
from streamcl.cluster import server
from streamcl.cluster.commits import Commits
from streamcl.cluster.ingest import Ingesting
from streamcl.cluster.memory import Shards
from streamcl.cluster.metrics import Metrics
from streamcl.cluster.replay import Replay
from streamcl.cluster.trainer import Progress, Trainer
from streamcl.errors import StoreError, StreamclError
from streamcl.registry import upkeep
from streamcl.registry.log import Log
from streamcl.registry.requests import Answer, Beat, Request, answer, pending
from streamcl.registry.versions import CANDIDATE, Registry
from streamcl.sections import Config
from streamcl.train.model import base_digest
from streamcl.types import Version, Window

TICK_S = 0.5
"""How often the controller hears the time when nothing else happens."""
READER_DEATHS = 3
"""How often in a row the reader may die without having read anything."""
LOST = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError)
"""What an answer is when an actor that it needed, or the node that held it, has died."""


def start_ray(config: Config) -> None:
    """Joins the cluster that `ray.address` or RAY_ADDRESS names, or starts a Ray here. `ray.shutdown` ends either."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "streamcl"}
    if config.ray.json_logs:
        quiet["logging_config"] = ray.LoggingConfig(encoding="JSON")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    here = {"num_cpus": config.ray.cpus or max(4, os.cpu_count() or 1), "include_dashboard": config.ray.dashboard}
    ours = signal.getsignal(signal.SIGTERM)
    ray.init(**({"address": address} if address else here), **quiet)
    if callable(ours) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)  # Ray has put its own in the place of whoever ends the run cleanly


def stop_ray() -> None:
    """Leaves Ray. Of a Ray that `start_ray` started nothing is left; on a cluster the endpoint goes on answering."""
    ray.shutdown()


class Runtime(Commits):
    """The hands of one learner. Mutable; for one thread."""

    def __init__(self, config: Config, log: Log, *, key: bytes, owner: str) -> None:
        """`key`: the reservoir's secret. `owner`: unique for this start of the learner. Ray must be running."""
        self.config, self.log, self.key = config, log, key
        self.registry = Registry(log, config.name)
        self.recovered = upkeep.recover(self.registry)  # first: shards begin with what the log's head has
        self.base_digest = base_digest(config.model.path)
        self.inbox: queue.Queue[Callable[[], list[e.Event]]] = queue.Queue()
        self.resume: Mapping[str, int] = {}
        self.ingest: Any = None
        self.pulls: deque[Future[e.Arrival]] = deque()
        self.deaths = 0
        self.replay = Replay(config, key)
        self.memory = Shards(config.store.path, config.store.shards, config.placement.shards, run=config.name)
        self.trainer = Trainer(config, self.memory, name=owner)
        self.pool = ThreadPoolExecutor(4, thread_name_prefix="streamcl")
        self.handle: Future[Any] = self.pool.submit(server.start, config)
        self.progress: Progress | None = None
        self.swap_s: list[float] = []
        self.heard: set[str] = set()
        """Requests that are being answered."""
        self.beat = Beat(log.store, owner)
        self.beat.start()
        self.metrics = Metrics(config.name)

    def recover(self) -> tuple[Mapping[str, Any], Window | None] | None:
        """State and window in training at the newest valid commit, or None for a new run. Repairs the alias pointer."""
        record = self.recovered
        refs = record.state.get("refs") if record else None
        if record is None or not refs:
            return None
        self.registry.repair()
        standing = asdict(self.registry.standing())  # somebody else may have moved `live` while no learner was there
        state = {**json.loads(self.log.get_object(refs["learner"])), "standing": standing}
        self.resume = record.state["sources"]
        if record.state["training"] is None:
            return state, None
        return state, Window.from_json(json.loads(self.log.get_object(refs["window"])))

    def events(self) -> Iterator[e.Event]:
        """What happens, as it happens, for ever; at least a Ticked every TICK_S."""
        ticked = 0.0
        while True:
            with contextlib.suppress(queue.Empty):
                yield from self.inbox.get(timeout=TICK_S)()
            if time.monotonic() - ticked >= TICK_S:
                ticked = time.monotonic()
                self._check()
                self._later(self.trainer.progress().future(), self._advanced)
                self._later(self.pool.submit(pending, self.log.store), self._asked)
                yield e.Ticked(ticked)

    def execute(self, action: e.Action) -> None:
        """Does it, or starts doing it; the answer comes through `events`."""
        match action:
            case e.Pull():
                self._pull()
            case e.Freeze():
                self._freeze(action)
            case e.Train(window):
                self._train(window)
            case e.Publish(window, result, verdict):
                published = self._commit_version(window, result, verdict)
                self.inbox.put(lambda: [published])
            case e.Abandon(window, reason):
                self.log.append("data", why=reason, window={"id": window.id, "abandoned": True})
            case e.Swap(version):
                self._later(self.pool.submit(self._swap, version), lambda done: [e.Swapped(done.result())])
            case e.Obey(request):
                self._obey(request)
            case e.Commit(checkpoint):
                self._commit("data", checkpoint, {})
            case e.Finish():
                pass

    def close(self) -> None:
        """Ends actors and workers, and leaves Ray."""
        self.beat.close()
        self.trainer.close()
        self.pool.shutdown(wait=True, cancel_futures=True)
        if self.ingest is not None:
            self.ingest.close()
        self.replay.close()
        self.memory.close()
        stop_ray()

    # -- one method an action ------------------------------------------------------------------------------------------

    def _pull(self) -> None:
        if self.ingest is None:
            self.ingest = Ingesting(self.config, self.resume, self.key)
        future = self.ingest.pull(self.config.batch)
        self.pulls.append(future)
        self._later(future, lambda done: self._arrived())

    def _arrived(self) -> list[e.Event]:
        """Arrivals in the order they were asked for. A dead reader is replaced where the last arrival ended."""
        events: list[e.Event] = []
        while self.pulls and self.pulls[0].done():
            try:
                arrival = self.pulls[0].result()
            except LOST:
                self._replace_reader()
                break
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None  # the source's own error says what to do
            self.pulls.popleft()
            self.resume, self.deaths = arrival.resume, 0
            if len(arrival):
                self.trainer.warm()
            events.append(e.Arrived(arrival))
        return events

    def _replace_reader(self) -> None:
        """A new reader, and what was asked of the old one again.  Raises what killed it if it dies again and again."""
        self.deaths += 1
        self.metrics.failed("reader")
        if self.deaths > READER_DEATHS:
            self.pulls[0].result()
        self.ingest.close()
        count, self.ingest = len(self.pulls), None
        self.pulls.clear()
        for _ in range(count):
            self._pull()

    def _freeze(self, action: e.Freeze) -> None:
        """Offers, draws, writes, and commits the window; all of it may be repeated after a crash."""
        window = self._commit_window(action, self.replay.freeze(action))
        self.inbox.put(lambda: [e.Frozen(window)])

    def _train(self, window: Window) -> None:
        answer = self._answer(window)
        if answer is not None:
            self.inbox.put(lambda: [answer])
            return
        self.progress = None
        self._later(self.trainer.submit(window).future(), lambda done: [self._trained(window, done.result())])

    def _trained(self, window: Window, result: e.TrainResult | str) -> e.Event:
        """The result, with the digest of the base model that it should have been trained on."""
        if isinstance(result, str):
            return e.Failed(window, result)
        wanted = self.registry.get(window.base).base_digest if window.base else self.base_digest
        return e.Trained(window, replace(result, evidence=replace(result.evidence, wanted=wanted)))

    def _swap(self, version: Version) -> Version:
        handle = self.handle.result()
        started = time.monotonic()
        server.swap(handle, number=version.number)
        self.swap_s.append(time.monotonic() - started)
        self.metrics.swapped(self.swap_s[-1])
        return version

    def _obey(self, request: Request) -> None:
        if request.verb == "move":
            ready = self.pool.submit(self._prepare, request.number)
            self._later(ready, lambda done: self._move(request, done.result()))
            return
        dropped, refs = self.replay.purge(request.source)
        why = f"{dropped} rows of source {request.source!r} dropped from replay for {request.who}: {request.why}"
        self.log.append("data", state={"refs": {**self._refs(), **refs}}, why=why)
        self.registry.withdraw(CANDIDATE, why, who=request.who)  # it may have been trained on some of these rows
        answer(self.log.store, request, Answer(True, f"{dropped} rows of {request.source!r} dropped from replay"))
        self.inbox.put(lambda: [e.Purged(request.source)])

    def _prepare(self, number: int) -> str:
        """Has every replica load and try a version beside the live one; what hinders one of them, or nothing."""
        try:
            server.tell(self.handle.result(), "prepare", number)
        except (ray.exceptions.RayError, StreamclError, TimeoutError) as error:
            return str(getattr(error, "cause", error))
        return ""

    # -- inside --------------------------------------------------------------------------------------------------------

    def _later(self, future: Future[Any], meaning: Callable[[Future[Any]], list[e.Event]]) -> None:
        future.add_done_callback(lambda done: self.inbox.put(lambda: meaning(done)))

    def _check(self) -> None:
        """Raises what ended the trainer or kept the endpoint from starting."""
        self.trainer.check()
        if self.handle.done():
            self.handle.result()

    def _asked(self, done: Future[list[Request]]) -> list[e.Event]:
        """What operators ask for, once each."""
        with contextlib.suppress(OSError, StoreError):  # the store is away: they ask again
            new = [request for request in done.result() if request.id not in self.heard]
            self.heard |= {request.id for request in new}
            return [e.Requested(request) for request in new]
        return []

    def _advanced(self, done: Future[Any]) -> list[e.Event]:
        self.progress = done.result()
        return []
