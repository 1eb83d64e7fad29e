"""How large a sample may be."""

from __future__ import annotations

from dataclasses import dataclass, fields

from streamcl.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """How large a sample may be. What is larger goes to the dead letters; it does not stop the stream."""

    image_bytes: int = 8 * 2**20
    """Size of one encoded image, bytes. Checked before the image is looked at."""
    pixels: int = 16_000_000
    """Width times height of one image, pixels. Checked in the header, before the image is decoded."""
    text_chars: int = 32_768
    """Text of all messages together, characters."""
    images: int = 8
    """Images in one sample, count."""
    messages: int = 64
    """Messages in one sample, count."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) < 1:
                raise ConfigError(f"limits.{field.name} is {value}; it must be at least 1")

    @property
    def record_bytes(self) -> int:
        """What a record within the limits can take as a line of JSON: base64 images, characters as two escapes."""
        return self.images * self.image_bytes * 4 // 3 + 12 * self.text_chars + 2**20

    @property
    def record_values(self) -> int:
        """Commas and brackets that a line of JSON may hold: each can cost a hundred bytes of memory once parsed."""
        return self.text_chars + 2**16
