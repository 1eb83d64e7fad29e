"""The same stream through each connector: `streamcl run` on real Ray must end with the same counts and reservoir."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import yaml

from streamcl.bench import connectors_streams as streams
from streamcl.bench.report import Claim
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.store import snapshot
from streamcl.testing import free_port, kill_tree
from streamcl.testing.broker import Broker, broker

COMMAND = "python -m streamcl.bench.connectors"
TRAIN, TEST = 150, 10
LONGEST_S = 900.0
Rows = list[dict[str, Any]]
Result = dict[str, Any]


@contextmanager
def started(folder: Path, source: dict[str, Any], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`streamcl run` over a source, in a process of its own; killed with all it started if it is left running."""
    values = {
        "name": "connectors",
        "store": {"path": str(folder / "store")},
        "model": {"path": "zoo:small", "lora": {"r": 4, "alpha": 8}},
        "source": source,
        "detector": {"kind": "labels"},
        "strategy": {"kind": "replay", "replay_rows": 16},
        "window": {"samples": 1000, "age_s": 20.0},
        "replay": {"capacity": 40, "key": "seed"},
        "train": {"epochs": 1, "batch_size": 16},
        "evaluate": {"path": str(folder.parent / "zoo" / "test"), "samples": 4},
        "serve": {"port": port},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "streamcl.cli", "run", str(folder / "run.yaml"), "--json"]
    quiet = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=quiet)
    try:
        yield process
    finally:
        if process.poll() is None:
            kill_tree(process.pid)


def outcome(store: Path) -> Result:
    """Counters, and by task the hashes of the ids in the reservoir."""
    log = Log(open_store(str(store)))
    head = log.head()
    assert head is not None, "the run wrote nothing"
    parts = [
        part
        for name, ref in head.state["refs"].items()
        if name.startswith("replay/")
        for part in snapshot.unpack(log.get_object(ref))[1]
    ]
    kept = {f"{p.task}{' held out' if p.held else ''}": sorted(map(int, p.rows.hash)) for p in parts}
    return {"counters": head.state["counters"], "reservoir": kept}


def finished(process: subprocess.Popen[bytes], folder: Path, *, endless: int = 0) -> Result:
    """What a run ended with. `endless`: it is stopped once so many rows are accounted for."""
    until = time.monotonic() + LONGEST_S
    while process.poll() is None:
        if time.monotonic() > until:
            raise RuntimeError(f"{folder.name} takes more than {LONGEST_S} s: {(folder / 'log').read_text()[-1000:]}")
        if endless and _accounted(folder / "store") == endless:
            process.send_signal(signal.SIGINT)
            endless = 0
        time.sleep(0.5)
    if process.returncode:
        raise RuntimeError(f"{folder.name} ended with {process.returncode}: {(folder / 'log').read_text()[-3000:]}")
    return outcome(folder / "store")


def _accounted(store: Path) -> int:
    head = Log(open_store(str(store))).head() if store.exists() else None
    counters = head.state.get("counters", {}) if head else {}
    return int(counters.get("in", 0)) - int(counters.get("pending", 0)) if counters else -1


def tailed(folder: Path, rows: Rows) -> Result:
    """A folder that is empty as the run starts; files are added, and one grows in the middle of a line."""
    data = folder / "data"
    data.mkdir()
    third = len(rows) // 3
    with started(folder, {"kind": "files", "path": str(data), "tail": True}, free_port()) as process:
        (data / "a.jsonl").write_bytes(streams.lines(rows[:third]))
        time.sleep(20)
        packed = streams.lines(rows[third : 2 * third])
        with (data / "a.jsonl").open("ab") as growing:
            growing.write(packed[: len(packed) // 2])
            growing.flush()
            time.sleep(5)
            growing.write(packed[len(packed) // 2 :])
        pq.write_table(streams.table(rows[2 * third :]), data / "_b.parquet")
        (data / "_b.parquet").rename(data / "b.parquet")
        return finished(process, folder, endless=len(rows))


def kafka(folder: Path, rows: Rows) -> Result:
    """Three partitions."""
    (folder / "broker").mkdir()
    with broker(folder / "broker") as running:
        _produce(running, rows)
        source = {"kind": "kafka", "brokers": running.hosts, "topics": ["quickstart"]}
        with started(folder, source, free_port()) as process:
            return finished(process, folder, endless=len(rows))


def _produce(running: Broker, rows: Rows) -> None:
    running.create("quickstart", 3)
    with running.producer() as producer:
        for number, row in enumerate(rows):
            producer.produce("quickstart", json.dumps(streams.as_json(row)).encode(), partition=number % 3)


def push(folder: Path, rows: Rows) -> Result:
    """Posted in batches of 25 to the run's endpoint, which refuses what has no sample's structure at once."""
    port, rejected = free_port(), 0
    with started(folder, {"kind": "push"}, port) as process, httpx.Client(timeout=60.0) as client:
        for start in range(0, len(rows), 25):
            samples = [streams.as_json(row) for row in rows[start : start + 25]]
            while (told := _posted(client, port, samples, key=f"batch-{start}")) is None and process.poll() is None:
                time.sleep(1.0)
            rejected += told or 0
        result = finished(process, folder, endless=len(rows) - rejected)
    counters = result["counters"]
    counters["in"], counters["dead"] = counters["in"] + rejected, counters["dead"] + rejected
    return {**result, "rejected": rejected}


def _posted(client: httpx.Client, port: int, samples: Rows, *, key: str) -> int | None:
    """How many of the samples were rejected; None if they must be posted again."""
    url, headers = f"http://127.0.0.1:{port}/v1/samples", {"Idempotency-Key": key}
    try:
        answer = client.post(url, json={"samples": samples}, headers=headers)
    except httpx.TransportError:
        return None
    return len(answer.json()["rejected"]) if answer.status_code == 202 else None


LIVE: dict[str, Callable[[Path, Rows], Result]] = {"files: tailed": tailed, "kafka": kafka, "push": push}


NAMES = (*streams.WRITTEN, *LIVE)


def measured(kept: Path) -> tuple[list[Result], list[Claim]]:
    """Every connector; those that the folder `kept` has a result of are not run again."""
    return claims([measure(name, kept) for name in NAMES])


def measure(name: str, kept: Path) -> Result:
    """Runs one connector, unless the folder `kept` has its result."""
    path = kept / f"run-{NAMES.index(name)}.json"
    if not path.exists():
        with tempfile.TemporaryDirectory(prefix="streamcl-connectors-") as root:
            rows = streams.records(streams.samples_of(Path(root) / "zoo", train=TRAIN, test=TEST))
            folder, begun = Path(root) / "run", time.monotonic()
            folder.mkdir()
            result = LIVE[name](folder, rows) if name in LIVE else _written(name, folder, rows)
        path.write_text(json.dumps({"connector": name, "wall_s": time.monotonic() - begun, **result}))
    found: Result = json.loads(path.read_text())
    return found


def _written(name: str, folder: Path, rows: Rows) -> Result:
    (folder / "data").mkdir()
    with started(folder, streams.WRITTEN[name](folder / "data", rows), free_port()) as process:
        return finished(process, folder)


def claims(results: list[Result]) -> tuple[list[Result], list[Claim]]:
    """Each connector's row, and whether all ended as the first did."""
    first, total = results[0], len(streams.TASKS) * TRAIN
    expected = {"in": total + streams.REFUSED, "accepted": total, "dead": streams.REFUSED}
    rows = [
        {**{name: r[name] for name in ("connector", "counters", "wall_s")}, "equal": _end(r) == _end(first)}
        for r in results
    ]
    odd = [row["connector"] for row in rows if not row["equal"]]
    right = {name: first["counters"][name] for name in expected} == expected
    size = sum(map(len, first["reservoir"].values()))
    named = "; ".join(row["connector"] for row in rows)
    what = (
        f"the quickstart's tasks, {TRAIN} samples each and {streams.REFUSED} bad ones, through `streamcl run`: {named}"
    )
    value = f"{len(rows) - len(odd)} of {len(rows)} equal: {expected}, {size} ids in the reservoir"
    value += f"; other: {', '.join(odd)}" if odd else ""
    value += "".join(
        f"; {r['rejected']} of push's bad ones was told to its producer" for r in results if r.get("rejected")
    )
    return rows, [Claim("6.1", what, "the same counts and reservoir as files", value, not odd and right, COMMAND)]


def _end(result: Result) -> tuple[Any, Any]:
    return result["counters"], result["reservoir"]
