"""Reads the source, encodes, and puts samples into the store; the driver learns only what it must decide on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
import torch

from streamcl.cluster import media
from streamcl.config import Config
from streamcl.events import Arrival
from streamcl.registry.stores import open_store
from streamcl.store.keyed import derive, siphash
from streamcl.store.reservoir import Reservoir
from streamcl.stream.base import NO_ROWS, Merged, Polled
from streamcl.train.batch import Encoder
from streamcl.train.model import load_base

QUIET_S = 0.2
"""How long a pull waits where the source has nothing now."""


class Ingest:
    """Reads on from `positions`.  After a crash the runtime makes a new one from the last positions it has seen."""

    def __init__(self, config: Config, positions: Mapping[str, int], key: bytes) -> None:
        torch.set_num_threads(1)
        self.encoder = Encoder(load_base(config.model))
        self.stream = Merged(config.source, positions)
        self.store = open_store(config.store.path)
        self.reservoir = Reservoir(1, key=key, heldout=config.replay.heldout)
        self.id_key = derive(key, "ids")

    def pull(self, limit: int) -> Arrival:
        """The next samples, at most `limit`; none if there are none now."""
        polled = self.stream.poll(limit)
        if polled is not None and not len(polled):
            time.sleep(QUIET_S)
            polled = self.stream.poll(limit)
        return self._arrival(polled)

    def _arrival(self, polled: Polled | None) -> Arrival:
        rows = NO_ROWS if polled is None else polled.batch
        columns = rows.select(["id", "task", "time", "source", "partition", "position"]).to_pydict()
        encoded = self.encoder.encode(rows)
        return Arrival(
            key=media.write(self.store, encoded.batch) if rows.num_rows else "",
            ids=tuple(columns["id"]),
            hashes_N=siphash(columns["id"], key=self.id_key),
            heldout_N=self.reservoir.is_heldout(columns["id"]),
            labels=tuple(columns["task"]),
            times_N=np.array(columns["time"], np.float64),
            sources=tuple(columns["source"]),
            partitions=tuple(columns["partition"]),
            positions_N=np.array(columns["position"], np.int64),
            embeddings_NE=encoded.embeddings_NE,
            resume=dict(self.stream.positions),
            dead=polled.dead if polled else (),
            ended=polled is None,
        )


IngestActor: Any = ray.remote(num_cpus=0.5, max_restarts=0)(Ingest)
