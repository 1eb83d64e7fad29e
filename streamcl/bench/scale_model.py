"""A model of 64 workers and 1,000 partitions, from constants that were measured on one machine. Nothing in it was run.

A step of W workers takes as long as one's, plus a ring all-reduce of the adapter's gradients and a broadcast of one
number: our loop does not overlap them. A window that grows with W is read whole by every worker, is scored by the first
alone, and is committed once. Of the stream one actor reads and merges all partitions, and every commit names the
position of each.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from streamcl import zoo
from streamcl.cluster import media
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.stream import Files
from streamcl.stream.base import Merged
from streamcl.stream.fingerprint import Unchanged
from streamcl.train.batch import Encoder, to_rows
from streamcl.train.evaluate import marks
from streamcl.train.model import grow, load_base
from streamcl.train.settings import LoRA, ModelConfig
from streamcl.types import Rows

COUNTS = (1, 10, 100, 1000)
TOTAL, POLL = 8000, 64
"""Rows of all partitions together, and of a poll."""
COMMITS = 30
ENCODED = 192
WORKERS, PARTITIONS = 64, 1000
LINK_BYTES_S, LATENCY_S = 1.25e9, 50e-6
"""Assumed: 10 Gbit/s between any two nodes, 50 µs a message."""
WINDOW_ROWS, EPOCHS, SCORED = 600, 4, 400
"""The quickstart's: samples of a window a worker, passes, rows that are scored."""
ASSUMPTIONS = (
    "every worker has a core of its own as fast as the one measured; none is late, or all are as late as any measured",
    f"{LINK_BYTES_S * 8 / 1e9:.0f} Gbit/s between any two nodes, {LATENCY_S * 1e6:.0f} µs a message, nobody else on it",
    "a ring all-reduce, 2 (W - 1) messages of 1/W of the gradients, and a tree broadcast, after every step",
    f"weak scaling: {WINDOW_ROWS} rows of a window a worker, {EPOCHS} epochs, 16 samples a worker and step",
    "every worker reads the whole window from the store, which serves all of them as fast as this disk serves one",
    f"rank 0 alone scores {SCORED} rows, the others wait; a window takes three commits",
    "one reader merges all partitions on one core; handing batches to encoders costs it nothing",
)


# -- constants ---------------------------------------------------------------------------------------------------------


def constants() -> list[dict[str, Any]]:
    """What the model needs to know, measured here."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="scl-") as scratch:
        root = Path(scratch)
        readers = [reader(root / str(count), count) for count in COUNTS]
        return [*readers, *(commit(root / f"log-{count}", count) for count in (1, PARTITIONS)), window(root / "window")]


def reader(folder: Path, count: int) -> dict[str, Any]:
    """All partitions of a folder as one stream, read to the end in this process: Parquet files, rows in turn."""
    written(folder / "stream", count)
    before, began = psutil.Process().memory_info().rss, time.process_time()
    source = Unchanged(Files(str(folder / "stream")), open_store(str(folder / "store")))
    stream = Merged(source, {})
    first = stream.poll(POLL)
    assert first is not None
    opened = time.process_time() - began
    rows, polls, began = 0, 0, time.process_time()
    while (polled := stream.poll(POLL)) is not None:
        rows, polls = rows + len(polled), polls + 1
    spent = time.process_time() - began
    grown = psutil.Process().memory_info().rss - before
    return {"part": "weak", "what": "reader", "partitions": count, "rows": rows + len(first), "open_s": opened,
            "poll_s": spent / polls, "rows_per_s": rows / spent, "rss_mb": grown / 2**20}  # fmt: skip


def written(folder: Path, count: int) -> None:
    """TOTAL rows of real pictures over so many files; their times go round all files."""
    folder.mkdir(parents=True)
    rows = zoo.load_task("animals", "train").to_pylist()
    schema = zoo.load_task("animals", "train").schema
    for part in range(count):
        name = f"part-{part:05d}"
        mine = [{**rows[i % len(rows)], "id": f"row/{i}", "time": float(i), "partition": name, "position": at + 1}
                for at, i in enumerate(range(part, TOTAL, count))]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(mine, schema=schema), folder / f"{name}.parquet")


def commit(folder: Path, count: int) -> dict[str, Any]:
    """A commit that names so many positions: its bytes, and the seconds it takes on this disk."""
    log = Log(open_store(str(folder)))
    log.acquire("scale")
    took = []
    for number in range(COMMITS):
        positions = {f"part-{part:05d}.parquet": 1000 + number for part in range(count)}
        began = time.monotonic()
        record = log.append("data", state={"sources": positions, "counters": {}})
        took.append(time.monotonic() - began)
    return {"part": "weak", "what": "commit", "partitions": count, "bytes": len(record.encode()),
            "commit_s": statistics.median(took)}  # fmt: skip


def window(folder: Path) -> dict[str, Any]:
    """Seconds a row of a window: encoding, reading back, scoring; on one thread."""
    base = load_base(ModelConfig(zoo.resolve("zoo:small"), register="streamcl.zoo.tower"))
    store, encoder = open_store(str(folder)), Encoder(base)
    samples = zoo.load_task("animals", "train").slice(0, ENCODED).combine_chunks().to_batches()[0]
    encoder.encode(samples.slice(0, 16))
    began = time.process_time()
    encoded = encoder.encode(samples).batch
    encode = time.process_time() - began
    key = media.write(store, encoded)
    began = time.monotonic()
    media.read(store, [Rows(key, tuple(range(ENCODED)))])
    load = time.monotonic() - began
    model, pad_id = grow(base, LoRA(r=16, alpha=32), seed=0), base.processor.tokenizer.pad_token_id
    began = time.process_time()
    marks(model, {"all": to_rows(encoded)}, pad_id=pad_id)
    score = time.process_time() - began
    return {"part": "weak", "what": "window", "rows": ENCODED, "encode_s": encode / ENCODED, "load_s": load / ENCODED,
            "score_s": score / ENCODED}  # fmt: skip


# -- the model ---------------------------------------------------------------------------------------------------------


def ring_s(size: int, nbytes: float, *, link: float = LINK_BYTES_S, latency: float = LATENCY_S) -> float:
    """Seconds of a ring all-reduce of `nbytes` over so many workers."""
    return 2 * (size - 1) / size * nbytes / link + 2 * (size - 1) * latency


def talk_s(size: int, nbytes: float) -> float:
    """Seconds that workers talk in a step: the gradients, and whether to go on."""
    return ring_s(size, nbytes) + math.ceil(math.log2(size)) * LATENCY_S


def training(size: int, *, step: float, nbytes: float, load: float, score: float, commit: float) -> dict[str, float]:
    """Efficiency of so many workers on a window that grows with them: of a step, and of the whole window.

    `step`: seconds alone; `load`, `score`: seconds a row; `commit`: seconds of one of three.
    """

    def whole(workers: int) -> float:
        steps = EPOCHS * WINDOW_ROWS / 16
        return steps * (step + talk_s(workers, nbytes)) + load * WINDOW_ROWS * workers + score * SCORED + 3 * commit

    return {"workers": size, "talk_s": talk_s(size, nbytes), "step": step / (step + talk_s(size, nbytes)),
            "window": whole(1) / whole(size), "load_s": load * WINDOW_ROWS * size}  # fmt: skip


def model(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the measured constants say of WORKERS and PARTITIONS."""

    def of(what: str, **wanted: Any) -> Mapping[str, Any]:
        return next(r for r in rows if r["what"] == what and all(r[name] == value for name, value in wanted.items()))

    both, window = of("workers"), of("window")
    many, few = of("reader", partitions=PARTITIONS), of("reader", partitions=1)
    commit = of("commit", partitions=PARTITIONS)
    trained = training(WORKERS, step=both["step_s"]["alone"], nbytes=both["bytes"], load=window["load_s"],
                       score=window["score_s"], commit=commit["commit_s"])  # fmt: skip
    read, encode = many["rows_per_s"], window["encode_s"]
    stream = {"partitions": PARTITIONS, "reader_rows_per_s": read, "reader_against_one": read / few["rows_per_s"],
              "encoders_fed": read * encode, "commit_bytes": commit["bytes"], "open_s": many["open_s"]}  # fmt: skip
    late = both["step_s"]["alone"] / (both["slowest_s"] + trained["talk_s"])
    about = {"part": "weak", "what": "model", "measured": False, "assumptions": list(ASSUMPTIONS)}
    return {**about, **trained, "step_if_late": late, **stream}


def told(rows: Sequence[Mapping[str, Any]]) -> str:
    """The model in a sentence."""
    found = next(row for row in rows if row["what"] == "model")
    return (
        f"Model of {WORKERS} workers: {found['step']:.2f} of a step ({1e3 * found['talk_s']:.1f} ms of talk; "
        f"{found['step_if_late']:.2f} if every step waits for one as slow as the slowest measured), "
        f"{found['window']:.2f} of a window, as each reads all of it ({found['load_s']:.0f} s) and one scores. Of "
        f"{PARTITIONS:,} partitions one reader merges {found['reader_rows_per_s']:,.0f} rows/s "
        f"({found['reader_against_one']:.2f} of one partition's), enough for {found['encoders_fed']:.0f} encoders; "
        f"opening takes {found['open_s']:.0f} CPU s, a commit {found['commit_bytes'] / 1e3:.0f} kB"
    )
