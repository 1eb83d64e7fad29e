"""Experience replay: fine-tuning on the window and a uniform draw of earlier tasks, concatenated."""

from __future__ import annotations

from dataclasses import dataclass

from streamcl.strategies.base import Strategy


@dataclass(frozen=True)
class Replay(Strategy):
    """Fine-tuning with a buffer; the reservoir holds it, equal quotas for every earlier task.  Chaudhry et al.,
    arXiv:1902.10486."""

    replay_rows: int = 1000
