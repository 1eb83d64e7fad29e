from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcl.store.bottomk import ranks
from streamcl.store.keyed import derive, mix, siphash

KEY = bytes(range(16))
MASK = 2**64 - 1


def reference(message: bytes, key: bytes) -> int:
    """SipHash-2-4, as the paper writes it (Aumasson and Bernstein, 2012)."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def turn(x: int, bits: int) -> int:
        return ((x << bits) | (x >> (64 - bits))) & MASK

    def sip_round() -> None:
        for a, b, c, d, first, second in ((0, 1, 2, 3, 13, 16), (2, 1, 0, 3, 17, 21)):
            v[a] = (v[a] + v[b]) & MASK
            v[c] = (v[c] + v[d]) & MASK
            v[b], v[d] = turn(v[b], first) ^ v[a], turn(v[d], second) ^ v[c]
            v[a] = turn(v[a], 32)

    message += bytes(7 - len(message) % 8) + bytes([len(message) & 255])
    for at in range(0, len(message), 8):
        word = int.from_bytes(message[at : at + 8], "little")
        v[3] ^= word
        sip_round()
        sip_round()
        v[0] ^= word
    v[2] ^= 0xFF
    for _ in range(4):
        sip_round()
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def test_the_papers_test_vectors() -> None:
    texts = ["", "\0", "\0\1", "".join(map(chr, range(15)))]
    expected = [0x726FDB47DD0E0E31, 0x74F839C593DC67FD, 0x0D6C8009D9A94F5A, 0xA129CA6149BE45E5]
    assert siphash(texts, key=KEY).tolist() == expected


@given(st.lists(st.text(max_size=40), max_size=30))
def test_a_batch_hashes_as_each_string_alone_does(texts: list[str]) -> None:
    assert siphash(texts, key=KEY).tolist() == [reference(text.encode(), KEY) for text in texts]


def test_an_arrow_slice_hashes_as_its_strings() -> None:
    texts = [f"{'é' * (i % 5)}{i}" for i in range(50)]
    for array in (pa.array(texts), pa.array(texts, pa.large_string())):
        assert siphash(array.slice(7, 20), key=KEY).tolist() == siphash(texts[7:27], key=KEY).tolist()


def test_uses_of_one_secret_are_independent() -> None:
    assert len({derive(b"secret", "a"), derive(b"secret", "b"), derive(b"other", "a")}) == 3
    assert len(derive(b"", "a")) == 16


def test_mixing_is_a_bijection_that_moves_half_of_the_bits() -> None:
    x = siphash([str(i) for i in range(2000)], key=KEY)
    assert len(set(mix(x, 5).tolist())) == 2000
    for bit in range(64):
        flips = mix(x, 5) ^ mix(x ^ np.uint64(1 << bit), 5)
        assert abs(np.bitwise_count(flips).mean() - 32) < 1
    assert (mix(x, 5) != mix(x, 6)).all()


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_ranks_are_exponential_and_agree_with_the_logarithm(weight: float) -> None:
    hashes = siphash([str(i) for i in range(20_000)], key=KEY)
    hashes[:3] = [0, 1 << 11, 2**64 - 1]
    u = ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    np.testing.assert_allclose(ranks(hashes, weight), -np.log(u) / weight, rtol=1e-14, atol=1e-16)
    assert abs(ranks(hashes, weight).mean() * weight - 1) < 0.03
    in_order = ranks(np.sort(hashes), weight)
    assert (np.diff(in_order) <= 0).all()
