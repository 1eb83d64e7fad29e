"""The README's examples run as they stand, and a machine that reads the schema finds no way to break the server."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from tiny_llava import LORA, Files, digest

from streamcl.serve.engine import Engine
from streamcl.serve.local import Local
from streamcl.serve.openai import build_app
from streamcl.train.model import load_base
from streamcl.train.settings import ModelConfig

TEXT = (Path(__file__).parents[2] / "README.md").read_text()


def example(name: str) -> str:
    """The README's block that begins with `# serving: NAME`."""
    return re.findall(rf"```\w+\n(# serving: {name}\n.*?)```", TEXT, flags=re.DOTALL)[0]


@pytest.fixture(scope="module")
def engine_of(checkpoint: Path) -> Iterator[Engine]:
    engine = Engine(load_base(ModelConfig(str(checkpoint), lora=LORA)), LORA)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def environment(engine_of: Engine, versions: Mapping[int, Files]) -> Iterator[dict[str, str]]:
    """A server named as the quickstart is, and an environment whose clients find it."""
    engine_of.load(1, digest(1), versions[1])
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(build_app(Local(engine_of), "quickstart"), log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        yield {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "any"}
        server.should_exit = True
        thread.join()


def test_the_openai_client_runs_the_readmes_example(environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", example("openai")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, streamed = done.stdout.split("\n", 1)
    name, _, answer = first.partition(" ")
    assert name == "quickstart@1"
    assert streamed
    assert repr(streamed) == answer


def test_curl_runs_the_readmes_example(environment: dict[str, str]) -> None:
    command = ["bash", "-e", "-c", example("curl")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert '"id":"quickstart@1"' in done.stdout
    assert '"model": "quickstart@0"' in done.stdout
    assert done.stdout.rstrip().endswith("data: [DONE]")


def test_no_request_that_the_schema_allows_breaks_the_server(engine_of: Engine) -> None:
    """Right and wrong bodies that schemathesis makes of the schema: whatever the answer, it is no 5xx."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", build_app(Local(engine_of), "quickstart", max_tokens=4))
    statuses: dict[str, set[int]] = {}
    for operation in (result.ok() for result in schema.get_all_operations()):
        for mode in GenerationMode:

            @given(case=operation.as_strategy(mode))
            @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            def explore(case: schemathesis.Case) -> None:
                response = case.call()
                statuses.setdefault(case.operation.path, set()).add(response.status_code)
                case.validate_response(response, checks=[not_a_server_error])

            with contextlib.suppress(Unsatisfiable):  # a GET without parameters cannot be asked wrongly
                explore()
    assert statuses.keys() == {"/v1/chat/completions", "/v1/models", "/metrics", "/healthz"}
    assert len(statuses["/v1/chat/completions"]) > 1
