"""The folder that a source's records may name images in, and nothing outside it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from streamcl.stream.deadletter import refuse, shown

NAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff\\:*?#%~|<>\"\[\]/]+")
"""One name in a key: nothing in it that some store, shell or library takes for more than a name."""
NAME_BYTES = 255
KEY_CHARS = 1_024


@dataclass(frozen=True)
class Folder:
    """A folder in an fsspec file system."""

    fs: Any
    root: str
    """Path of the folder in the file system's own terms, without a slash at its end."""

    def image(self, reference: Mapping[str, Any], limit: int) -> bytes:
        """The file behind {"path": key}, at most `limit` + 1 bytes of it.  Raises BadSample, or OSError."""
        key = _checked(reference.get("path"))
        path = f"{self.root}/{key}"
        if isinstance(self.fs, LocalFileSystem) and not self._holds(path):
            raise refuse("image", f"{shown(key)} is a link that leaves the source's folder")
        try:
            if self.fs.info(path)["type"] != "file":  # a pipe would block for ever
                raise refuse("image", f"{shown(key)} is not a file")
            return bytes(self.fs.cat_file(path, start=0, end=limit + 1))
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise refuse("image", f"{shown(key)} cannot be read in the source's folder") from error

    def put(self, name: str, data: bytes) -> None:
        """Writes a file of the folder, which is there as a whole or not at all.  Raises OSError."""
        self.fs.pipe_file(f"{self.root}/_{name}", data)  # a name that no reader looks at
        self.fs.mv(f"{self.root}/_{name}", f"{self.root}/{name}")

    def _holds(self, path: str) -> bool:
        root = os.path.realpath(self.root or "/")
        return os.path.commonpath([root, os.path.realpath(path)]) == root


def _checked(key: object) -> str:
    if not isinstance(key, str):
        raise refuse("image", f'a reference to {shown(key)}; need {{"path": key}} with a text')
    names = key.split("/")
    short = len(key) <= KEY_CHARS and all(len(name.encode(errors="replace")) <= NAME_BYTES for name in names)
    if not short or {".", ".."} & {*names} or not all(map(NAME.fullmatch, names)):
        raise refuse("image", f"reference {shown(key)}; need a key under the root: no URL, no absolute path, no '..'")
    return key
