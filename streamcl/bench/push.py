"""Push: endpoints killed while producers post; every 202 is found in the log, every key is counted once.

    python -m streamcl.bench.push                  everything; about ten minutes
    python -m streamcl.bench.push --only process   one part; the others stay as they were measured last

Parts: `process` (the endpoint as a process of its own, and a learner behind it that is killed too), `ray` (the
deployment on Ray Serve, its replica killed), `early` (an endpoint that answers before it has written: must be caught),
`power` (simulated power cuts under the log; a writer that does not sync must be caught).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.bench import push_power
from streamcl.bench.push_clients import Endpoint, OnRay, Process, Producer
from streamcl.bench.push_learner import judged
from streamcl.bench.report import Claim, about, save, saved
from streamcl.stream.segments import FOLDER, Segments
from streamcl.testing import free_port

COMMAND = "python -m streamcl.bench.push"
PARTS = ("power", "process", "early", "ray")
PRODUCERS = 8
KILLS = {"process": 24, "ray": 6, "early": 4}
CUTS = 200
CALM_S = 8.0
"""How long the producers post before the first kill, and are timed."""
LEARNER = [sys.executable, "-m", "streamcl.bench.push_learner"]
WRONG = ("missing", "twice", "unknown", "unbalanced", "uncounted", "dead", "refused")


@contextlib.contextmanager
def learning(store: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A learner beside the endpoint. `kill` it by ending the last process of the list and appending another."""
    lives = [subprocess.Popen([*LEARNER, str(store)])]
    try:
        yield lives
    finally:
        lives[-1].kill()
        lives[-1].wait()


def killed(endpoint: Endpoint, store: Path, kills: int, *, seed: int = 0) -> dict[str, Any]:
    """Kills the endpoint while eight producers post, and every fourth time its learner; what was found in the end."""
    dice, deaths = random.Random(seed), 0
    endpoint.start()
    producers = [Producer(endpoint.url, number) for number in range(PRODUCERS)]
    with learning(store) as lives:
        for producer in producers:
            producer.start()
        time.sleep(CALM_S)
        calm = [second for producer in producers for second in [*producer.seconds]]
        for number in range(kills):
            time.sleep(dice.uniform(0.1, 1.5))
            endpoint.kill()
            if number % 4 == 3:
                lives[-1].kill()
                lives[-1].wait()
                deaths += 1
                lives.append(subprocess.Popen([*LEARNER, str(store)]))
            endpoint.start()
        time.sleep(1.0)
        for producer in producers:
            producer.close()
    endpoint.close()
    subprocess.run([*LEARNER, str(store), "end"], check=True)
    return {"kills": kills, "learner_kills": deaths, **_found(store, producers), **_timed(calm)}


def _found(store: Path, producers: Sequence[Producer]) -> dict[str, Any]:
    answered = {key: ids for producer in producers for key, ids in producer.ids.items()}
    refused = [text for producer in producers for text in producer.refused]
    tries = sum(producer.tries.total() for producer in producers)
    segments = Segments(str(store / FOLDER))
    return {
        **judged(store, answered, [id for ids in answered.values() for id in ids]),
        "refused": len(refused),
        "keys": len(answered),
        "requests": tries,
        "shards": len(segments.shards()),
        "segments": sum(len(segments.sizes(shard)) for shard in segments.shards()),
    }


def _timed(seconds: Sequence[float]) -> dict[str, Any]:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return {"posts_per_s": round(len(seconds) / CALM_S), "p50_ms": round(p50, 1), "p99_ms": round(p99, 1)}


def cuts(folder: Path) -> dict[str, Any]:
    """Simulated power cuts: how many lose something promised, with our writer and with one that does not sync."""
    ours = sum(push_power.lost(folder, seed) > 0 for seed in range(CUTS))
    careless = sum(push_power.lost(folder, seed + CUTS, honest=False) > 0 for seed in range(CUTS))
    return {"cuts": CUTS, "lossy": ours, "lossy_without_sync": careless}


def measured(part: str) -> dict[str, Any]:
    """One part, in a folder on the disk."""
    with tempfile.TemporaryDirectory(prefix="streamcl-bench-") as name:
        store = Path(name) / "store"
        if part == "power":
            store.mkdir()
            return {"part": part, **cuts(store)}
        endpoint: Endpoint = OnRay(store, free_port()) if part == "ray" else Process(
            store, free_port(), "early" if part == "early" else ""
        )  # fmt: skip
        return {"part": part, **killed(endpoint, store, KILLS[part])}


def claims(rows: dict[str, dict[str, Any]]) -> list[Claim]:
    """What the rows say about line 6.3."""
    process, ray, early, power = (rows[part] for part in ("process", "ray", "early", "power"))
    kills, deaths = process["kills"] + ray["kills"], process["learner_kills"] + ray["learner_kills"]
    whole = {name: process[name] + ray[name] for name in (*WRONG, "promised", "keys", "requests", "dup")}
    again = whole["requests"] - whole["keys"]
    value = (
        f"{kills} kills ({ray['kills']} of a replica on Ray Serve), the learner killed {deaths} times: {whole['keys']} "
        f"keys with {whole['promised']} samples answered, {whole['missing']} missing, {whole['twice']} counted twice, "
        f"{whole['unbalanced']} unbalanced; {again} requests came again, {whole['dup']} samples were read again. "
        f"{power['cuts']} simulated power cuts: {power['lossy']} lost something. Caught: 202 before the write "
        f"({early['missing']} missing after {early['kills']} kills), no sync ({power['lossy_without_sync']} of "
        f"{power['cuts']} cuts). {process['posts_per_s']} posts/s, p50 {process['p50_ms']}, p99 {process['p99_ms']} ms"
    )
    caught = early["missing"] > 0 and power["lossy_without_sync"] > 0
    what = "SIGKILL of the endpoint at random while 8 producers post; then the learner's log, against what was answered"
    bar = ">= 20 kills; every 202 found, every key counted once; writers that promise too early are caught"
    right = not any(part[name] for part in (process, ray) for name in WRONG) and power["lossy"] == 0
    holds = kills >= 20 and right and again > 0 and caught
    return [Claim("6.3", what, bar, value, holds, COMMAND)]


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--json", action="store_true", help="print the rows too")
    args = parser.parse_args()
    for part in [args.only] if args.only else PARTS:
        started = time.monotonic()
        row = {**measured(part), "wall_s": round(time.monotonic() - started)}
        print(json.dumps(row), file=sys.stdout if args.json else sys.stderr, flush=True)
        keep(row)


def keep(row: dict[str, Any]) -> None:
    """Writes the result anew, with this part's row in place of its last one."""
    rows = {old["part"]: old for old in saved("push")["rows"]}
    rows[row["part"]] = row
    found = claims(rows) if {*rows} == {*PARTS} else []
    save("push", about(seeds=[0]), rows=[rows[part] for part in PARTS if part in rows], claims=found)


if __name__ == "__main__":
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    main()
