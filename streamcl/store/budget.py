"""What grows with the tasks, kept to a budget: stacks of adapters and of bases, the oldest pairs merged first.

A pair (A_RI, B_OR) stands for the update B A of a linear layer with I inputs and O outputs; its scale is already in B.
Ranks of a sum add, so a stack's rank grows with every task, until the two oldest become one of less rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from streamcl.store.keyed import mix
from streamcl.store.memory import TaskMemory

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]


def recompress(pairs: Sequence[Pair], rank: int) -> tuple[Tensor, Tensor, float]:
    """(A, B, relative error): B A is nearest to the pairs' sum among all of rank ≤ `rank`.

    The error is Frobenius, before rounding to the pairs' dtype.
    """
    total = _Sum.of(pairs)
    a, b = total.pair(rank)
    return a, b, total.lost(rank) / total.size if total.size else 0.0


def rank_for(pairs: Sequence[Pair], error: float) -> int:
    """The least rank, at least 1, that keeps the pairs' sum within a relative error."""
    return _Sum.of(pairs).rank_for(error)


def fit(stack: Sequence[Pair], *, rank: int, error: float) -> tuple[list[Pair], float]:
    """The stack within a total `rank`, and how much of what was merged is lost at most (relative, Frobenius).

    While the stack is over, its two oldest become one: of the least rank that loses no more than `error`, or less if
    the budget needs it, though not less than the larger of the two. Memory is bounded in any case; the second value
    says what that cost. Newer pairs stay as they are.
    """
    pairs, lost, size = list(stack), 0.0, 0.0
    while (over := sum(len(a) for a, _ in pairs) - rank) > 0:
        ranks = [len(a) for a, _ in pairs[:2]]
        most = _most(ranks, over) if len(ranks) == 2 else rank
        merged = _Sum.of(pairs[:2])
        kept = min(most, merged.rank_for(error))
        pairs[:2] = [merged.pair(kept)]
        lost, size = lost + merged.lost(kept), merged.size
    return pairs, lost / size if size else 0.0


def keep_adapters(memory: TaskMemory, *, rank: int, error: float, prefix: str = "adapter/") -> TaskMemory:
    """The memory with the adapters "adapter/0", "adapter/1", … within a total `rank` of each layer, by `fit`'s rule.

    The two oldest merge under the name of the younger. `meta["merged"]` says how many adapters the oldest name stands
    for and how far it is from their exact sum, all merges so far included: measured, not bounded, by probes that the
    group "merged" keeps (relative, Frobenius; right to a tenth or so for a hundred layers).
    """
    while True:
        groups = sorted((g for g in memory.tensors if g.startswith(prefix)), key=lambda g: int(g[len(prefix) :]))
        stacks = [pairs_of(memory.group(group)) for group in groups]
        over = max((sum(len(pairs[layer][0]) for pairs in stacks) for layer in (stacks or [{}])[0]), default=0) - rank
        if over <= 0 or len(groups) < 2:
            return memory
        memory = _merge_groups(memory, groups[0], groups[1], over=over, error=error)


def pairs_of(group: Mapping[str, Tensor]) -> dict[str, Pair]:
    """The (A, B) pairs of an adapter, by the name of A; names as PEFT gives them."""
    return {name: (a, group[_partner(name)]) for name, a in group.items() if "lora_A" in name}


def _merge_groups(memory: TaskMemory, old: str, young: str, *, over: int, error: float) -> TaskMemory:
    older, younger = pairs_of(memory.group(old)), pairs_of(memory.group(young))
    before = memory.meta.get("merged", {"group": old, "oldest": old, "adapters": 1})
    exact = dict(memory.tensors.get("merged") or {layer: _probe(layer, pair) for layer, pair in older.items()})
    merged: dict[str, Tensor] = {}
    off = []
    for layer, pair in younger.items():
        both = [older[layer], pair]
        total = _Sum.of(both)
        kept = min(_most([len(a) for a, _ in both], over), total.rank_for(error))
        merged[layer], merged[_partner(layer)] = total.pair(kept)
        exact[layer] = exact[layer] + _probe(layer, pair)
        off.append(exact[layer] - _probe(layer, (merged[layer], merged[_partner(layer)])))
    measured = float(torch.cat(off).norm() / torch.cat(list(exact.values())).norm().clamp(min=1e-300))
    tensors = {name: some for name, some in memory.tensors.items() if name not in (old, young)}
    stated = {"group": young, "oldest": before["oldest"], "adapters": before["adapters"] + 1, "error": measured}
    return TaskMemory({**tensors, young: merged, "merged": exact}, {**memory.meta, "merged": stated})


def _partner(name: str) -> str:
    return name.replace("lora_A", "lora_B")


def _probe(layer: str, pair: Pair) -> Tensor:
    """uᵀBAv for eight pairs of random signs u, v that the layer's name fixes.

    Linear in BA, so probes of a sum add up without the sum; and the expected square of each is ‖BA‖_F².
    """
    a_RI, b_OR = (factor.to(torch.float64) for factor in pair)
    right_IP, left_OP = _signs(f"{layer}/v", a_RI.shape[1]), _signs(f"{layer}/u", b_OR.shape[0])
    return ((left_OP.T @ b_OR).T * (a_RI @ right_IP)).sum(0)


def _signs(name: str, length: int) -> Tensor:
    """Random signs, eight for each index, equal on every machine."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    bits = np.unpackbits(mix(np.arange(length, dtype=np.uint64), seed).astype("<u8").view(np.uint8)[::8, None], axis=1)
    return torch.from_numpy(2.0 * bits - 1.0)


def _most(ranks: Sequence[int], over: int) -> int:
    """The rank that two may have when the stack is `over`: no less than the larger of the two."""
    return max(sum(ranks) - over, *ranks)


def merge_bases(bases: Sequence[Tensor], rank: int) -> tuple[Tensor, float]:
    """(basis_DK, relative error): the K ≤ `rank` directions that hold most of all bases' vectors, and what they miss.

    The error is Frobenius; it is 0 when the span of all bases fits, and then nothing protected is given up.
    """
    stacked = torch.cat([basis.to(torch.float64) for basis in bases], dim=1)
    directions, singular, _ = torch.linalg.svd(stacked, full_matrices=False)
    kept = min(rank, int((singular > 1e-6 * singular[0]).sum()))
    missed = float(singular[kept:].norm() / singular.norm()) if kept == rank else 0.0
    return directions[:, :kept].to(bases[0].dtype), missed


@dataclass(frozen=True)
class _Sum:
    """SVD of the pairs' sum, float64. The sum is never formed: QR of both stacked factors, SVD of the small core."""

    left_OR: Tensor
    spectrum: Tensor
    right_RI: Tensor
    dtype: torch.dtype

    @staticmethod
    def of(pairs: Sequence[Pair]) -> _Sum:
        a_RI = torch.cat([a.to(torch.float64) for a, _ in pairs])
        b_OR = torch.cat([b.to(torch.float64) for _, b in pairs], dim=1)
        left, left_core = torch.linalg.qr(b_OR)
        right, right_core = torch.linalg.qr(a_RI.T)
        u, spectrum, vh = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
        return _Sum(left @ u, spectrum, vh @ right.T, pairs[0][0].dtype)

    @property
    def size(self) -> float:
        return float(self.spectrum.norm())

    def lost(self, rank: int) -> float:
        """Frobenius norm of what the best approximation of `rank` leaves out."""
        return float(self.spectrum[rank:].norm())

    def rank_for(self, error: float) -> int:
        squared = self.spectrum.square()
        tails = squared.flip(0).cumsum(0).flip(0)  # tails[k]: what is left out when k are kept
        return max(1, int((tails > error**2 * squared.sum()).sum()))

    def pair(self, rank: int) -> Pair:
        root = self.spectrum[:rank].sqrt()  # shared by both factors, so that neither is badly scaled
        return (root[:, None] * self.right_RI[:rank]).to(self.dtype), (self.left_OR[:, :rank] * root).to(self.dtype)
