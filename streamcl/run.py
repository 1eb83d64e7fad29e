"""What the commands do: run to the end with a client beside it, serve only, tell the status of a store."""

from __future__ import annotations

import contextlib
import io
import json
import random
import time
from collections.abc import Sequence
from typing import Any

import httpx
from rich.console import Console

from streamcl import console as screen
from streamcl.journal import Journal
from streamcl.learner import Learned, Learner
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.registry.versions import Registry
from streamcl.report import draw, matrix, summary, versions_of
from streamcl.sections import Config
from streamcl.serve.client import Asked, Asker, ask, audit
from streamcl.serve.engine import Engine
from streamcl.stream import Files
from streamcl.train.model import load_base
from streamcl.types import Sample, from_batch


def run_to_the_end(learner: Learner, *, quiet: bool = False) -> dict[str, Any]:
    """Runs the learner with progress on the terminal and a client beside it; the summary, also written to the store.

    `quiet`: progress goes to standard error, so that standard output is free.
    """
    console = Console(stderr=quiet, soft_wrap=True)
    config = learner.config
    questions = _questions(config)
    asker = _asker(learner, questions)
    with Journal(config.name) if config.ray.json_logs else screen.Screen(console) as shown:
        shown.began(config.name, store=config.store.path, url=f"{learner.url}/v1")

        def watch(happening: object) -> None:
            shown.watch(happening)
            if learner.serving and asker is not None and not asker.started:
                asker.start()
            if isinstance(happening, screen.LAST) and asker is not None:
                asker.stop()

        for learned in learner.run(watch):
            shown.learned(learned)
            if not learned.refused and (asked := _ask_after(learner, learned, questions)):
                shown.answered(asked)
    asked_all = asker.asked if asker else []
    result = _conclude(learner, asked_all)
    if not config.ray.json_logs:
        _print_end(console, learner, result)
    return result


def serve_until_stopped(config: Config) -> None:
    """Starts the endpoint and lets it follow the registry until Ctrl-C."""
    from streamcl.cluster import runtime, server

    runtime.start_ray(config)
    server.start(config)
    where = f"http://{config.serve.host}:{config.serve.port}/v1"
    Console().print(f"[bold]{config.name}[/] answers at {where}  (Ctrl-C ends)")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
    runtime.stop_ray()


def _questions(config: Config) -> dict[str, list[Sample]]:
    """Some samples of each evaluation file, by task."""
    if not config.evaluate.path:
        return {}
    source = Files(path=config.evaluate.path)
    found: dict[str, list[Sample]] = {}
    for partition in source.partitions():
        polled = source.open(partition, 0).poll(32)
        for sample in from_batch(polled.batch) if polled else []:
            found.setdefault(sample.task or partition, []).append(sample)
    return found


def _asker(learner: Learner, questions: dict[str, list[Sample]]) -> Asker | None:
    """The client of `ask.per_second`, or None where it is off or has nothing to ask."""
    config = learner.config
    if config.ask.per_second <= 0 or not questions:
        return None
    mixed = [sample for samples in questions.values() for sample in samples[:4]]
    random.Random(config.seed).shuffle(mixed)
    return Asker(learner.url, mixed, model=config.name, per_second=config.ask.per_second)


def _ask_after(learner: Learner, learned: Learned, questions: dict[str, list[Sample]]) -> Asked | None:
    """One question to the live endpoint, about the task just learned if that has a name."""
    dice = random.Random(learned.version.number)
    asked_of = questions.get(learned.task) or [sample for samples in questions.values() for sample in samples]
    if not asked_of:
        return None
    sample = dice.choice(asked_of)
    with httpx.Client(base_url=learner.url, timeout=60.0) as client:
        return ask(client, sample, model=learner.config.name)


def _conclude(learner: Learner, asked: Sequence[Asked]) -> dict[str, Any]:
    """Audits the answers, writes summary.json and matrix.png, and returns the summary."""
    config = learner.config
    log = Log(open_store(config.store.path))
    registry = Registry(log, config.name)
    wrong: list[Asked] = []
    if any(one.answer is not None for one in asked):
        with contextlib.closing(Engine(load_base(config.model), config.model.lora)) as engine:
            wrong = audit(asked, engine, lambda number: (version := registry.get(number), registry.read(version)))
    failed = [one for one in asked if one.answer is None]
    requests = {"total": len(asked), "failed": len(failed), "mismatched": len(wrong)}
    result = summary(log, seconds=learner.seconds, requests=requests)
    log.store.put("summary.json", json.dumps(result, indent=1).encode())
    found = matrix(versions_of(log))
    if found is not None:
        kind = type(config.strategy).__name__
        picture = io.BytesIO()
        draw(found, picture, title=f"{config.name}: exact match, {kind}, seed {config.seed}")
        log.store.put("matrix.png", picture.getvalue())
    return result


def _print_end(console: Console, learner: Learner, result: dict[str, Any]) -> None:
    found = matrix(versions_of(Log(open_store(learner.config.store.path))))
    if found is None:
        console.print("no task is finished yet; the same command goes on")
        return
    console.print(screen.table(found, title="exact match of the greedy answer"))
    console.print(screen.headline(result))
    requests = result["requests"]
    if requests["total"]:
        console.print(
            f"{requests['total']} requests while learning: {requests['failed']} failed, "
            f"{requests['mismatched']} answered by another version than they name"
        )
    console.print(f"summary {learner.config.store.path}/summary.json   picture {learner.config.store.path}/matrix.png")
