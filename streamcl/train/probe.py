"""The loss, and what a strategy may ask about a window's data: gradients, without stepping and without reduction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamcl.strategies.base import Params
from streamcl.train.batch import IGNORED, Row, answer_logits, collate
from streamcl.train.model import adapted, added, write
from streamcl.train.prompts import key_loss, moments, pool_of, prior_moments


class AnswerLoss(nn.Module):
    """Mean cross-entropy of the answer's tokens, and prompts' key loss, summed over samples: [N] → scalar."""

    def __init__(self, model: nn.Module, *, bfloat16: bool = False) -> None:
        super().__init__()
        self.model, self.autocast = model, bfloat16

    def forward(self, batch: dict[str, Tensor], weight_N: Tensor) -> Tensor:
        with torch.autocast(weight_N.device.type, torch.bfloat16, enabled=self.autocast):
            logits, labels = answer_logits(self.model, batch)
        flat = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        loss_NK = flat.view(labels.shape)
        loss_N = loss_NK.sum(1) / (labels != IGNORED).sum(1) + key_loss(self.model, batch, labels != IGNORED)
        return (loss_N * weight_N).sum()


class WindowProbe:
    """A Probe on the window's data: at most `limit` rows, the same on every rank. Leaves the model as it was."""

    def __init__(
        self, model: Any, live: Mapping[str, nn.Parameter], rows: Sequence[Row], replay: Sequence[Row], *, pad_id: int,
        size: int = 16, limit: int = 256, bfloat16: bool = False,
    ) -> None:  # fmt: skip
        """`live`: the adapter's parameters; `size`: rows in one pass; `bfloat16`: under autocast."""
        self.model, self.live, self.pad_id, self.size = model, live, pad_id, size
        self.rows, self.replay = rows[:limit], replay[:limit]
        self.loss = AnswerLoss(model, bfloat16=bfloat16)

    def gradient(self, params: Params, extra: Params | None = None) -> Params:
        return self._at(params, extra, self.rows)

    def replay_gradient(self, params: Params) -> Params | None:
        return self._at(params, None, self.replay) if self.replay else None

    def squared_gradient(self, params: Params, extra: Params | None = None) -> Params:
        return self._at(params, extra, self.rows, size=1, of=torch.square)

    def weight_gradient(self, extra: Params) -> Params:
        weights = adapted(self.model)
        silent = {name: torch.zeros_like(p) if "lora_B" in name else p.detach() for name, p in self.live.items()}
        for weight in weights.values():
            weight.requires_grad_(True)
        try:
            return self._at(silent, extra, self.rows, wanted=weights)
        finally:
            for weight in weights.values():
                weight.requires_grad_(False)

    def moments(self) -> Params:
        total: Params = {}
        for start in range(0, len(self.rows) if pool_of(self.model) else 0, self.size):
            device = next(iter(self.live.values())).device
            inputs = collate(self.rows[start : start + self.size], pad_id=self.pad_id, device=device)
            answers = inputs.pop("labels") != IGNORED
            for name, value in moments(self.model, inputs, answers).items():
                total[name] = total[name] + value if name in total else value
        return total

    def prior(self) -> Params:
        return prior_moments(self.model)

    def _at(
        self, params: Params, extra: Params | None, rows: Sequence[Row], *, size: int | None = None,
        of: Callable[[Tensor], Tensor] = lambda grad: grad, wanted: Mapping[str, nn.Parameter] | None = None,
    ) -> Params:  # fmt: skip
        """Mean over `rows` of the gradients, each chunk's passed through `of`, at `params` and with `extra` added."""
        wanted = self.live if wanted is None else wanted
        kept = {name: value.detach().clone() for name, value in self.live.items()}
        write(self.live, params)
        types = {name: torch.promote_types(value.dtype, torch.float32) for name, value in wanted.items()}
        total = {name: torch.zeros_like(value, dtype=types[name]) for name, value in wanted.items()}
        step = size or self.size
        with added(self.model, extra or {}):
            for start in range(0, len(rows), step):
                for name, grad in zip(wanted, self._grads(rows[start : start + step], wanted), strict=True):
                    total[name] += of(grad) * (min(step, len(rows) - start) / len(rows))
        write(self.live, kept)
        return total

    def _grads(self, rows: Sequence[Row], wanted: Mapping[str, nn.Parameter]) -> tuple[Tensor, ...]:
        """The gradients of the mean loss of `rows`."""
        device = next(iter(self.live.values())).device
        batch = collate(rows, pad_id=self.pad_id, device=device)
        value = self.loss(batch, torch.full((len(rows),), 1.0 / len(rows), device=device))
        return torch.autograd.grad(value, [*wanted.values()])
