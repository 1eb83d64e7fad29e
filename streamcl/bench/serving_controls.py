"""Two ways to change the adapter of an endpoint without streamcl, for comparison.

load_adapter    PEFT loads the new weights over the old ones, in place, in each replica
redeploy        `serve.run` of the same deployment with another version: Serve replaces the replicas one by one
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fastapi import Request as HttpRequest
from peft import PeftModel
from ray import serve
from transformers import GenerationConfig

from streamcl.registry.versions import Registry
from streamcl.sections import Config
from streamcl.serve.generate import encode
from streamcl.serve.wire import parse
from streamcl.stream.limits import Limits
from streamcl.train.model import load_base

WAYS = ("load_adapter", "redeploy")
APP = "plain"


class Plain:
    """One copy of the model with one adapter, answering with transformers' `generate`. Mutable: the adapter."""

    def __init__(self, config: Config, folder: str, number: int, digests: dict[int, str]) -> None:
        torch.set_num_threads(1)
        self.config, self.folder, self.number, self.digests = config, folder, number, digests
        self.base = load_base(config.model)
        self.model = PeftModel.from_pretrained(self.base.model, f"{folder}/{number}")

    async def __call__(self, http: HttpRequest) -> dict[str, Any]:
        body = await http.body()
        return await asyncio.to_thread(self._answer, body)

    def _answer(self, body: bytes) -> dict[str, Any]:
        number = self.number
        _, request = parse(body, self.config.name, Limits(), max_tokens=64)
        inputs = encode(self.base.processor, request, context=512).inputs
        settings = GenerationConfig(max_new_tokens=request.max_tokens, do_sample=False, pad_token_id=0, eos_token_id=2)
        with torch.no_grad():
            ids = self.model.generate(**inputs, generation_config=settings)
        text = self.base.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return {"choices": [{"message": {"content": text}}], "version": number, "digest": self.digests[number]}

    async def swap(self, number: int) -> int:
        await asyncio.to_thread(self.model.load_adapter, f"{self.folder}/{number}", "default")
        self.number = number
        return number


@contextmanager
def running(config: Config, registry: Registry, folder: Path, way: str) -> Iterator[Callable[[int], None]]:
    """The endpoint with version 1; how another takes its place."""
    digests = {}
    for version in registry.versions():
        digests[version.number] = version.digest
        there = folder / "plain" / str(version.number)
        there.mkdir(parents=True, exist_ok=True)
        for name, data in registry.read(version).items():
            (there / name).write_bytes(data)

    deployment: Any = serve.deployment(Plain).options(name=APP, num_replicas=config.serve.replicas)

    def start(number: int) -> Any:
        return serve.run(deployment.bind(config, str(folder / "plain"), number, digests), name=APP, route_prefix="/")

    handle = start(1)

    def in_place(number: int) -> None:
        handle.broadcast("swap", number).results(timeout_s=60.0)

    yield in_place if way == "load_adapter" else lambda number: start(number) and None
    stop(APP)


def stop(name: str) -> None:
    serve.delete(name)
