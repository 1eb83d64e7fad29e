"""Commits in a bucket, through fsspec: `pipe_file(mode="create")` is one conditional PUT on S3 (s3fs) and GCS (gcsfs).

fsspec's local and memory file systems take `mode="create"` too, but look first, then write: two writers can both win.
"""

from __future__ import annotations

import logging
from importlib import import_module

import fsspec

from streamcl.errors import StoreError
from streamcl.registry.backends import Outcome, _put_unique, checked_key

_log = logging.getLogger(__name__)

NETWORK_ERRORS = {
    "s3": ("botocore.exceptions:HTTPClientError", "botocore.exceptions:ConnectionError", "aiohttp:ClientError"),
    "gs": (
        "gcsfs.retry:HttpError",
        "gcsfs.retry:ChecksumError",
        "aiohttp:ClientError",
        "google.auth.exceptions:TransportError",
    ),
}
"""What the clients raise, besides OSError, when a request or its reply is lost."""


class FsspecStore:
    """A folder of a bucket. Credentials and endpoint come from the environment, as the client reads them."""

    def __init__(self, url: str, *, filesystem: fsspec.AbstractFileSystem | None = None) -> None:
        self.url = url.rstrip("/")
        self.filesystem = filesystem or fsspec.core.url_to_fs(self.url, use_listings_cache=False)[0]
        self._root = self.filesystem._strip_protocol(self.url)
        protocol = self.filesystem.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        errors = [_load(error) for name in names for error in NETWORK_ERRORS.get(name, ())]
        self._errors: tuple[type[Exception], ...] = (OSError, *errors)

    def put_if_absent(self, key: str, data: bytes) -> Outcome:
        try:
            self._pipe(key, data, mode="create")
        except FileExistsError:
            return "exists"
        except self._errors as error:
            status = _http_status(error)
            if status == 412:  # stores that do not name the failed condition: s3fs has no FileExistsError for them
                return "exists"
            if _refused(error, status):
                raise self._failed("write", key, error) from error
            _log.warning("put of %s/%s: outcome unknown: %s", self.url, key, error)
            return "unknown"
        return "created"

    def get(self, key: str) -> bytes | None:
        try:
            return bytes(self.filesystem.cat_file(self._path(key)))
        except FileNotFoundError:
            return None
        except self._errors as error:
            raise self._failed("read", key, error) from error

    def put_unique(self, prefix: str, data: bytes, suffix: str) -> str:
        return _put_unique(self, prefix, data, suffix)

    def put(self, key: str, data: bytes) -> None:
        try:
            self._pipe(key, data, mode="overwrite")
        except self._errors as error:
            raise self._failed("write", key, error) from error

    def list(self, prefix: str) -> list[str]:
        top = self._path(prefix) if prefix else self._root
        self.filesystem.invalidate_cache()
        try:
            found = self.filesystem.find(top)
        except FileNotFoundError:
            return []
        except self._errors as error:
            raise self._failed("list", prefix, error) from error
        return sorted(path.removeprefix(f"{self._root}/") for path in found)

    def delete(self, key: str) -> None:
        try:
            self.filesystem.rm_file(self._path(key))
        except FileNotFoundError:
            return
        except self._errors as error:
            raise self._failed("delete", key, error) from error

    def tidy(self, before: float) -> None:
        return  # an object is there whole or not at all

    def path(self, key: str) -> str:
        return f"{self.url}/{checked_key(key)}"

    def _path(self, key: str) -> str:
        return f"{self._root}/{checked_key(key)}"

    def _pipe(self, key: str, data: bytes, *, mode: str) -> None:
        assert data, f"{key!r}: an empty object cannot be told from a lost one"
        # one PUT, whatever the size: a multipart upload checks the condition only at its end
        self.filesystem.pipe_file(self._path(key), data, mode=mode, chunksize=len(data) + 1)

    def _failed(self, verb: str, key: str, error: BaseException) -> StoreError:
        what = f"{type(error).__name__}: {error}"
        return StoreError(f"cannot {verb} {self.url}/{key}: {what}. Check the bucket, its rights and the network")


def _load(name: str) -> type[Exception]:
    module, _, attribute = name.partition(":")
    error: type[Exception] = getattr(import_module(module), attribute)
    return error


def _http_status(error: BaseException) -> int | None:
    """The HTTP status behind a client's error: botocore keeps it in the cause, gcsfs in `code`."""
    for link in (error, error.__cause__):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            return int(response["ResponseMetadata"]["HTTPStatusCode"])
        code = getattr(link, "code", None)
        if isinstance(code, int):
            return code
    return None


def _refused(error: BaseException, status: int | None) -> bool:
    """Whether the store surely did not write. After anything else (timeout, 409, 5xx, cut connection) it may have."""
    if status is None:
        return isinstance(error, PermissionError | FileNotFoundError)
    return 400 <= status < 500 and status not in (408, 409, 429)
