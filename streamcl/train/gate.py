"""The gate: whether a candidate may answer in place of the version it was trained from. Pure, and in float64.

Both answer the same held-out rows, so each row is a pair: right in both, lost, won, or wrong in both. What the shares
of the four may be is drawn by a paired bootstrap in Rubin's form: Dirichlet weights instead of drawn rows, with half a
row of each kind added (Jeffreys). Five rows that agree are then no certainty, as they would be for drawn rows.

Three things can be found of a task: it is surely fine, it surely is not, or the rows are too few to tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from streamcl.errors import ConfigError
from streamcl.types import Ref

DRAWS = 20_000
ROUNDING = 1e-6
"""Relative difference of two adapters that are the same."""
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class GateConfig:
    """When a candidate is made live by itself. Refused ones are published too, under the alias `candidate`."""

    enabled: bool = True
    """False: every version is made live as soon as it is trained, whatever it does."""
    tolerance: float = 0.05
    """How much of a known task's accuracy may be lost, in [0, 1)."""
    gain: float = 0.05
    """How much accuracy a new task must bring, in [0, 1): what surely brings less has not learned it."""
    confidence: float = 0.95
    """How sure a finding must be, in (0.5, 1)."""
    unsure: Literal["promote", "hold"] = "promote"
    """What becomes of a candidate when no finding speaks against it, but held-out rows are too few to clear it."""
    largest: float = 3.0
    """Largest norm of the adapter's update over that of the weights it is added to, > 0: more is an explosion."""

    def __post_init__(self) -> None:
        shares = 0 <= self.tolerance < 1 and 0 <= self.gain < 1 and 0.5 < self.confidence < 1
        if not shares or self.largest <= 0:
            raise ConfigError(
                f"gate: tolerance {self.tolerance}, gain {self.gain}, confidence {self.confidence}, largest "
                f"{self.largest}: tolerance and gain lie in [0, 1), confidence in (0.5, 1), largest is above 0"
            )


@dataclass(frozen=True)
class Pairs:
    """One task's held-out rows by what became of each between two versions."""

    kept: int = 0
    lost: int = 0
    won: int = 0
    missed: int = 0

    @staticmethod
    def of(before: Flags, after: Flags) -> Pairs:
        """From each row's correctness in both versions, the same rows in the same order."""
        assert len(before) == len(after), "pairs are of the same rows"
        kinds = (before & after, before & ~after, ~before & after, ~before & ~after)
        return Pairs(*(int(kind.sum()) for kind in kinds))

    def __len__(self) -> int:
        return self.kept + self.lost + self.won + self.missed

    @property
    def change(self) -> float:
        """Accuracy after less accuracy before, in [-1, 1]; 0.0 without rows."""
        return (self.won - self.lost) / len(self) if len(self) else 0.0

    def below(self, bound: float) -> float:
        """Probability that the change of accuracy over all such rows lies below `bound`."""
        counts = np.array([self.kept, self.lost, self.won, self.missed], np.float64)
        shares_D4 = np.random.default_rng(0).dirichlet(counts + 0.5, DRAWS)
        return float((shares_D4[:, 2] - shares_D4[:, 1] < bound).mean())


@dataclass(frozen=True)
class Evidence:
    """What a training job found out about its candidate and the version that it started from."""

    pairs: Mapping[str, Pairs] = field(default_factory=dict)
    """By known task."""
    size: float = 0.0
    """Norm of the candidate's update over that of the weights it is added to."""
    moved: float = 0.0
    """The same of the difference between the candidate and the version that it started from."""
    steps: int = 0
    """Steps that were made: with none, nothing has to change."""
    base: str = ""
    """Digest of the base model it was trained on."""
    wanted: str = ""
    """Digest of the base model that the version it started from belongs to, or else the learner's."""
    rows: Ref | None = None
    """Each row's id and correctness in both, as JSON in the store."""

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Evidence:
        """The evidence whose `dataclasses.asdict` went through JSON."""
        return Evidence(**{**values, "pairs": {task: Pairs(**counts) for task, counts in values["pairs"].items()}})


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate is made live, and why."""

    passed: bool
    why: str


def judge(evidence: Evidence, config: GateConfig, *, task: str, known: bool) -> Verdict:
    """The verdict on a candidate for `task`; `known`: whether the version that answers has learned the task.

    It is refused for what it is (`faults`), or if a known task has surely fallen by more than the tolerance, or if a
    new one has surely not gained. With too few rows to tell, `config.unsure` decides, and the verdict says so.
    """
    if not config.enabled:
        return Verdict(True, "the gate is off")
    if wrong := faults(evidence, config):
        return Verdict(False, wrong)
    sure = config.confidence
    bad, open_ = [], []
    for name, pairs in evidence.pairs.items():
        bound = config.gain if name == task and not known else -config.tolerance
        below = pairs.below(bound)
        about = f"{name} {pairs.change:+.1%} of {len(pairs)} rows"
        if below >= sure:
            bad.append(f"{about}: {'no gain' if bound > 0 else 'a fall'}, {below:.1%} sure")
        elif below > 1 - sure:
            open_.append(about)
    if task not in evidence.pairs:
        open_.append(f"{task} has no held-out row")
    if bad:
        return Verdict(False, "; ".join(bad))
    if open_:
        return Verdict(config.unsure == "promote", f"too few rows to be sure: {'; '.join(open_)}")
    return Verdict(True, f"{config.confidence:.0%} sure of {', '.join(evidence.pairs)}")


def faults(evidence: Evidence, config: GateConfig) -> str:
    """What is wrong with a candidate whatever it answers; empty if nothing is."""
    if not np.isfinite([evidence.size, evidence.moved]).all():
        return "the adapter holds NaN or infinity"
    if evidence.base != evidence.wanted:
        return f"trained on base {evidence.base[:12]}, but {evidence.wanted[:12]} is what answers"
    if evidence.size == 0.0 and evidence.steps:
        return "the adapter is zero: the bare base would answer"
    if evidence.steps and evidence.moved <= ROUNDING * evidence.size:
        return f"{evidence.steps} steps changed nothing"
    if evidence.size > config.largest:
        return f"the update is {evidence.size:.1f} times as large as the weights, more than {config.largest}"
    return ""
