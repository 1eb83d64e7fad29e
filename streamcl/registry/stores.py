"""Which store a path or URL means."""

from __future__ import annotations

import re

from streamcl.errors import StoreError
from streamcl.registry.backends import CommitStore, LocalStore
from streamcl.registry.objectstore import FsspecStore

_OBJECT_STORES = re.compile(r"(s3|s3a|gs|gcs)://[^:?#]+")


def open_store(url: str) -> CommitStore:
    """The store at a folder (`runs/a`, `file:///runs/a`) or in a bucket (`s3://bucket/runs/a`, `gs://…`)."""
    if _OBJECT_STORES.fullmatch(url):
        return FsspecStore(url)
    if "://" in url.removeprefix("file://") or "::" in url:
        raise StoreError(
            f"store {url!r} is not supported: give a folder, file:///folder, s3://bucket/path or gs://bucket/path"
        )
    return LocalStore(url.removeprefix("file://"))
