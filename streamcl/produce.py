"""Feeds one stream into another: for demonstrations and load tests."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import fsspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from streamcl.config import load
from streamcl.errors import ConfigError, SourceError
from streamcl.stream import Kafka, Merged, Source
from streamcl.stream.broker import Brokers
from streamcl.stream.folder import Folder
from streamcl.stream.sinks import FolderSink, KafkaSink, PushSink, Sink
from streamcl.types import from_batch

KEY = "STREAMCL_API_KEY"
"""The environment variable with the API key for a push endpoint."""
CHUNK = 64
"""Samples read at a time; fewer at a low rate, so that they come evenly."""
QUIET_S = 0.2
ALLOWED = "kafka://host:port/topic, a run.yaml that reads Kafka, http(s)://host/v1/samples, or a folder's URL"


def sink_of(where: str) -> Sink:
    """Opens the sink that a command names.  Raises ConfigError, SourceError."""
    url = urlsplit(where)
    if where.endswith((".yaml", ".yml")):
        source = load(where).source
        if not isinstance(source, Kafka):
            raise ConfigError(f"{where} reads no Kafka topic, so nothing can be sent to it. A sink is {ALLOWED}")
        return KafkaSink(source.connection, source.topics[0])
    if url.scheme == "kafka":
        if not url.netloc or not url.path.strip("/"):
            raise ConfigError(f"{where} names no topic. A sink is {ALLOWED}")
        return KafkaSink(Brokers(url.netloc), url.path.strip("/"))
    if url.scheme in ("http", "https"):
        return PushSink(where, key=os.environ.get(KEY, ""))
    lines = where.endswith("/*.jsonl")
    try:
        fs, root = fsspec.core.url_to_fs(where.removesuffix("/*.jsonl"))
        fs.makedirs(root, exist_ok=True)
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"{where} cannot be written ({error}). A sink is {ALLOWED}") from error
    return FolderSink(Folder(fs, root.rstrip("/")), lines=lines)


def produce(
    source: Source,
    sink: Sink,
    *,
    rate: float = 0.0,
    watch: Callable[[int, int], None] = lambda sent, refused: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Writes the source's samples from its start to its end, `rate` a second at most (0: as fast as it goes).

    `watch` hears how many were handed over, and how many the door refused. The sink is the caller's to close.
    """
    merged = Merged(source, {})
    chunk = max(1, min(CHUNK, int(rate / 5))) if rate else CHUNK
    sent = refused = 0
    due = clock()
    while (polled := merged.poll(chunk)) is not None:
        sink.put(from_batch(polled.batch))
        sent, refused = sent + polled.batch.num_rows, refused + len(polled.dead)
        watch(sent, refused)
        now = clock()
        due = max(due, now - 1.0) + (polled.batch.num_rows / rate if rate else 0.0)
        if not len(polled):
            sleep(QUIET_S)
        elif due > now:
            sleep(due - now)


def produce_shown(source: Source, where: str, *, rate: float) -> bool:
    """`produce` with progress on the terminal; whether the source came to its end. Ctrl-C ends it cleanly.

    Raises ConfigError, SourceError, SinkError.
    """
    console = Console(stderr=True, soft_wrap=True)
    sink, ended, counts = sink_of(where), False, (0, 0)
    started = time.monotonic()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        line = progress.add_task(f"to {where}", total=None)

        def watch(sent: int, refused: int) -> None:
            nonlocal counts
            counts = sent, refused
            speed = sent / max(time.monotonic() - started, 1e-9)
            progress.update(line, description=f"to {where}: {sent} samples, {speed:,.0f}/s")

        with contextlib.suppress(KeyboardInterrupt):
            produce(source, sink, rate=rate, watch=watch)
            ended = True
        there = sink.close()
    console.print(
        f"{counts[0]} samples sent to {where}; refused: {counts[1]} by the door, {there} there"
        + ("" if ended else "; stopped before the end")
    )
    return ended
