"""How answers are scored in the papers of UCIT and CoIN: exact match, boxes, and the captions' metrics.

Captions are lower-cased words without punctuation. What differs from the papers' tools: METEOR matches equal words only
(theirs also stems, synonyms and paraphrases, which need Java and WordNet), so it is lower than theirs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
BOX = re.compile(r"-?\d+(?:\.\d+)?")
N = 4
Words = list[str]
Grams = Counter[tuple[str, ...]]


def words(text: str) -> Words:
    return WORD.findall(text.lower())


def grams(text: Words, n: int) -> Grams:
    return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))


def exact_match(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of answers that are a reference after upper-casing."""
    return _mean(
        a.strip().upper() in [r.strip().upper() for r in rs] for a, rs in zip(answers, references, strict=True)
    )


def box_match(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of answers whose box [x1, y1, x2, y2] covers a reference with an intersection over union of 0.5 or more."""
    return _mean(max(_overlap(a, r) for r in rs) >= 0.5 for a, rs in zip(answers, references, strict=True))


def _overlap(answer: str, reference: str) -> float:
    boxes = [[float(x) for x in BOX.findall(text)[:4]] for text in (answer, reference)]
    if any(len(box) < 4 for box in boxes):
        return 0.0
    (a, b, c, d), (e, f, g, h) = boxes
    inside = max(0.0, min(c, g) - max(a, e)) * max(0.0, min(d, h) - max(b, f))
    return inside / ((c - a) * (d - b) + (g - e) * (h - f) - inside) if inside else 0.0


def bleu(answers: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 of the whole set (Papineni et al., 2002), brevity by the closest reference."""
    hits, totals, length, closest = [0] * N, [0] * N, 0, 0
    for answer, known in zip(answers, references, strict=True):
        length += len(answer)
        closest += min((abs(len(r) - len(answer)), len(r)) for r in known)[1]
        for n in range(N):
            most: Grams = Counter()
            for reference in known:
                most |= grams(reference, n + 1)
            hits[n] += (grams(answer, n + 1) & most).total()
            totals[n] += max(0, len(answer) - n)
    if not length:
        return [0.0] * N
    short = min(1.0, math.exp(1 - closest / length))
    precisions = [hit / total if total else 0.0 for hit, total in zip(hits, totals, strict=True)]
    return [short * math.prod(precisions[: n + 1]) ** (1 / (n + 1)) for n in range(N)]


def rouge_l(answer: Words, known: Sequence[Words], *, beta: float = 1.2) -> float:
    """ROUGE-L (Lin, 2004): longest common subsequence, best precision and best recall over the references."""
    common = [_subsequence(answer, reference) for reference in known]
    precision = max(c / len(answer) for c in common) if answer else 0.0
    recall = max((c / len(r) for c, r in zip(common, known, strict=True) if r), default=0.0)
    both = recall + beta**2 * precision
    return (1 + beta**2) * precision * recall / both if both else 0.0


def _subsequence(a: Words, b: Words) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def meteor(answer: Words, known: Sequence[Words]) -> float:
    """METEOR (Banerjee and Lavie, 2005; α 0.9, β 3, γ 0.5) with equal words as the only matches."""
    return max(_meteor(answer, reference) for reference in known)


def _meteor(answer: Words, reference: Words) -> float:
    free: dict[str, list[int]] = {}
    for at, word in enumerate(reference):
        free.setdefault(word, []).append(at)
    matches, chunks, last = 0, 0, -2
    for word in answer:
        places = free.get(word)
        if not places:
            last = -2
            continue
        at = last + 1 if last + 1 in places else places[0]
        places.remove(at)
        matches, chunks, last = matches + 1, chunks + (at != last + 1), at
    if not matches:
        return 0.0
    precision, recall = matches / len(answer), matches / len(reference)
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    return mean * (1 - 0.5 * (chunks / matches) ** 3)


def cider(answers: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each caption (Vedantam et al., 2015; σ 6, times 10), document frequencies from these references."""
    seen: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(N)]
    for known in references:
        for n in range(N):
            seen[n].update({gram for reference in known for gram in grams(reference, n + 1)})
    log_size = math.log(len(references))

    def vector(text: Words, n: int) -> dict[tuple[str, ...], float]:
        return {g: count * (log_size - math.log(max(1, seen[n][g]))) for g, count in grams(text, n + 1).items()}

    def alike(text: Words, reference: Words, n: int) -> float:
        ours, theirs = vector(text, n), vector(reference, n)
        norms = math.sqrt(sum(x * x for x in ours.values())) * math.sqrt(sum(x * x for x in theirs.values()))
        product = sum(min(x, theirs[g]) * theirs[g] for g, x in ours.items() if g in theirs)
        return product / norms * math.exp(-((len(text) - len(reference)) ** 2) / 72) if norms else 0.0

    return [
        10 * _mean(_mean(alike(answer, reference, n) for n in range(N)) for reference in known)
        for answer, known in zip(answers, references, strict=True)
    ]


def captions(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-1 to 4, METEOR, ROUGE-L, CIDEr, and their mean: what UCIT reports for a captioning task, times 100."""
    said, known = [words(a) for a in answers], [[words(r) for r in rs] for rs in references]
    found = {f"BLEU-{n}": value for n, value in enumerate(bleu(said, known), 1)}
    pairs = list(zip(said, known, strict=True))
    found |= {"METEOR": _mean(meteor(*pair) for pair in pairs), "ROUGE-L": _mean(rouge_l(*pair) for pair in pairs)}
    found["CIDEr"] = _mean(cider(said, known))
    return {**found, "mean": _mean(found.values())}


def caption_mean(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    return captions(answers, references)["mean"]


Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], float]
METRICS: Mapping[str, Metric] = {"exact match": exact_match, "box IoU >= 0.5": box_match, "captions": caption_mean}


def _mean(values: object) -> float:
    listed = [float(x) for x in values]  # type: ignore[attr-defined]  # any iterable of numbers
    return sum(listed) / len(listed) if listed else 0.0
