"""Versions are swapped under an endpoint of two replicas, while a client asks at a steady rate: what it notices.

Phases without and with swaps take turns in one run. Every answer is made again, alone, by the version that it names.
Beside it, in the same run and on the same Ray, two ways of doing the same without streamcl: `serving_controls`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from streamcl.bench.reliability_client import PATIENT
from streamcl.bench.report import Claim
from streamcl.learner import resolve
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.registry.versions import Registry
from streamcl.sections import Config, ServeConfig, StoreConfig
from streamcl.serve.client import body
from streamcl.serve.engine import Engine, Request
from streamcl.stream import Files
from streamcl.testing import free_port
from streamcl.train.model import base_digest, fresh, grow, load_base, params_of, to_bytes, to_files
from streamcl.train.settings import ModelConfig
from streamcl.types import Sample, from_batch
from streamcl.zoo import load_task

COMMAND = "python -m streamcl.bench.serving swaps"
VERSIONS, QUESTIONS, TOKENS = 8, 12, 3
PER_SECOND, EVERY_S = 11.0, 2.0


@dataclass(frozen=True)
class Phase:
    """Some seconds of the run, with or without swaps."""

    swapping: bool
    begin: float
    end: float


@dataclass(frozen=True)
class Measured:
    """What was asked and came of it, the phases, and the seconds of each swap."""

    asked: list[dict[str, Any]]
    phases: list[Phase]
    took: list[float]


Swap = Callable[[int], None]
"""Makes a version the one that answers, and returns when it does."""


def config(folder: Path) -> Config:
    """Two replicas of the zoo's model; the stream is never read."""
    serve = ServeConfig(port=free_port(), replicas=2)
    return resolve(
        Config(StoreConfig(str(folder / "store")), ModelConfig("zoo:small"), Files(str(folder)), "swapped", serve=serve)
    )


def publish(config: Config) -> Registry:
    """Random adapters of the configured form as versions 1 to VERSIONS, the first one live."""
    log = Log(open_store(config.store.path))
    log.acquire("bench")
    registry = Registry(log, config.name)
    digest = base_digest(config.model.path)
    for number in range(1, VERSIONS + 1):
        files = random_files(config, number)
        registry.publish(files, window=number, task="random", base_digest=digest, scores={})
    registry.promote(1)
    return registry


def random_files(config: Config, seed: int) -> dict[str, bytes]:
    """An adapter of the configured form, so large that it babbles, each in its own way, and does not end by itself."""
    shapes = params_of(grow(load_base(config.model), config.model.lora, seed=0))
    generator = torch.Generator().manual_seed(seed)
    values = {
        name: value if "lora_A" in name else torch.randn(value.shape, generator=generator)
        for name, value in fresh(shapes, seed=seed).items()
    }
    return to_files(config.model.lora, to_bytes(values))


def questions() -> list[Sample]:
    rows = (load_task(task, "test").slice(0, QUESTIONS // 2) for task in ("digits", "animals"))
    return [sample for table in rows for sample in from_batch(table)]


@contextmanager
def cluster(config: Config) -> Iterator[None]:
    """A Ray of its own."""
    os.environ.update(PATIENT)
    from streamcl.cluster import runtime

    runtime.start_ray(config)
    try:
        yield
    finally:
        runtime.stop_ray()


def moved(config: Config, registry: Registry, handle: Any) -> Swap:
    """Swaps as streamcl does them."""
    from streamcl.cluster import server

    def swap(number: int) -> None:
        registry.promote(number)
        answers = server.tell(handle, "follow")
        assert answers == [number] * config.serve.replicas, answers

    return swap


def measure(config: Config, swap: Swap, plan: Sequence[tuple[bool, float]]) -> Measured:
    """Asks through all phases of `plan` (swapping, seconds)."""
    bodies = [body(sample, model=config.name) | {"max_tokens": TOKENS} for sample in questions()]
    url = f"http://{config.serve.host}:{config.serve.port}"
    sent = {"url": url, "bodies": bodies, "per_second": PER_SECOND, "seconds": sum(s for _, s in plan) + 4}
    command = [sys.executable, "-m", "streamcl.bench.serving_client"]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdin is not None
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append(client.stdout.read() if client.stdout else ""))
    client.stdin.write(json.dumps(sent))
    client.stdin.close()
    reader.start()
    time.sleep(3.0)
    phases, swaps = list[Phase](), list[float]()
    for swapping, seconds in plan:
        begin = time.time()
        while (left := begin + seconds - time.time()) > 0:
            if swapping:
                started = time.time()
                swap((len(swaps) + 1) % VERSIONS + 1)
                swaps.append(time.time() - started)
                left = min(left, EVERY_S - swaps[-1])
            time.sleep(max(0.0, left))
        phases.append(Phase(swapping, begin, time.time()))
    reader.join()
    return Measured([json.loads(line) for line in said[0].splitlines()], phases, swaps)


def audit(config: Config, registry: Registry, asked: Sequence[dict[str, Any]]) -> tuple[int, float]:
    """How many answers the version that they name does not give, asked alone; and how many different answers there are
    to a question, on average: were it one, nothing could be found wrong.
    """
    samples, wrong, truths = questions(), 0, list[list[str]]()
    with closing(Engine(load_base(config.model), config.model.lora, max_batch=1)) as engine:
        for number in sorted({one["version"] for one in asked if "answer" in one}):
            version = registry.get(number)
            engine.load(number, version.digest, registry.read(version))
            requests = [Request(one.messages[:-1], one.images, TOKENS) for one in samples]
            truth = [answer.text for answer in engine.answer(requests)]
            truths.append(truth)
            wrong += sum(
                one["answer"] != truth[one["body"]] or one["digest"] != version.digest
                for one in asked
                if one.get("version") == number
            )
    return wrong, sum(len(set(answers)) for answers in zip(*truths, strict=True)) / len(samples)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def times(asked: Sequence[dict[str, Any]], phases: Sequence[Phase], *, swapping: bool) -> list[float]:
    """Seconds of the answers that were due in phases of one kind."""
    mine = [phase for phase in phases if phase.swapping == swapping]
    return [one["seconds"] for one in asked if any(phase.begin <= one["due"] < phase.end for phase in mine)]


def swaps(rounds: int, quiet_s: float, swapping_s: float) -> tuple[list[dict[str, Any]], list[Claim]]:
    """`rounds` quiet phases and as many with swaps, in turn; a round of each control after them."""
    from streamcl.bench import serving_controls

    with tempfile.TemporaryDirectory(prefix="streamcl-serving-") as folder:
        settings = config(Path(folder))
        registry = publish(settings)
        plan = [(False, quiet_s), (True, swapping_s)]
        with cluster(settings):
            from streamcl.cluster import server

            handle = server.start(settings)
            found = {"streamcl": measure(settings, moved(settings, registry, handle), plan * rounds)}
            serving_controls.stop(server.APP)
            for way in serving_controls.WAYS:
                with serving_controls.running(settings, registry, Path(folder), way) as swap:
                    found[way] = measure(settings, swap, plan)
        rows = [row_of(way, measured, *audit(settings, registry, measured.asked)) for way, measured in found.items()]
    return rows, [_claim(rows[0], rows[1:])]


def row_of(way: str, measured: Measured, wrong: int, distinct: float) -> dict[str, Any]:
    asked, took = measured.asked, measured.took
    failed = [one for one in asked if "answer" not in one]
    calm, busy = (times(asked, measured.phases, swapping=swapping) for swapping in (False, True))
    return {
        "part": "swaps", "way": way, "asked": len(asked), "failed": len(failed),
        "errors": [one["error"] for one in failed[:5]], "wrong": wrong, "distinct": distinct, "versions": VERSIONS,
        "per_second": PER_SECOND, "swaps": len(took), "swap_s": {"p50": percentile(took, 0.5), "max": max(took)},
        "quiet": {"n": len(calm), "p50": percentile(calm, 0.5), "p99": percentile(calm, 0.99)},
        "swapping": {"n": len(busy), "p50": percentile(busy, 0.5), "p99": percentile(busy, 0.99)},
        "seconds": sum(phase.end - phase.begin for phase in measured.phases),
        "slowest": [{"due_s": round(one["due"] - asked[0]["due"], 1), "seconds": round(one["seconds"], 2)}
                    for one in sorted(asked, key=lambda one: -one["seconds"])[:24]],
        "phases": [{"swapping": phase.swapping, "begin_s": round(phase.begin - asked[0]["due"], 1),
                    "p99": percentile(times(asked, [phase], swapping=phase.swapping), 0.99)}
                   for phase in measured.phases],
    }  # fmt: skip


def _claim(row: dict[str, Any], controls: Sequence[dict[str, Any]]) -> Claim:
    beside = "; ".join(
        f"{one['way']}: {one['swaps']} swaps, failed {one['failed']} and wrong {one['wrong']} of {one['asked']}, p99 x "
        f"{one['swapping']['p99'] / one['quiet']['p99']:.1f}"
        for one in controls
    )
    calm, busy, ratio = row["quiet"], row["swapping"], row["swapping"]["p99"] / row["quiet"]["p99"]
    enough = row["swaps"] >= 100 and row["seconds"] >= 300
    return Claim(
        "7.2",
        f"{row['swaps']} swaps in {row['seconds'] / 60:.1f} minutes under {row['per_second']:g} requests a second on 2 "
        "replicas: failed, and other than what the named version gives; p99 while swapping over p99 without",
        ">= 100 swaps in >= 5 minutes: 0, 0; <= 1.2",
        f"{row['failed']} and {row['wrong']} of {row['asked']} (the versions give {row['distinct']:.1f} different "
        f"answers to a question); {ratio:.2f} ({1e3 * busy['p99']:.0f} ms over "
        f"{1e3 * calm['p99']:.0f} ms; p50 {1e3 * busy['p50']:.0f} and {1e3 * calm['p50']:.0f}); a swap takes "
        f"{1e3 * row['swap_s']['p50']:.0f} ms, at most {1e3 * row['swap_s']['max']:.0f}. Controls: {beside}",
        enough and not row["failed"] and not row["wrong"] and ratio <= 1.2,
        COMMAND,
    )
