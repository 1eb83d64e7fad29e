"""Images at the door: bytes are an image that training can open, or BadSample says why not."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from streamcl.errors import BadSample
from streamcl.stream.deadletter import refuse, shown
from streamcl.stream.limits import Limits

FORMATS = ["JPEG", "PNG", "WEBP"]
ASPECT = 200
"""Longest to shortest side. A processor that scales the short side up would make gigabytes of a thin strip."""
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    OverflowError,
    RuntimeError,
    MemoryError,
    Warning,
    struct.error,
    zlib.error,
)
"""What Pillow's parsers raise on crafted bytes (600,000 mutants met the first three), or warn of under `-W error`."""


def prove(data: bytes | memoryview, where: str, limits: Limits) -> None:
    """Decodes the image once, to prove that it can be.  Raises BadSample."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check_header(image, where, limits)
            image.load()
    except BadSample:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise refuse("too_large", f"{where} has more pixels than the {limits.pixels} that are allowed") from error
    except UnidentifiedImageError as error:
        details = f"{where} of {len(data)} bytes is no JPEG, PNG or WEBP, or has a broken header"
        raise refuse("image", details) from error
    except BROKEN as error:
        raise refuse("image", f"{where} cannot be decoded: {type(error).__name__} {shown(str(error))}") from error


Prove = Callable[[bytes | memoryview, str, Limits], None]


def checked_image(value: object, where: str, limits: Limits, prove: Prove = prove) -> bytes:
    """The encoded image in `value` (bytes or base64 text), once it is proved to decode: here, or where `prove` does."""
    data = _bytes(value, where, limits)
    if len(data) > limits.image_bytes:
        raise refuse("too_large", f"{where} has {len(data)} bytes; at most {limits.image_bytes} are allowed")
    prove(data, where, limits)
    return data


def _bytes(value: object, where: str, limits: Limits) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise refuse("image", f"{where} is {shown(value)}; need bytes or base64 text")
    if len(value) > limits.image_bytes * 4 // 3 + 4:
        raise refuse("too_large", f"{where} has {len(value)} characters; {limits.image_bytes} bytes are allowed")
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise refuse("image", f"{where} is {shown(value)}; need bytes or base64 text, no URL or file name") from error


def _check_header(image: Image.Image, where: str, limits: Limits) -> None:
    """Everything that can be known before the pixels are decoded."""
    width, height = image.size
    if width * height > limits.pixels:
        raise refuse("too_large", f"{where} is {width} x {height}; at most {limits.pixels} pixels are allowed")
    if max(width, height) > ASPECT * min(width, height):
        raise refuse("image", f"{where} is {width} x {height}; one side may be at most {ASPECT} times the other")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a phone's JPEG with a preview or depth map behind the picture
        raise refuse("image", f"{where} is animated ({frames} frames); need a still image")
