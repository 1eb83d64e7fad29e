"""Stage 4: how an update spares old tasks. Pure PyTorch: no Ray, no I/O, no model."""

from streamcl.strategies.base import Params, Probe, Stage, Strategy, Terms
from streamcl.strategies.dgg import DGG
from streamcl.strategies.ewc import EWC
from streamcl.strategies.fwd_prompt import FwdPrompt
from streamcl.strategies.hifgo import HiFGO
from streamcl.strategies.olora import OLoRA
from streamcl.strategies.replay import Replay

KINDS = {
    "finetune": Strategy,
    "replay": Replay,
    "ewc": EWC,
    "olora": OLoRA,
    "hifgo": HiFGO,
    "dgg": DGG,
    "fwd_prompt": FwdPrompt,
}

__all__ = [
    "DGG",
    "EWC",
    "KINDS",
    "FwdPrompt",
    "HiFGO",
    "OLoRA",
    "Params",
    "Probe",
    "Replay",
    "Stage",
    "Strategy",
    "Terms",
]
