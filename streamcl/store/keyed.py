"""SipHash-2-4 of many strings at once, in numpy: the keyed hash that decides what is remembered.

Hashing strings one by one (blake2b: about 1 µs each) would be the whole budget of an offer. Here each operation of
SipHash runs over the whole batch. The 16-byte key is the secret: a producer who does not know it cannot choose ids that
rank well, or that stay out of the held-out share. Hashes are never shown to producers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]

_INIT = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
_SHIFTS = {bits: (np.uint64(bits), np.uint64(64 - bits)) for bits in (13, 16, 17, 21, 32)}
_LAST = np.array([(1 << (8 * n)) - 1 for n in range(8)], dtype=np.uint64)
"""Mask that keeps the n bytes which the last, incomplete word of a string has."""


def derive(key: bytes, use: str) -> bytes:
    """A 16-byte key for one use, so that two uses of one secret are independent."""
    return hashlib.blake2b(use.encode(), key=hashlib.sha256(key).digest(), digest_size=16).digest()


def siphash(texts: Sequence[str] | pa.Array, *, key: bytes) -> Hashes:
    """SipHash-2-4 of each string's UTF-8 bytes under a 16-byte `key`."""
    lengths, order, words = _words(texts)
    k = np.frombuffer(key, dtype="<u8")
    state = [np.full(len(lengths), np.uint64(init) ^ k[i & 1]) for i, init in enumerate(_INIT)]
    scratch = np.empty(len(lengths), dtype=np.uint64)
    for word in words:
        _absorb([v[: len(word)] for v in state], word, scratch[: len(word)])
    state[2] ^= np.uint64(0xFF)
    for _ in range(4):
        _round(state, scratch)
    hashed: Hashes = state[0] ^ state[1] ^ state[2] ^ state[3]
    if order is None:
        return hashed
    out = np.empty_like(hashed)
    out[order] = hashed
    return out


def mix(hashes: Hashes, seed: int = 0) -> Hashes:
    """Fresh bits out of hashes: a bijection that scatters every bit (the finaliser of splitmix64).

    Uniform input stays uniform. Not a keyed hash by itself: its input must already be secret.
    """
    x = hashes + np.uint64((seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & (2**64 - 1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = x ^ (x >> np.uint64(31))
    return mixed


def _words(texts: Sequence[str] | pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.intp] | None, list[Hashes]]:
    """Lengths (longest first), the order that makes them so (None: as given), and SipHash's words, block by block."""
    kind = pa.large_string()
    array = texts.cast(kind) if isinstance(texts, pa.Array) else pa.array(texts, type=kind)
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    first, last = (int(offsets[0]), int(offsets[-1])) if len(array) else (0, 0)
    padded = np.zeros(last - first + 16, dtype=np.uint8)
    if last > first:
        padded[: last - first] = np.frombuffer(array.buffers()[2], dtype=np.uint8)[first:last]
    starts = offsets[:-1] - first
    lengths = np.diff(offsets)
    order = None
    if len(array) and lengths.min() != lengths.max():
        order = np.argsort(-lengths, kind="stable")  # longest first: block b touches a prefix of the batch
        starts, lengths = starts[order], lengths[order]
    windows = np.ndarray((len(padded) - 7,), dtype="V8", buffer=padded, strides=(1,))
    words = []
    for block in range(int(lengths[0] >> 3) + 1 if len(array) else 0):
        active = len(lengths) if order is None else int(np.searchsorted(-lengths, -8 * block, side="right"))
        word = windows[starts[:active] + 8 * block].view("<u8").astype(np.uint64, copy=False)
        left = lengths[:active] - 8 * block
        ending = int(np.searchsorted(-left, -8, side="right"))  # the shorter strings end in this block
        tail = slice(ending, active)
        word[tail] &= _LAST[left[tail]]
        word[tail] |= lengths[tail].astype(np.uint64) << np.uint64(56)
        words.append(word)
    return lengths, order, words


def _absorb(state: list[Hashes], word: Hashes, scratch: Hashes) -> None:
    state[3] ^= word
    _round(state, scratch)
    _round(state, scratch)
    state[0] ^= word


def _round(state: list[Hashes], scratch: Hashes) -> None:
    """One SipRound, in place."""
    a, b, c, d = state
    a += b
    _rotate(b, 13, scratch)
    b ^= a
    _rotate(a, 32, scratch)
    c += d
    _rotate(d, 16, scratch)
    d ^= c
    a += d
    _rotate(d, 21, scratch)
    d ^= a
    c += b
    _rotate(b, 17, scratch)
    b ^= c
    _rotate(c, 32, scratch)


def _rotate(x: Hashes, bits: int, scratch: Hashes) -> None:
    left, right = _SHIFTS[bits]
    np.left_shift(x, left, out=scratch)
    np.right_shift(x, right, out=x)
    np.bitwise_or(x, scratch, out=x)
