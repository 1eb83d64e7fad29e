"""The pre-training mix: every instruction format of the stream, on other classes and other pictures than the stream's.

`MIX` says how many examples of each ingredient are drawn; `examples` draws them all.
Fonts come from font-lato, font-manrope, font-caladea, font-fredoka-one and font-hanken-grotesk, unzipped beside the
other wheels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from streamcl.zoo import draw, emoji
from streamcl.zoo.recipe import packages as source
from streamcl.zoo.recipe.data import bars, scene
from streamcl.zoo.words import ANIMALS, CHARTS, DIGITS, EMOJI, FLAGS, ICONS, INSTRUCTIONS, MAPS

NUMBERS = DIGITS[1:]
KIND_ICONS = {
    "animal": (
        "bat", "bee", "bird", "butterfly", "cat", "cow", "dog", "dolphin", "donkey", "duck", "elephant", "fish",
        "horse", "jellyfish", "kangaroo", "owl", "panda", "penguin", "pig", "rabbit", "rodent", "shark", "sheep",
        "snail", "snake", "spider", "squirrel", "rat", "turtle", "unicorn",
    ),
    "food": (
        "apple", "avocado", "baguette", "beer", "bread-slice", "cake", "candy", "carrot", "cheese", "cherry", "coffee",
        "corn", "cookie", "cupcake", "egg", "food", "food-apple", "food-drumstick", "food-steak", "french-fries",
        "fruit-cherries", "fruit-grapes", "fruit-pineapple", "fruit-watermelon", "hamburger", "hot-dog", "ice-cream",
        "lollipop", "noodles", "orange", "pizza", "popcorn", "rice", "salad", "sausage", "soup", "taco", "wine",
    ),
    "vehicle": (
        "airplane", "ambulance", "bicycle", "bike", "bulldozer", "bus", "car", "caravan", "fire-truck", "forklift",
        "helicopter", "kayak", "moped", "motorbike", "plane", "rocket", "sailboat", "scooter", "ship", "submarine",
        "taxi", "tractor", "train", "tram", "truck", "van",
    ),
}  # fmt: skip
KIND_PREFIXES = {
    "face": ("emoticon", "mood-", "smiley"),
    "person": ("account", "human", "face-man", "face-woman", "karate", "yoga"),
}
KIND_EMOJI = {
    "clothing": "clothing", "musical-instrument": "instrument", "tool": "tool", "sport": "sport", "arrow": "arrow",
    "heart": "heart", "plant-other": "plant", "plant-flower": "plant", "sky & weather": "weather",
    "place-building": "building", "time": "clock", "hands": "hand", "hand-fingers-open": "hand",
    "hand-fingers-partial": "hand", "hand-fingers-closed": "hand", "alphanum": "letter", "book-paper": "paper",
    "office": "office", "household": "household", "zodiac": "sign", "av-symbol": "sign", "warning": "sign",
}  # fmt: skip
COLORS = {
    "red": (220, 30, 30), "green": (30, 150, 50), "blue": (40, 70, 220), "yellow": (245, 220, 40),
    "orange": (245, 140, 20), "purple": (130, 50, 170), "pink": (250, 150, 190), "brown": (120, 75, 40),
    "gray": (130, 130, 130), "black": (10, 10, 10), "white": (250, 250, 250),
}  # fmt: skip
SHAPES = ("circle", "triangle", "square", "pentagon", "hexagon")
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")


class Example(NamedTuple):
    """A picture as PNG, a question and its answer."""

    image: bytes
    question: str
    answer: str


def _hands(packages: Path) -> list[dict[str, str]]:
    return [
        source.mdi(packages),
        source.lucide(packages),
        source.tabler(packages),
        source.phosphor(packages, "regular"),
    ]


def other_icons(packages: Path, count: int, random: Random) -> list[Example]:
    """Icons of other names, drawn by at least two of the four designers (long names: three)."""
    hands = _hands(packages)
    drawn = Counter(name for hand in hands for name in hand)
    names = {
        n
        for n, hands_ in drawn.items()
        if hands_ >= (3 if "-" in n else 2) and n.replace("-", "").isalpha() and n not in ICONS
    }
    drawings = [(name, picture) for hand in hands for name, picture in source.rasters(hand, names).items()]
    return [_icon(*random.choice(drawings), random, "icons") for _ in range(count)]


def _icon(name: str, picture: Image.Image, random: Random, task: str) -> Example:
    posed = draw.posed(picture, random, side=72, least=0.75)
    return Example(
        draw.png(draw.inked(posed, random), colors=8), random.choice(INSTRUCTIONS[task]), name.replace("-", " ")
    )


def emoji_as_icons(packages: Path, count: int, random: Random) -> list[Example]:
    """Things of the icon task as another hand drew them, and their neighbours: emoji that no task shows."""
    rows = [(row["name"].lower(), draw.raster(emoji.svg(row["code"]))) for row in _free_emoji(packages)]
    wanted = [(name, picture) for name, picture in rows if name in ICONS] * 4 + rows
    asked = (*INSTRUCTIONS["icons"], "Name the emoji.", "What does this emoji show?")
    return [_emoji(*random.choice(wanted), random, asked) for _ in range(count)]


def _free_emoji(packages: Path) -> list[dict[str, str]]:
    taken = {code for codes in emoji.categories().values() for code in codes}
    rows = [
        row
        for row in source.emoji_table(packages)
        if row["code"] not in taken and row["category"] not in ("Flags", "Component")
    ]
    return [
        row for row in rows if len(row["name"].split()) <= 2 and row["name"].replace(" ", "").replace("-", "").isalpha()
    ]


def _emoji(answer: str, picture: Image.Image, random: Random, asked: tuple[str, ...]) -> Example:
    posed = draw.posed(picture, random, least=0.75)
    return Example(draw.png(draw.on_paper(posed, random), colors=32), random.choice(asked), answer)


def kinds(packages: Path, count: int, random: Random) -> list[Example]:
    """The five kinds drawn as icons, and other kinds drawn as emoji."""
    icons = []
    for hand in _hands(packages):
        for kind, names in KIND_ICONS.items():
            icons += [(kind, picture) for picture in source.rasters(hand, set(names) - set(ICONS)).values()]
        for kind, prefixes in KIND_PREFIXES.items():
            names_ = sorted(name for name in hand if name.startswith(prefixes))[:40]
            icons += [(kind, picture) for picture in source.rasters(hand, set(names_)).values()]
    groups = {kind: [pair for pair in icons if pair[0] == kind] for kind in EMOJI}
    rows = [row for row in source.emoji_table(packages) if row["subcategory"] in KIND_EMOJI]
    others = [(KIND_EMOJI[row["subcategory"]], draw.raster(emoji.svg(row["code"]))) for row in rows]
    asked = INSTRUCTIONS["emoji_category"]
    drawn = [
        _icon(*random.choice(groups[random.choice(EMOJI)]), random, "emoji_category") for _ in range(count * 2 // 3)
    ]
    return drawn + [_emoji(*random.choice(others), random, asked) for _ in range(count - len(drawn))]


def animals(packages: Path, count: int, random: Random) -> list[Example]:
    """Animals as icons, half of them white on black and small like the silhouettes."""
    names = (set(KIND_ICONS["animal"]) | set(ANIMALS)) - set(ICONS)
    hands = [*_hands(packages), source.phosphor(packages, "fill")]
    drawings = [(name, picture) for hand in hands for name, picture in source.rasters(hand, names).items()]
    found = []
    for _ in range(count):
        name, picture = random.choice(drawings)
        if random.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        example = _icon(name, picture, random, "animals")
        found.append(example._replace(image=_white_on_black(picture, random)) if random.random() < 0.6 else example)
    return found


def _white_on_black(picture: Image.Image, random: Random) -> bytes:
    return draw.png(draw.posed(picture, random, side=28, turn=10, least=0.8).getchannel("A"))


def flags(packages: Path, count: int, random: Random) -> list[Example]:
    """Flags of every other country and region."""
    rows = [row for row in source.emoji_table(packages) if row["subcategory"] in ("country-flag", "subdivision-flag")]
    drawings = [
        (row["name"].lower().removesuffix(" flag"), draw.raster(emoji.svg(row["code"])))
        for row in rows
        if row["code"] not in {emoji.flag_code(code) for code in FLAGS.values()}
    ]
    return [_emoji(*random.choice(drawings), random, INSTRUCTIONS["flags"]) for _ in range(count)]


def maps(packages: Path, count: int, random: Random) -> list[Example]:
    """Outlines of every other country."""
    shapes = [(name, shape) for name, shape in source.outlines(packages).items() if name not in MAPS]
    found = []
    for _ in range(count):
        name, shape = random.choice(shapes)
        posed = draw.posed(shape, random, least=0.7)
        found.append(Example(draw.png(draw.inked(posed, random), colors=8), random.choice(INSTRUCTIONS["maps"]), name))
    return found


def characters(packages: Path, count: int, random: Random) -> list[Example]:
    """Digits, and one time in four letters, in fonts; most are white on black, small and skewed."""
    found = []
    for _ in range(count):
        letter = random.random() < 0.25
        mark = random.choice("abcdefghijklmnopqrstuvwxyz" if letter else "0123456789")
        glyph = _written(mark, packages, random, size=100)
        shear = random.uniform(-0.3, 0.3)
        skewed = (1, shear, -shear * glyph.height / 2, 0, 1, 0)
        glyph = glyph.transform(glyph.size, Image.Transform.AFFINE, skewed, Image.Resampling.BILINEAR)
        image = (
            _white_on_black(glyph, random)
            if random.random() < 0.7
            else draw.png(draw.inked(draw.posed(glyph, random), random))
        )
        asked = ("Which letter is this?", "Read the letter.") if letter else INSTRUCTIONS["digits"]
        found.append(Example(image, random.choice(asked), mark if letter else DIGITS[int(mark)]))
    return found


def _written(text: str, packages: Path, random: Random, *, size: int) -> Image.Image:
    """The text in a random font, black on a clear square that it fills."""
    fonts = sorted(
        path for folder in packages.glob("font_*/files") for path in folder.iterdir() if path.suffix in (".ttf", ".otf")
    )
    font = ImageFont.truetype(random.choice(fonts), size)
    left, top, right, bottom = font.getbbox(text)
    side = round(max(right - left, bottom - top) * 1.2)
    square = Image.new("RGBA", (side, side))
    corner = ((side - right - left) / 2, (side - bottom - top) / 2)
    ImageDraw.Draw(square).text(corner, text, fill=(0, 0, 0, 255), font=font)
    return square


def words(packages: Path, count: int, random: Random) -> list[Example]:
    """Words to read, and words to repeat: so every answer of the stream has been said."""
    answers = [*DIGITS, *ANIMALS, *ICONS, *EMOJI, *FLAGS, *MAPS, *CHARTS]
    found = []
    for index in range(count):
        word = answers[index % len(answers)]
        picture = draw.posed(_written(word, packages, random, size=48), random, turn=5, least=0.9)
        asked = random.choice(("Read the word.", "What does it say?", f"Repeat the word: {word}", f"Say {word}."))
        found.append(Example(draw.png(draw.inked(picture, random), colors=8), asked, word))
    return found


def shapes(packages: Path, count: int, random: Random) -> list[Example]:
    """One shape in a named colour at a named place: which shape, which colour, where."""
    found = []
    for _ in range(count):
        (ink, rgb), (paper, behind) = random.sample(sorted(COLORS.items()), 2)
        place, corners = random.randrange(9), random.choice((0, 3, 4, 5, 6))
        picture = Image.new("RGB", (96, 96), behind)
        x, y, radius = 16 + place % 3 * 32, 16 + place // 3 * 32, random.randint(10, 15)
        pen = ImageDraw.Draw(picture)
        if corners:
            pen.regular_polygon((x, y, radius), corners, fill=rgb, rotation=random.randint(0, 90))
        else:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=rgb)
        asked = [("What color is the shape?", ink), ("What color is the background?", paper),
                 ("Where is the shape?", PLACES[place]),
                 ("Which shape is this?", SHAPES[max(0, corners - 2)])]  # fmt: skip
        found.append(Example(draw.png(picture), *random.choice(asked)))
    return found


def counts(packages: Path, count: int, random: Random) -> list[Example]:
    """One to seven shapes of kinds that the task does not have."""
    found = []
    for _ in range(count):
        number = random.randint(1, 7)
        picture = draw.png(scene(number, ("pentagon", "hexagon"), random))
        found.append(Example(picture, random.choice(INSTRUCTIONS["counting"]), NUMBERS[number - 1]))
    return found


def charts(packages: Path, count: int, random: Random) -> list[Example]:
    """Four to six made-up bars: the tallest, the shortest, or how many."""
    found = []
    for _ in range(count):
        number = random.randint(4, 6)
        heights = [random.uniform(0.1, 0.85) for _ in range(number)]
        tall, short = random.sample(range(number), 2)
        heights[tall], heights[short] = 1.0, 0.03
        picture = draw.png(bars(heights, random), colors=8)
        asked = [(random.choice(INSTRUCTIONS["charts"]), CHARTS[tall])] * 2 + [
            (random.choice(("Which bar is the shortest?", "Find the lowest bar.")), CHARTS[short]),
            ("How many bars are there?", NUMBERS[number - 1]),
        ]
        found.append(Example(picture, *random.choice(asked)))
    return found


MIX: dict[str, tuple[Callable[[Path, int, Random], list[Example]], int]] = {
    "icons": (other_icons, 6000), "emoji": (emoji_as_icons, 2400), "kinds": (kinds, 2400), "animals": (animals, 1800),
    "flags": (flags, 3600), "maps": (maps, 3600), "characters": (characters, 3200),
    "words": (words, 2000), "shapes": (shapes, 1200), "counts": (counts, 2000), "charts": (charts, 2000),
}  # fmt: skip


def examples(packages: Path, *, seed: int) -> list[Example]:
    """The whole mix, ingredient after ingredient."""
    found: list[Example] = []
    for name, (draw_, count) in track(MIX.items(), "drawing the mix"):
        found += draw_(packages, count, Random(f"{name}/{seed}"))
    return found
