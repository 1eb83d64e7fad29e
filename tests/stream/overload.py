"""A learner whose trainer is ten times as slow as its source: real reader and store, 200 KB a sample; no Ray, no model.

Run as a program, `overload.py STREAM STORE`: prints what waited at most, in bytes, what passed, and the memory it took.
"""

from __future__ import annotations

import json
import resource
import sys

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save as save_safetensors
from test_controller_limits import Overload

from streamcl.cluster import media
from streamcl.cluster.ingest import Ingest
from streamcl.controller import Controller
from streamcl.detect import Labels
from streamcl.registry.stores import open_store
from streamcl.store.reservoir import Reservoir
from streamcl.stream import Files, Merged
from streamcl.train.batch import ENCODED_SCHEMA, Encoded
from streamcl.types import SAMPLE_SCHEMA, Window
from streamcl.window import WindowConfig

FEATURES, BATCH, MOST = 200_000, 8, 4_000_000


class Heavy:
    """Stands for the encoder: features of 200 KB, without a model."""

    def encode(self, samples: pa.RecordBatch) -> Encoded:
        inputs = (
            save_safetensors({"x": torch.randint(256, (FEATURES,), dtype=torch.uint8)}) for _ in range(samples.num_rows)
        )
        rows = [{"prompt_ids": [0], "answer_ids": [0], "inputs": one} for one in inputs]
        extra = pa.RecordBatch.from_pylist(rows, schema=pa.schema([*ENCODED_SCHEMA][len(SAMPLE_SCHEMA) :]))
        batch = pa.RecordBatch.from_arrays([*samples.columns, *extra.columns], schema=ENCODED_SCHEMA)
        return Encoded(batch, np.zeros((samples.num_rows, 1), np.float32))


class Reader(Ingest):
    """The ingest actor's class with another encoder."""

    def __init__(self, stream: str, store: str) -> None:
        self.encoder = Heavy()  # type: ignore[assignment]
        self.stream = Merged(Files(stream), {})
        self.store = open_store(store)
        self.reservoir = Reservoir(1, key=b"k" * 32, heldout=0.0)
        self.id_key = b"i" * 16


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(stream: str, store: str) -> None:
    reader = Reader(stream, store)
    learner = Controller(Labels().build(), window=WindowConfig(10**6, max_bytes=MOST))
    held: list[float] = []

    def train(window: Window) -> None:
        media.read(reader.store, window.samples)
        held.append(memory_mb())

    overload = Overload(learner, lambda: reader.pull(BATCH), train)
    overload.run()
    seen = {"peak": overload.peak, "passed": sum(overload.sizes.values()), "trained": overload.trained}
    print(json.dumps({**seen, "counters": learner.balance(), "grown_mb": held[-1] - held[2], "windows": len(held)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
