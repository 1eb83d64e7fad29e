"""How fast files reach the trainer's hands, beside raw pyarrow reading the same files, in turns in one process.

Decoding is left out on both sides: pictures are random bytes that nobody looks into, and the encoder adds a constant in
place of model inputs. What is measured is everything else that a sample passes: the reader, the door's checks of its
structure, the merge of partitions, the Arrow file in the run's store (written and synced once), and its reading with
the check of its digest.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamcl.bench.report import Claim
from streamcl.cluster import media
from streamcl.registry.backends import CommitStore, LocalStore, sha256
from streamcl.stream import Files, Limits, Merged
from streamcl.stream.reader import DoorReader
from streamcl.train.batch import ENCODED_SCHEMA
from streamcl.types import SAMPLE_SCHEMA, Message, Part, Rows, Sample, to_batch

COMMAND = "python -m streamcl.bench.connectors"
IMAGE_BYTES = 20 * 2**10
SAMPLES = 6_000
PARTITIONS = 2
BATCH = 256
ROUNDS = 7


class Unproved(Files):
    """Files whose pictures are not decoded."""

    def open(self, partition: str, position: int) -> DoorReader:
        reader = super().open(partition, position)
        reader._door = replace(reader._door, prove=lambda data, where, limits: None)
        return reader


def write(folder: Path) -> None:
    """Samples of 20 KB of random bytes each, over some partitions."""
    dice = np.random.default_rng(0)
    talk = (
        Message("user", (Part("image"), Part("text", "What is this?"))),
        Message("assistant", (Part("text", "a fox"),)),
    )
    samples = [Sample(f"s{n}", talk, (dice.bytes(IMAGE_BYTES),), time=float(n)) for n in range(SAMPLES)]
    for part in range(PARTITIONS):
        table = pa.Table.from_batches([to_batch(samples[part::PARTITIONS])])
        columns = table.select(["id", "messages", "images", "task", "time"])
        pq.write_table(columns, folder / f"{part}.parquet", row_group_size=500, compression="none")


def raw(folder: Path) -> int:
    """pyarrow alone, one thread: every batch of every file."""
    rows = 0
    for path in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(BATCH, use_threads=False):
            rows += batch.num_rows
    return rows


def merged(folder: Path) -> int:
    """Through the door and the merge."""
    stream, rows = Merged(Unproved(str(folder), Limits()), {}), 0
    while (polled := stream.poll(BATCH)) is not None:
        rows += polled.batch.num_rows
    return rows


def handed(folder: Path, store: CommitStore) -> int:
    """Through the store into the rows that training takes, which is done beside the reading, as in a run."""
    stream = Merged(Unproved(str(folder), Limits()), {})
    with ThreadPoolExecutor(1) as trainer:
        taken: list[Future[int]] = []
        while (polled := stream.poll(BATCH)) is not None:
            if count := polled.batch.num_rows:
                part = Rows(media.write(store, _encoded(polled.batch)), tuple(range(count)))
                taken.append(trainer.submit(_read, store, part))
    return sum(one.result() for one in taken)


def _read(store: CommitStore, part: Rows) -> int:
    return len(media.read(store, [part]))


def _encoded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with model inputs that cost nothing."""
    from safetensors.numpy import save

    count = batch.num_rows
    ids = pa.array([[1, 2, 3]] * count, pa.list_(pa.int32()))
    inputs = pa.array([save({"x": np.zeros(1, np.float32)})] * count, pa.binary())
    assert batch.schema.equals(SAMPLE_SCHEMA)
    return pa.RecordBatch.from_arrays([*batch.columns, ids, ids, inputs], schema=ENCODED_SCHEMA)


def measured() -> tuple[list[dict[str, Any]], list[Claim]]:
    """The ways in turns; the median of each one's share of raw reading in the same round."""
    with tempfile.TemporaryDirectory(prefix="streamcl-speed-") as root:
        folder = Path(root) / "data"
        folder.mkdir()
        write(folder)
        store = LocalStore(Path(root) / "store")
        ways: dict[str, Callable[[], int]] = {
            "raw": lambda: raw(folder), "merged": lambda: merged(folder), "handed": lambda: handed(folder, store)
        }  # fmt: skip
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                begun = time.perf_counter()
                assert way() == SAMPLES
                seconds[name].append(time.perf_counter() - begun)
                for key in store.list("data"):
                    store.delete(key)
        costs = bounds(store)
    rows = [{"way": name, "samples_s": SAMPLES / statistics.median(s), "seconds": s} for name, s in seconds.items()]
    return [*rows, {"way": "bounds", "us_a_sample": costs}], claims(seconds, costs)


def bounds(store: CommitStore) -> dict[str, float]:
    """Microseconds a sample of what no way through a store does without: its digest, and a synced file."""
    data = np.random.default_rng(1).bytes(IMAGE_BYTES * BATCH)
    digest = _median_us(lambda: sha256(data))
    return {"digest": digest, "write": _median_us(lambda: store.put_unique("data", data, "arrow")) - digest}


def _median_us(call: Callable[[], str]) -> float:
    taken = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        call()
        taken.append((time.perf_counter() - begun) / BATCH * 1e6)
    return statistics.median(taken)


def claims(seconds: dict[str, list[float]], costs: dict[str, float]) -> list[Claim]:
    shares = {
        name: statistics.median(r / s for r, s in zip(seconds["raw"], seconds[name], strict=True))
        for name in ("merged", "handed")
    }
    speed = {name: f"{SAMPLES / statistics.median(s):,.0f}" for name, s in seconds.items()}
    why = (
        f"Raw reading is a copy of memory, {statistics.median(seconds['raw']) / SAMPLES * 1e6:.0f} us a sample; the "
        f"digest is {costs['digest']:.0f} us twice, the synced file {costs['write']:.0f} us"
    )
    what = f"Parquet, {SAMPLES:,} samples of 20 KB in {PARTITIONS} files, decode excluded; median of {ROUNDS} rounds"
    return [
        Claim("6.4", f"files out of the merge, beside raw pyarrow in turns: {what}", ">= 60 %",
              f"{shares['merged']:.0%}: {speed['merged']} of {speed['raw']} samples/s", shares["merged"] >= 0.6,
              COMMAND),
        Claim("6.4", "the same through the run's store into the trainer's rows (written, synced, read, digest checked)",
              ">= 60 %", f"{shares['handed']:.0%}: {speed['handed']} of {speed['raw']} samples/s. {why}",
              shares["handed"] >= 0.6, COMMAND),
    ]  # fmt: skip
