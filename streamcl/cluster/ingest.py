"""Reads the source, encodes, and puts samples into the store; the driver learns only what it must decide on.

One actor reads and merges all partitions, since the order of the stream is decided there. What costs, the model's
processor and tower, may be shared by any number of encoders: each batch goes to the next one, and the driver takes the
answers in the order in which it asked. So batches, their order and their content do not depend on how many there are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from streamcl.cluster import media
from streamcl.events import Arrival
from streamcl.registry.stores import open_store
from streamcl.sections import Config
from streamcl.store.keyed import derive, siphash
from streamcl.store.reservoir import Reservoir
from streamcl.stream.base import NO_ROWS, Merged, Polled
from streamcl.stream.deadletter import payload, refuse
from streamcl.stream.files import Files
from streamcl.stream.fingerprint import Unchanged
from streamcl.train.batch import Encoder
from streamcl.train.model import load_base
from streamcl.types import DeadLetter

NICE = 19
"""How far reading stands back, on a node that it shares, behind training and answering."""
QUIET_S = 0.2
"""How long a pull waits where the source has nothing now."""


@dataclass(frozen=True)
class Read:
    """What was read, before it is encoded."""

    polled: Polled | None
    """None: nothing follows."""
    resume: Mapping[str, int]


class Ingest:
    """Reads on from `positions`, or encodes what another has read; what it needs for either comes with first use."""

    def __init__(self, config: Config, positions: Mapping[str, int], key: bytes) -> None:
        torch.set_num_threads(1)
        os.nice(NICE)
        self.config, self.start = config, positions
        self.store = open_store(config.store.path)
        self.reservoir = Reservoir(1, key=key, heldout=config.replay.heldout)
        self.id_key = derive(key, "ids")

    @cached_property
    def stream(self) -> Merged:
        source = self.config.source
        return Merged(Unchanged(source, self.store) if isinstance(source, Files) else source, self.start)

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(load_base(self.config.model, device=self.config.placement.ingest.device))

    def warm(self) -> int:
        """Loads the model; how wide its embeddings' image half is."""
        return self.encoder.channels

    def pull(self, limit: int) -> Arrival:
        """The next samples, at most `limit`; none if there are none now."""
        return self.encode(self.read(limit))

    def read(self, limit: int) -> Read:
        polled = self.stream.poll(limit)
        if polled is not None and not len(polled):
            time.sleep(QUIET_S)
            polled = self.stream.poll(limit)
        return Read(polled, dict(self.stream.positions))

    def encode(self, part: Read) -> Arrival:
        polled = part.polled
        read = Polled(NO_ROWS) if polled is None else polled
        encoded = self.encoder.encode(read.batch)
        columns = encoded.batch.select(["id", "task", "time", "source", "partition", "position"]).to_pydict()
        return Arrival(
            key=media.write(self.store, encoded.batch) if encoded.batch.num_rows else "",
            ids=tuple(columns["id"]),
            hashes_N=siphash(columns["id"], key=self.id_key),
            heldout_N=self.reservoir.is_heldout(columns["id"]),
            labels=tuple(columns["task"]),
            times_N=np.array(columns["time"], np.float64),
            sources=tuple(columns["source"]),
            partitions=tuple(columns["partition"]),
            positions_N=np.array(columns["position"], np.int64),
            embeddings_NE=encoded.embeddings_NE,
            sizes_N=sizes(encoded.batch),
            resume=part.resume,
            dead=with_refused(read, encoded.refused),
            ended=polled is None,
            waiting=read.waiting,
        )


def sizes(encoded: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Bytes of each encoded row: images, model inputs, token ids."""
    images = encoded["images"]
    before = np.concatenate([[0], np.cumsum(pc.binary_length(images.values).to_numpy())])
    tokens = pc.add(pc.list_value_length(encoded["prompt_ids"]), pc.list_value_length(encoded["answer_ids"]))
    bytes_N: npt.NDArray[np.int64] = np.diff(before[images.offsets.to_numpy()]).astype(np.int64)
    bytes_N += pc.binary_length(encoded["inputs"]).to_numpy() + 4 * tokens.to_numpy()
    return bytes_N


def with_refused(polled: Polled, refused: Sequence[tuple[int, str]]) -> tuple[DeadLetter, ...]:
    """The dead letters of a poll and of the rows that could not be encoded, in reading order of each partition."""
    letters = list(polled.dead)
    for index, why in refused:
        row = polled.batch.slice(index, 1).to_pylist()[0]
        place = {name: row[name] for name in ("id", "source", "partition", "position")}
        letters.append(DeadLetter(str(refuse("encode", why)), **place, payload=payload(row)))
    return tuple(sorted(letters, key=lambda letter: letter.position))


IngestActor: Any = ray.remote(max_restarts=0)(Ingest)


class Ingesting:
    """One reader and its encoders. After a crash of one the runtime makes all anew. Mutable: whose turn it is."""

    def __init__(self, config: Config, positions: Mapping[str, int], key: bytes) -> None:
        actor = IngestActor.options(**config.placement.ingest.options())
        self.reader = actor.remote(config, positions, key)
        others = [actor.remote(config, positions, key) for _ in range(config.encoders if config.encoders > 1 else 0)]
        self.actors = [self.reader, *others]
        self.turns = cycle(others or [self.reader])
        for encoder in others or [self.reader]:
            encoder.warm.remote()

    def pull(self, limit: int) -> Future[Arrival]:
        """The next samples. Asked for again before it is answered, it answers in the same order."""
        future: Future[Arrival] = next(self.turns).encode.remote(self.reader.read.remote(limit)).future()
        return future

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)
