"""Small pictures: SVG to pixels, then a pose, colours and a background drawn from a generator that the caller seeds."""

from __future__ import annotations

import io
from random import Random

from PIL import Image

from streamcl.errors import ConfigError

SIDE = 96
"""Pixels of a rendered picture's side; the model's processor enlarges it to 128."""


def raster(svg: str, *, side: int = 128) -> Image.Image:
    """An SVG drawing as an RGBA picture that fits into a square.  Raises ConfigError without resvg-py."""
    try:
        import resvg_py
    except ImportError:
        raise ConfigError("rendering SVG needs resvg-py; run: pip install 'streamcl[zoo]'") from None
    drawn = Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, width=side, skip_system_fonts=True))).convert(
        "RGBA"
    )
    square = Image.new("RGBA", (max(drawn.size),) * 2)
    square.paste(drawn, ((square.width - drawn.width) // 2, (square.height - drawn.height) // 2))
    return square


def posed(
    picture: Image.Image, random: Random, *, side: int = SIDE, turn: float = 15, least: float = 0.6
) -> Image.Image:
    """The picture turned by up to `turn` degrees, scaled to `least`..1 of the side, somewhere on a clear square."""
    size = round(side * random.uniform(least, 1.0))
    small = picture.resize((size, size), Image.Resampling.BILINEAR)
    small = small.rotate(random.uniform(-turn, turn), Image.Resampling.BILINEAR)
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(small, (random.randint(0, side - size), random.randint(0, side - size)))
    return canvas


def color(random: Random, *, dark: bool) -> tuple[int, int, int]:
    """A random colour from the dark or the light third."""
    low, high = (0, 90) if dark else (175, 255)
    return random.randint(low, high), random.randint(low, high), random.randint(low, high)


def inked(shape: Image.Image, random: Random) -> Image.Image:
    """The picture's alpha in one ink on one paper: dark on light, or one time in four the reverse."""
    dark = random.random() < 0.75
    paper = Image.new("RGB", shape.size, color(random, dark=not dark))
    paper.paste(color(random, dark=dark), (0, 0), shape.getchannel("A"))
    return paper


def on_paper(picture: Image.Image, random: Random) -> Image.Image:
    """The picture in its own colours on a random background."""
    paper = Image.new("RGB", picture.size, color(random, dark=random.random() < 0.3))
    paper.paste(picture, (0, 0), picture.getchannel("A"))
    return paper


def png(picture: Image.Image, *, colors: int = 16) -> bytes:
    """The picture as a small PNG with a palette."""
    out = io.BytesIO()
    picture.quantize(colors, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()
