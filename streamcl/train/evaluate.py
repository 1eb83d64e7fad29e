"""Exact match of the greedy answer, without generating it.

Greedy decoding gives the reference answer exactly when, with the reference fed in, every answer position (the end of
sequence included) has the reference token as its arg max. One forward pass tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamcl.train.batch import IGNORED, Row, answer_logits, collate

Flags = np.ndarray[Any, np.dtype[np.bool_]]


@torch.no_grad()
def exact_match(
    model: Any, rows: Sequence[Row], *, pad_id: int, batch_size: int = 64, bfloat16: bool = False,
    among: Sequence[Row] = (),
) -> Flags:  # fmt: skip
    """For each row, whether the model's greedy answer is the reference, token for token.

    `among`: rows whose answers are the only ones that decoding may give, those of `rows` included; () allows any.
    """
    following = _following(among)
    device = next(model.parameters()).device
    hits = []
    for start in range(0, len(rows), batch_size):
        batch = collate(rows[start : start + batch_size], pad_id=pad_id, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits, labels = answer_logits(model, batch)
        if among:
            logits = logits + _ruled_out(labels, following, logits.shape[-1])
        hits.append(((logits.argmax(-1) == labels) | (labels == IGNORED)).all(-1).cpu().numpy())
    return np.concatenate(hits) if hits else np.zeros(0, np.bool_)


Following = dict[tuple[int, ...], list[int]]
"""Which tokens may follow the beginning of an answer."""


def _following(among: Sequence[Row]) -> Following:
    following: Following = {}
    for answer in {tuple(row.answer_ids.tolist()) for row in among}:
        for at, token in enumerate(answer):
            following.setdefault(answer[:at], []).append(token)
    return following


def _ruled_out(labels_NK: Tensor, following: Following, words: int) -> Tensor:
    """[N, K, V]: 0 where a token may follow the reference so far, −∞ elsewhere; padding is left alone."""
    bias_NKV = torch.zeros(*labels_NK.shape, words)
    for row, labels in enumerate(labels_NK.tolist()):
        answer = tuple(label for label in labels if label != IGNORED)
        for at in range(len(answer)):
            position = len(labels) - len(answer) + at
            bias_NKV[row, position] = -torch.inf
            bias_NKV[row, position, following[answer[:at]]] = 0.0
    return bias_NKV.to(labels_NK.device)


def marks(model: Any, sets: Mapping[str, Sequence[Row]], *, pad_id: int, bfloat16: bool = False) -> dict[str, Flags]:
    """Which rows of each named set are answered right; empty sets are left out."""
    return {name: exact_match(model, rows, pad_id=pad_id, bfloat16=bfloat16) for name, rows in sets.items() if rows}


def accuracy(marked: Mapping[str, Flags]) -> dict[str, float]:
    """The share in [0, 1] that is answered right, for each set."""
    return {name: float(hits.mean()) for name, hits in marked.items()}
