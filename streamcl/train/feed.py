"""What a stage is fed: batches in an order drawn from a seed, each made ready while the one before it trains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from streamcl.train.batch import Row

T = TypeVar("T")
GROUP = 16
"""Batches' worth of rows among which rows of like length find each other."""


def batches(rows: Sequence[Row], size: int, *, epochs: int, seed: int, by_length: bool = False) -> Iterator[list[Row]]:
    """Every row once an epoch, in an order drawn from `seed`.

    `by_length`: rows of a batch are of like length, so that little of it is padding; the order of batches stays random.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        starts = [*range(0, len(rows), size)]
        if by_length:
            step = size * GROUP
            parts = (order[start : start + step] for start in range(0, len(rows), step))
            order = [i for part in parts for i in sorted(part, key=lambda i: _length(rows[i]))]
            starts = [starts[i] for i in torch.randperm(len(starts), generator=generator).tolist()]
        for start in starts:
            yield [rows[i] for i in order[start : start + size]]


def repeated(replay: Sequence[Row], *, beside: int, share: float) -> list[Row]:
    """Replay rows, each at least once and equally often but for one, until they are `share` of all with `beside`."""
    count = max(len(replay), round(beside * share / (1 - share))) if replay else 0
    return [replay[number % len(replay)] for number in range(count)]


def _length(row: Row) -> int:
    return len(row.prompt_ids) + len(row.answer_ids)


def shares(rows: Sequence[Row], *, rank: int, size: int, micro: int | None) -> list[tuple[Sequence[Row], float]]:
    """What rank `rank` of `size` passes of a batch, at most `micro` rows at a time, and what each row weighs.

    Weights times losses, averaged over the ranks, are the batch's mean loss. All ranks make equally many passes, since
    with sharded weights they make them together: one that has no row left passes any, with weight 0.
    """
    each = micro or len(rows)
    passes = math.ceil(math.ceil(len(rows) / size) / each)
    mine = rows[rank::size]
    parts = [mine[i * each : (i + 1) * each] for i in range(passes)]
    return [(part, size / len(rows)) if part else (rows[:1], 0.0) for part in parts]


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; each is made, on a thread of its own, while the one before it is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
