"""Stage 4: how an update spares old tasks. Pure PyTorch: no Ray, no I/O, no model."""

from streamcl.strategies.base import Params, Probe, Stage, Strategy
from streamcl.strategies.dgg import DGG
from streamcl.strategies.replay import Replay

KINDS = {"finetune": Strategy, "replay": Replay, "dgg": DGG}

__all__ = ["DGG", "KINDS", "Params", "Probe", "Replay", "Stage", "Strategy"]
