"""What an endpoint counts, as Prometheus reads it: few series, whatever clients send."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamcl.serve.generate import Response
from streamcl.serve.trial import Counts

BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TRIED = {
    "canary_total": "Requests of a candidate's callers: sent to it, or to the live version as it was not loaded.",
    "shadow_total": "Live answers that a candidate was to make again, by what came of it.",
    "shadow_tokens_total": "Tokens of the answers that were compared, by who made them.",
    "shadow_seconds_total": "Time of the answers that were compared, by who made them.",
}


class Metrics:
    """Counts of one replica since it started. Mutable; for one event loop."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self.requests: Counter[tuple[str, int]] = Counter()
        """By path (those that the app has, or "other") and status."""
        self.seconds = [0] * (len(BUCKETS_S) + 1)
        """Answered chats by duration, to the last token: how many took up to each of BUCKETS_S, or longer."""
        self.seconds_sum = 0.0
        self.tokens: Counter[str] = Counter()
        self.cancelled = 0

    def served(self, path: str, status: int, seconds: float) -> None:
        self.requests[path, status] += 1
        if path == "/v1/chat/completions" and status == 200:
            self.seconds[bisect_left(BUCKETS_S, seconds)] += 1
            self.seconds_sum += seconds

    def answered(self, answer: Response) -> None:
        self.tokens.update(prompt=answer.prompt_tokens, completion=answer.completion_tokens)

    def text(self, *, version: int, waiting: int, running: int, tried: Counts) -> str:
        """All of it in Prometheus' text format."""
        lines: list[str] = []

        def family(name: str, kind: str, help: str, samples: Mapping[str, float]) -> None:
            lines.extend([f"# HELP streamcl_{name} {help}", f"# TYPE streamcl_{name} {kind}"])
            for labels, value in samples.items():
                suffix, _, rest = labels.rpartition("|")
                inside = ",".join(filter(None, [f'replica="{self.replica}"', rest]))
                lines.append(f"streamcl_{name}{suffix}{{{inside}}} {value:g}")

        requests = {f'path="{path}",status="{status}"': count for (path, status), count in self.requests.items()}
        family("requests_total", "counter", "HTTP requests by path and status.", dict(requests))
        bounds = [*(f"{bound:g}" for bound in BUCKETS_S), "+Inf"]
        seconds = {f'_bucket|le="{bound}"': sum(self.seconds[: at + 1]) for at, bound in enumerate(bounds)}
        totals = {"_sum|": self.seconds_sum, "_count|": sum(self.seconds)}
        family("answer_seconds", "histogram", "Time to the last token of an answered chat.", seconds | totals)
        tokens = {f'kind="{kind}"': self.tokens[kind] for kind in ("prompt", "completion")}
        family("tokens_total", "counter", "Tokens read and made.", dict(tokens))
        family("cancelled_total", "counter", "Chats whose client went away.", {"": self.cancelled})
        family("version", "gauge", "Number of the live version.", {"": version})
        family("waiting", "gauge", "Requests that have not begun.", {"": waiting})
        family("running", "gauge", "Requests under way.", {"": running})
        for name, counts in tried.items():
            family(name, "counter", TRIED[name], counts)
        return "\n".join([*lines, ""])


class Measured:
    """Counts what passes through an app. `paths`: those that are told apart."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.served(path, status, time.monotonic() - started)
