"""Tokens a second of the engine beside plain transformers `generate`, with the same model and adapters, in one run.

Closed-loop clients: each asks its next question when it has its answer. `generate` answers one request at a time, as a
server without batching does. Both take turns at each number of clients.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import torch
from transformers import GenerationConfig

from streamcl.bench.report import Claim
from streamcl.bench.serving_swaps import percentile, questions, random_files
from streamcl.learner import resolve
from streamcl.sections import Config, StoreConfig
from streamcl.serve.engine import Engine, Request
from streamcl.serve.generate import encode
from streamcl.stream import Files
from streamcl.train.model import load_base
from streamcl.train.settings import ModelConfig

COMMAND = "python -m streamcl.bench.serving speed"
CLIENTS = (1, 4, 16)
TOKENS, VERSIONS = 24, 4
Ask = Callable[[Request], int]
"""Answers a request; how many tokens that took."""


def plain(engine: Engine) -> Ask:
    """transformers' own `generate` on the engine's base and live adapter, one request at a time."""
    lock, base, slots = threading.Lock(), engine._base, engine._slots
    settings = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, pad_token_id=0, eos_token_id=2)

    def ask(request: Request) -> int:
        with lock, torch.no_grad():
            inputs = encode(base.processor, request, context=512).inputs
            ids = slots.model.generate(**inputs, generation_config=settings)
            return int(ids.shape[1] - inputs["input_ids"].shape[1])

    return ask


def drive(ask: Ask, requests: Sequence[Request], clients: int, seconds: float) -> tuple[float, list[float]]:
    """Tokens a second of `clients` clients, and the seconds of each answer."""
    end, tokens, took = time.monotonic() + seconds, list[int](), list[float]()

    def client(index: int) -> None:
        while (started := time.monotonic()) < end:
            tokens.append(ask(requests[index % len(requests)]))
            took.append(time.monotonic() - started)
            index += clients

    started = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return sum(tokens) / (time.monotonic() - started), took


def speed(seconds: float, rounds: int) -> tuple[list[dict[str, Any]], list[Claim]]:
    """`rounds` turns of `seconds` each of generate, the engine with one adapter, and with four at once."""
    torch.set_num_threads(1)
    config = resolve(Config(StoreConfig("unused"), ModelConfig("zoo:small"), Files("unused")))
    rows = []
    with closing(Engine(load_base(config.model), config.model.lora, max_batch=16)) as engine:
        for number in range(VERSIONS, 0, -1):
            engine.load(number, f"{number:064x}", random_files(config, number))
        asked = [Request(one.messages[:-1], one.images, TOKENS) for one in questions()]
        mixed = [Request(one.messages, one.images, TOKENS, version=at % VERSIONS + 1) for at, one in enumerate(asked)]
        served: Ask = lambda request: engine.submit(request).result().completion_tokens  # noqa: E731
        ways = {"generate": (plain(engine), asked), "engine": (served, asked), "4 versions": (served, mixed)}
        engine.between_steps(lambda: engine._slots.use("slot-0"))
        for clients in CLIENTS:
            found: dict[str, list[tuple[float, list[float]]]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, (ask, requests) in ways.items():
                    engine.answer([asked[0]])  # turns the model back to the live version
                    found[way].append(drive(ask, requests, clients, seconds))
            for way, runs in found.items():
                took = [one for _, times in runs for one in times]
                rows.append(
                    {"part": "speed", "way": way, "clients": clients, "p50": percentile(took, 0.5),
                     "tokens_per_s": statistics.median(rate for rate, _ in runs), "p99": percentile(took, 0.99),
                     "answers": len(took)}
                )  # fmt: skip
    return rows, [_claim(rows)]


def _claim(rows: Sequence[dict[str, Any]]) -> Claim:
    by = {(row["way"], row["clients"]): row for row in rows}

    def ratio(way: str, clients: int) -> float:
        return float(by[way, clients]["tokens_per_s"] / by["generate", clients]["tokens_per_s"])

    said = "; ".join(
        f"{clients} clients {by['engine', clients]['tokens_per_s']:.0f} tokens/s, x {ratio('engine', clients):.2f} "
        f"(p50/p99 {by['engine', clients]['p50']:.2f}/{by['engine', clients]['p99']:.2f} s, generate "
        f"{by['generate', clients]['p50']:.2f}/{by['generate', clients]['p99']:.2f}), "
        f"4 versions at once x {ratio('4 versions', clients):.2f}"
        for clients in CLIENTS
    )
    return Claim(
        "7.6", "tokens/s of the engine over plain generate's, in process; p50 and p99", "1 client >= 0.95, 16 >= 2",
        said, ratio("engine", 1) >= 0.95 and ratio("engine", 16) >= 2, COMMAND,
    )  # fmt: skip
