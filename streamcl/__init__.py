"""Keeps a vision-language model current from a live stream, without forgetting and without downtime.

import streamcl as scl
for learned in scl.load("run.yaml").run():
    print(learned.task, learned.version.number, learned.version.scores)
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "load": "streamcl.learner",
    "Learner": "streamcl.learner",
    "Learned": "streamcl.learner",
    "Config": "streamcl.sections",
    "ModelConfig": "streamcl.train.model",
    "LoRA": "streamcl.train.model",
    "Files": "streamcl.stream",
    "Strategy": "streamcl.strategies",
    "Replay": "streamcl.strategies",
    "DGG": "streamcl.strategies",
}
"""The public names and where each lives: imported when first used, so that `import streamcl` costs nothing."""

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'streamcl' has no attribute {name!r}; it has {', '.join(_WHERE)}")
    return getattr(importlib.import_module(_WHERE[name]), name)
