"""The papers' metrics against values worked out by hand, and what they must and must not reward."""

from __future__ import annotations

import math

import pytest

from streamcl.bench.captions import bleu, box_match, captions, cider, exact_match, meteor, rouge_l, words

CAT = words("the cat sat on the mat")


def test_exact_match_looks_past_case_and_space_only() -> None:
    assert exact_match(["  a fox ", "a dog", "B."], [["A FOX"], ["a cat", "A Dog"], ["b"]]) == pytest.approx(2 / 3)


def test_boxes_match_from_half_of_their_union_on() -> None:
    whole, half, less = "[0, 0, 1, 1]", "[0.0, 0.0, 0.5, 1.0]", "[0, 0, 0.49, 1]"
    assert box_match([whole, half, less, "none"], [[whole]] * 4) == 0.5


def test_bleu_by_hand() -> None:
    """Papineni's example: seven times "the" matches twice; then brevity, and the geometric mean."""
    known = [words("the cat is on the mat"), words("there is a cat on the mat")]
    assert bleu([["the"] * 7], [known])[0] == pytest.approx(2 / 7)
    found = bleu([words("the cat sat")], [[CAT]])
    assert found[0] == pytest.approx(math.exp(1 - 6 / 3))
    assert found[:3] == pytest.approx([math.exp(-1)] * 3)
    assert found[3] == 0.0
    mixed = bleu([words("the cat on the mat")], [[CAT]])  # 5/5 words, 3/4 pairs
    assert mixed[1] == pytest.approx(math.exp(1 - 6 / 5) * math.sqrt(3 / 4))


def test_bleu_is_of_the_whole_set_not_a_mean() -> None:
    assert bleu([["a"], ["x", "y", "z"]], [[["a"]], [["b", "c", "d"]]])[0] == pytest.approx(1 / 4)


def test_rouge_by_hand() -> None:
    assert rouge_l(CAT, [CAT]) == pytest.approx(1.0)
    precision, recall = 3 / 4, 3 / 6  # the, cat, mat in order
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(words("the cat mat slept"), [CAT]) == pytest.approx(expected)
    assert rouge_l([], [CAT]) == 0.0


def test_meteor_by_hand() -> None:
    """Six matches in one chunk cost 0.5 / 6^3; in three chunks 0.5 / 2^3."""
    assert meteor(CAT, [CAT]) == pytest.approx(1 - 0.5 / 216)
    moved = words("on the mat sat the cat")
    assert meteor(moved, [CAT]) == pytest.approx(1 - 0.5 * (3 / 6) ** 3)
    precision, recall = 1.0, 2 / 6
    assert meteor(["the", "cat"], [CAT]) == pytest.approx(
        precision * recall / (0.9 * precision + 0.1 * recall) * (1 - 0.5 * (1 / 2) ** 3)
    )
    assert meteor(["dog"], [CAT]) == 0.0


def test_cider_rewards_rare_words_and_not_those_of_every_caption() -> None:
    known = [[words("a photo of a red fox")], [words("a photo of a blue whale")], [words("a photo of a green frog")]]
    exact = cider([known[0][0], known[1][0], known[2][0]], known)
    assert exact == pytest.approx([10.0] * 3)  # equal texts are as alike as can be, for each n
    common, rare = cider([words("a photo of a"), words("blue whale"), known[2][0]], known)[:2]
    assert common < 1.0 < rare < 10.0


def test_cider_by_hand_for_single_words() -> None:
    """Two captions of one word: only n = 1 counts, and its weight is ln 2."""
    assert cider([["fox"], ["fox"]], [[["fox"]], [["whale"]]]) == pytest.approx([10 / 4, 0.0])


def test_the_mean_is_of_seven_metrics() -> None:
    said = ["The cat sat on the mat.", "a fox"]
    found = captions(said, [[text] for text in said])
    assert [*found] == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "mean"]
    assert found["mean"] == pytest.approx(sum(list(found.values())[:7]) / 7)
    assert found["BLEU-1"] == found["ROUGE-L"] == pytest.approx(1.0)
