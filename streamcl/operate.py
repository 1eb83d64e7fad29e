"""What an operator does to a run: make a version live, go back, drop a source; through its learner, or without one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from streamcl.config import load
from streamcl.errors import Refused
from streamcl.learner import reservoir_key, resolve
from streamcl.lineage import tainted
from streamcl.registry.log import Log
from streamcl.registry.requests import Request, ask, move
from streamcl.registry.stores import open_store
from streamcl.registry.versions import CANDIDATE, Registry
from streamcl.sections import Config
from streamcl.types import Version


@dataclass(frozen=True)
class Run:
    """A run's configuration, and its store as an operator sees it. For one thread."""

    config: Config
    registry: Registry

    @property
    def log(self) -> Log:
        return self.registry.log

    @property
    def live(self) -> int:
        """The version that answers; 0 for the bare base."""
        version = self.registry.resolve("live")
        return version.number if version else 0


def opened(file: str, overrides: Sequence[str]) -> Run:
    """The run of a configuration.  Raises ConfigError."""
    config = resolve(load(file, overrides))
    return Run(config, Registry(Log(open_store(config.store.path)), config.name))


def make_live(run: Run, number: int, *, why: str) -> str:
    """Version `number` answers from now on. Its files are checked, and every replica that can be told has loaded it,
    before the alias moves.  Raises NoSuchVersion, Corrupt or Refused: then nothing has moved.
    """
    run.registry.read(run.registry.get(number))
    return _done(run, Request("move", number=number, expects=run.live, why=why))


def go_back(run: Run, to: int | None = None, *, why: str) -> str:
    """The version that answered before, or `to`, answers again."""
    return make_live(run, run.registry.earlier() if to is None else to, why=why)


def purge(run: Run, source: str, *, why: str) -> tuple[str, list[int], Version | None]:
    """Drops a source's rows from replay; then the versions that were trained on some, and the newest that was not."""
    given = _done(run, Request("purge", source=source, why=why))
    stained = tainted(run.registry, source)
    versions = [version for version in run.registry.versions() if version.number not in stained]
    return given, sorted(stained), _newest_readable(run.registry, versions)


def _newest_readable(registry: Registry, versions: Sequence[Version]) -> Version | None:
    return next((version for version in reversed(versions) if registry.intact(version)), None)


def _done(run: Run, request: Request) -> str:
    """What came of the request: the learner's answer, or ours where no learner lives.  Raises Refused."""
    answered = ask(run.log.store, request)
    if answered is not None and not answered.done:
        raise Refused(answered.text)
    if answered is not None:
        return answered.text
    run.log.acquire(request.who)
    return _moved(run, request) if request.verb == "move" else _purged(run, request)


def _moved(run: Run, request: Request) -> str:
    """Without a learner: through Ray where the run has an address, or else replicas see it within a second."""
    address = run.config.ray.address or os.environ.get("RAY_ADDRESS")
    if not address:
        move(run.registry, request)
        return f"v{request.number} is live; no learner runs: replicas, if any, see it within a second"
    from streamcl.cluster import runtime, server

    runtime.start_ray(run.config)
    try:
        handle = server.running()
        told = server.tell(handle, "prepare", request.number) if handle else []
        move(run.registry, request)
        if handle:
            server.tell(handle, "follow")
    finally:
        runtime.stop_ray()
    return f"v{request.number} is live on {len(told)} replicas; no learner runs"


def _purged(run: Run, request: Request) -> str:
    from streamcl.cluster.replay import PREFIX, empty

    key, head, dropped = reservoir_key(run.config, run.log.store), run.log.head(), 0
    refs = dict(head.state.get("refs", {})) if head else {}
    for name in [name for name in refs if name.startswith(PREFIX)]:
        part = empty(run.config, key)
        part.restore(run.log.get_object(refs[name]))
        dropped += part.purge(request.source)
        refs[name] = run.log.put_object("replay", part.snapshot(), "arrow")
    why = f"{dropped} rows of source {request.source!r} dropped from replay for {request.who}: {request.why}"
    run.log.append("data", state={"refs": refs}, why=why)
    run.registry.withdraw(CANDIDATE, why, who=request.who)
    return f"{dropped} rows of {request.source!r} dropped from replay"
