"""The upkeep of a store by its writer: recovery past what is damaged, and collection of what is not needed."""

from __future__ import annotations

import re

from streamcl.registry.backends import born
from streamcl.registry.log import COLLECTED, Log
from streamcl.registry.record import Record
from streamcl.registry.versions import Registry, aliased
from streamcl.stream import segments
from streamcl.types import Version

KEEP = 64
"""Commits, fences and collections apart, whose objects stay: some twenty windows."""
_STEM = re.compile(rb"[0-9a-f]{32}-[0-9a-f]{12}")  # of a key that `put_unique` made


def collect(registry: Registry, *, keep: int = KEEP) -> list[str]:
    """Delete what is not needed any more; returns the keys. The log must hold the fence.

    Kept are: what the states of the newest `keep` commits refer to, directly or through one object; the versions that
    these commits made, the newest one, and those that an alias answers with or would go back to, with the task memory
    that each of these left: so an alias pins, and learning can go on from what is rolled back to.
    Of the rest, everything in `versions/` goes, and what in `data/` is older than all these commits: something younger
    may be on its way into a commit. Of pushed samples, the segments go that were read by the oldest of these commits.
    The `gc` commits come before the first deletion. So a writer that was replaced raises Fenced and deletes nothing,
    and no recovery goes below the commits kept. What a collector that died left over, the next one takes.
    """
    log = registry.log
    recent = _recent(log, keep)
    stems = _needed(log, recent)
    used = _in_use(registry, recent[-1])
    stems |= {_stem(ref["key"]) for version in used for ref in registry.standing_of(version.number).memory or ()}
    versions = {record.version["path"] for record in recent if record.version} | {version.path for version in used}
    before = min(record.time for record in recent)
    swept = [key for key in log.store.list("data") if (stem := _stem(key)) not in stems and born(stem) < before]
    swept += [key for key in log.store.list(f"versions/{registry.name}") if key.rpartition("/")[0] not in versions]
    read = recent[-1].state.get("sources", {})
    swept += [key for key in log.store.list(segments.FOLDER) if segments.spent(key, read)]
    for _ in range(2):  # so that recovery knows what was kept even when the newest commit is damaged
        log.append("gc", state={COLLECTED: recent[-1].n}, why=f"{len(swept)} objects are not needed any more")
    for key in swept:
        log.store.delete(key)
    log.store.tidy(before)
    return swept


def recover(registry: Registry) -> Record | None:
    """`Log.recover`, which also goes back past a newest version that is damaged: its window is trained again.

    An alias that answers with a damaged version is moved to the newest intact one, if there is one.
    """
    log = registry.log
    record = log.recover(lambda record: registry.intact(registry.newest(record)))
    for alias, n in registry.aliases().items():
        version = aliased(log.get(n))
        newest = registry.newest()
        if newest is not None and not registry.intact(version):
            registry.rollback(alias, to=newest.number, why=f"version {version.number} is damaged")
    return record


def _in_use(registry: Registry, oldest: Record) -> list[Version]:
    """The newest version, now and at the oldest commit kept, and of those that aliases have or had before."""
    numbers = set()
    for n in registry.aliases().values():
        moved = registry.log.get(n).alias or {}
        numbers |= {moved["version"]["number"], moved["before"]}
    versions = [registry.newest(), registry.newest(oldest), *(registry.get(number) for number in numbers - {None})]
    return [version for version in versions if version is not None]


def _recent(log: Log, keep: int) -> list[Record]:
    """The newest `keep` commits that may have brought something, and those between them; newest first."""
    recent: list[Record] = []
    for record in log.back():
        recent.append(record)
        keep -= record.kind not in ("fence", "gc")
        if keep <= 0 or record.n <= recent[0].state.get(COLLECTED, 0):  # below, an earlier collection has been
            break
    return recent


def _needed(log: Log, recent: list[Record]) -> set[str]:
    """Stems of the objects that the commits' states name, and of those that are named in these."""
    keys = {ref["key"] for record in recent for ref in record.state.get("refs", {}).values()}
    stems = {_stem(key) for key in keys}
    for key in keys:
        if not key.endswith(".safetensors"):  # numbers name nothing
            stems |= {stem.decode() for stem in _STEM.findall(log.store.get(key) or b"")}
    return stems


def _stem(key: str) -> str:
    return key.rpartition("/")[2].partition(".")[0]
