"""A decoder that dies of some images: what `STREAMCL_TEST_DECODER=streamcl.testing.deadly:plant` puts into the child.

An image is deadly by its last word, which stands behind a good PNG.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

HOOK = f"{__name__}:plant"
TRACE = "STREAMCL_TEST_TRACE"
"""An environment variable that names a file: every deadly attempt adds a line to it."""


def die_once() -> None:
    if Path(os.environ[TRACE]).read_text().count("once") == 1:
        os.kill(os.getpid(), signal.SIGKILL)


DEATHS: dict[bytes, Callable[[], Any]] = {
    b"segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    b"abort": os.abort,
    b"exit": lambda: os._exit(3),
    b"hang": lambda: time.sleep(3600),
    b"glutton": lambda: bytearray(2**31),
    b"broken": lambda: 1 / 0,
    b"once": die_once,
}


def opened(fp: Any, filename: Any) -> PngImagePlugin.PngImageFile:
    data = fp.read()
    fp.seek(0)
    for word, death in DEATHS.items():
        if data.endswith(word):
            with open(os.environ[TRACE], "a", encoding="utf-8") as trace:
                trace.write(f"{word.decode()}\n")
            death()
    return PngImagePlugin.PngImageFile(fp, filename)


def plant() -> None:
    """Makes this process's decoder deadly."""
    Image.register_open("PNG", opened, lambda prefix: prefix.startswith(b"\x89PNG"))
