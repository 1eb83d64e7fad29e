"""From a version to the windows, positions, sources and samples that it was made of, and back from a sample.

All of it is in the log: a window's commit names the object that lists its rows, by file; files hold ids and sources.
One window is held at a time, and of each file two columns. What a collection has deleted is said to be gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa

from streamcl.registry.backends import CommitStore
from streamcl.registry.log import Log
from streamcl.registry.record import Record
from streamcl.registry.versions import Registry
from streamcl.types import Rows, Window

PARTS = ("samples", "again", "replay")
"""How a sample got into a window: as new, once more after a refusal, or from the reservoir."""
FILES = 64
"""Files of which the two columns are remembered: neighbouring windows share them."""


@dataclass(frozen=True)
class Used:
    """A sample in a window."""

    id: str
    source: str
    part: str
    """One of PARTS."""


@dataclass(frozen=True)
class Step:
    """One window of a lineage."""

    window: int
    task: str
    base: int
    """The version that it was trained from."""
    version: int | None
    """The version that came of it; None if it was abandoned, or is in training."""
    positions: Mapping[str, int]
    """Where reading went on after it, by partition."""
    samples: tuple[Used, ...]
    gone: tuple[str, ...]
    """What can no longer be read: keys of collected objects."""

    @property
    def sources(self) -> dict[str, int]:
        """Samples by source."""
        found: dict[str, int] = {}
        for used in self.samples:
            found[used.source] = found.get(used.source, 0) + 1
        return dict(sorted(found.items()))


def steps(registry: Registry) -> Iterator[Step]:
    """Every window that was committed, newest first; those that a rollback of the log undid as well."""
    answers: dict[int, int] = {}
    columns = lru_cache(FILES)(lambda key: _columns(registry.log.store, key))
    for record in registry.log.back():
        if record.version and record.version["name"] == registry.name:
            answers.setdefault(record.version["window"], record.version["number"])
        elif record.kind == "window" and record.window:
            yield _step(registry.log, record, answers.pop(record.window["id"], None), columns)


def of_version(registry: Registry, number: int) -> Iterator[Step]:
    """The windows that made a version, newest first: its own, that of the version it was trained from, and so on.

    Raises NoSuchVersion.
    """
    registry.get(number)
    wanted: int | None = number
    for step in steps(registry):
        if wanted and step.version == wanted:
            yield step
            wanted = step.base


def of_sample(registry: Registry, id: str) -> tuple[list[tuple[Step, str]], list[int], list[str]]:
    """The windows that a sample is in, with its part there; the versions made of them, or from these; what is gone."""
    found, gone = [], dict[str, None]()
    every = list[tuple[int, int | None]]()
    for step in steps(registry):
        every.append((step.base, step.version))
        gone |= dict.fromkeys(step.gone)
        found += [(step, used.part) for used in step.samples if used.id == id]
    return found[::-1], sorted(_descend({step.version for step, _ in found if step.version}, every)), list(gone)


def tainted(registry: Registry, source: str) -> set[int]:
    """The versions that were trained on a sample of `source`, or from one that was."""
    every, direct = list[tuple[int, int | None]](), set[int]()
    for step in steps(registry):
        every.append((step.base, step.version))
        if step.version and source in step.sources:
            direct.add(step.version)
    return _descend(direct, every)


def _descend(versions: set[int], every: list[tuple[int, int | None]]) -> set[int]:
    """These versions and those trained from them; `every`: base and version of each window, newest first."""
    found = set(versions)
    for base, version in reversed(every):
        if version and base in found:
            found.add(version)
    return found


def _step(log: Log, record: Record, version: int | None, columns: Any) -> Step:
    about = record.window or {}
    ref = record.state["refs"]["window"]
    data = log.store.get(ref["key"])
    samples, gone = list[Used](), list[str]()
    if data is None:
        gone.append(ref["key"])
    else:
        window = Window.from_json(json.loads(data))
        for part in PARTS:
            for rows in getattr(window, part):
                table = columns(rows.key)
                gone += [] if table else [rows.key]
                samples += _used(table, rows, part) if table else []
    place = (about["id"], about["task"], about["base"], version, record.state["sources"])
    return Step(*place, tuple(samples), tuple(gone))


def _used(table: Mapping[str, list[str]], rows: Rows, part: str) -> list[Used]:
    return [Used(table["id"][row], table["source"][row], part) for row in rows.rows]


def _columns(store: CommitStore, key: str) -> Mapping[str, list[str]] | None:
    """Ids and sources of a file; None if it was collected."""
    data = store.get(key)
    if data is None:
        return None
    names = pa.ipc.open_file(pa.BufferReader(data)).schema.names
    options = pa.ipc.IpcReadOptions(included_fields=[names.index("id"), names.index("source")])
    found: dict[str, list[str]] = pa.ipc.open_file(pa.BufferReader(data), options=options).read_all().to_pydict()
    return found


# -- as JSON values, and as text ---------------------------------------------------------------------------------------


def about_version(registry: Registry, number: int) -> dict[str, Any]:
    """The lineage of a version.  Raises NoSuchVersion."""
    return {"version": number, "windows": [_told(step) for step in of_version(registry, number)]}


def about_sample(registry: Registry, id: str) -> dict[str, Any]:
    """Where a sample went."""
    found, versions, gone = of_sample(registry, id)
    windows = [{"window": step.window, "task": step.task, "version": step.version, "as": part} for step, part in found]
    return {"sample": id, "windows": windows, "versions": versions, "gone": gone}


def _told(step: Step) -> dict[str, Any]:
    samples = {part: [used.id for used in step.samples if used.part == part] for part in PARTS}
    about = {name: getattr(step, name) for name in ("window", "task", "base", "version", "positions", "sources")}
    return {**about, **samples, "gone": list(step.gone)}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Either of these as text."""
    if "sample" in found:
        for window in found["windows"]:
            made = f"v{window['version']}" if window["version"] else "no version"
            yield f"window {window['window']} of {window['task']}, as {window['as']} → {made}"
        yield f"{found['sample']} is in " + (", ".join(f"v{n}" for n in found["versions"]) or "no version")
        if found["gone"]:
            yield f"{len(found['gone'])} objects were collected: windows in them cannot be looked into"
        return
    for step in found["windows"]:
        counts = ", ".join(f"{len(step[part])} {part}" for part in PARTS if step[part])
        sources = ", ".join(f"{source or '-'} {count}" for source, count in step["sources"].items())
        positions = ", ".join(f"{partition}: {at}" for partition, at in step["positions"].items())
        yield f"v{step['version']} ← window {step['window']} of {step['task']} from v{step['base']}: {counts}"
        yield f"    sources {sources}; read up to {positions}"
        if step["gone"]:
            yield f"    {len(step['gone'])} objects of it were collected"
