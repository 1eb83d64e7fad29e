"""What the controller is told (events) and what it asks for (actions). All frozen.

Every event may arrive twice but Arrived, which comes once for each Pull, in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.detect.base import Observations
from streamcl.registry.requests import Request
from streamcl.train.gate import Evidence, Verdict
from streamcl.types import DeadLetter, Ref, Refs, Standing, Version, Window


@dataclass(frozen=True, eq=False)
class Arrival:
    """Samples just read and encoded: what the controller needs to know of them, never their content.

    Columns have one entry a row. Row i is row i of the Arrow file `key` in the run's store.
    """

    key: str
    ids: tuple[str, ...]
    hashes_N: npt.NDArray[np.uint64]
    heldout_N: npt.NDArray[np.bool_]
    """Which rows are never trained on."""
    labels: tuple[str | None, ...]
    times_N: npt.NDArray[np.float64]
    sources: tuple[str, ...]
    partitions: tuple[str, ...]
    positions_N: npt.NDArray[np.int64]
    embeddings_NE: npt.NDArray[np.float32]
    sizes_N: npt.NDArray[np.int64]
    """Bytes of each encoded row, as whoever trains on it holds it."""
    resume: Mapping[str, int]
    """Where reading goes on after these rows, by partition."""
    dead: tuple[DeadLetter, ...] = ()
    ended: bool = False
    """Nothing follows, in any partition."""
    waiting: str = ""
    """What the source waits for, while something is wrong that may pass."""

    def __len__(self) -> int:
        return len(self.ids)

    def observations(self, start: int, stop: int) -> Observations:
        return Observations(self.embeddings_NE[start:stop], self.labels[start:stop])


@dataclass(frozen=True)
class TrainResult:
    """What a training job left in the store."""

    adapter: Ref
    """The adapter's tensors, safetensors."""
    memory: Refs | None
    """The task memory after the window."""
    scores: Mapping[str, float]
    """Accuracy in [0, 1] by task, after the window."""
    before: Mapping[str, float]
    """Zero-shot accuracy by task; given with the first window only."""
    loss: float
    steps: int
    seconds: Mapping[str, float]
    """Time by stage: load, train, score."""
    evidence: Evidence = field(default_factory=Evidence)
    """How it does beside the version that it started from."""


@dataclass(frozen=True, eq=False)
class Arrived:
    arrival: Arrival


@dataclass(frozen=True)
class Frozen:
    """The window is in the log: it will be trained, whatever dies."""

    window: Window


@dataclass(frozen=True)
class Trained:
    window: Window
    result: TrainResult


@dataclass(frozen=True)
class Failed:
    """Training the window cannot succeed (a loss that is not finite)."""

    window: Window
    reason: str


@dataclass(frozen=True)
class Published:
    """The version of a window is in the log, behind `live` or, if the gate refused it, behind `candidate`."""

    version: Version
    standing: Standing
    """What answers now: this version, or the one that did before."""
    why: str = ""
    """What the gate found."""

    @property
    def promoted(self) -> bool:
        return self.standing.number == self.version.number


@dataclass(frozen=True)
class Swapped:
    """Every replica answers with the version."""

    version: Version


@dataclass(frozen=True)
class Requested:
    """An operator asks for something."""

    request: Request


@dataclass(frozen=True)
class Moved:
    """An operator's version was made live."""

    version: Version
    standing: Standing


@dataclass(frozen=True)
class Purged:
    """What the reservoir had of a source is dropped."""

    source: str


@dataclass(frozen=True)
class Ticked:
    now: float
    """Seconds since some fixed moment."""


@dataclass(frozen=True)
class Stopping:
    """Somebody wants the run to end soon."""


Event = Arrived | Frozen | Trained | Failed | Published | Swapped | Requested | Moved | Purged | Ticked | Stopping


@dataclass(frozen=True)
class Pull:
    """Read and encode some more samples; answered by Arrived."""


@dataclass(frozen=True)
class Offer:
    """Rows for the reservoir, held-out ones included."""

    task: str
    ids: tuple[str, ...]
    keys: tuple[str, ...]
    rows: tuple[int, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """The learner between two rows: what a record makes visible."""

    state: Mapping[str, Any]
    """`Controller.snapshot`: JSON values."""
    positions: Mapping[str, int]
    counters: Mapping[str, int]
    watermark: float | None
    """Event time that more than half of some latest samples had reached; None before there were enough."""
    training: int | None = None
    """The window in training, if any; the one being frozen is not meant."""
    dead: tuple[DeadLetter, ...] = ()
    """Dead letters since the last checkpoint."""


@dataclass(frozen=True)
class Freeze:
    """Offer the window's rows, draw its replay, and commit it; answered by Frozen."""

    window: Window
    """Without replay and held-out rows: whoever executes this draws them."""
    offer: Offer
    replay_rows: int
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Train:
    """Train the window; answered by Trained or Failed, or by Published if a version already answers it."""

    window: Window


@dataclass(frozen=True)
class Publish:
    """Make the result a version, commit it, move the alias that the verdict means; answered by Published."""

    window: Window
    result: TrainResult
    verdict: Verdict


@dataclass(frozen=True)
class Abandon:
    """Commit that the window will have no version."""

    window: Window
    reason: str


@dataclass(frozen=True)
class Swap:
    """Bring every replica to the version; answered by Swapped."""

    version: Version


@dataclass(frozen=True)
class Obey:
    """Do what an operator asks for; answered by Moved or Purged, if it can be done."""

    request: Request


@dataclass(frozen=True)
class Commit:
    """Commit the checkpoint without a window."""

    checkpoint: Checkpoint


@dataclass(frozen=True)
class Finish:
    """Release everything. Nothing follows."""

    ended: bool = True
    """False if the run was stopped before its stream ended."""


Action = Pull | Freeze | Train | Publish | Abandon | Swap | Obey | Commit | Finish
