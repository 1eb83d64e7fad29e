"""Where commits and objects lie: a key-value store whose one strong promise is put-if-absent.

Local disks keep it with `os.link`, object stores with one conditional PUT. `probe` finds out whether a store does.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, Protocol

from streamcl.errors import BadName, StoreError

Outcome = Literal["created", "exists", "unknown"]
TRIES = 8
"""How often a write whose outcome stays unknown is tried before `StoreError`."""

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]*(/[A-Za-z0-9_][A-Za-z0-9._=-]*)*")
_TMP = ".tmp"  # no key can start with a dot, so no key can lie here


class CommitStore(Protocol):
    """Named immutable bytes. Every method may raise StoreError when the store cannot be used."""

    def put_if_absent(self, key: str, data: bytes) -> Outcome:
        """Create `key` whole and synced, or leave it alone. "unknown": the reply was lost, read `key` to learn more."""

    def get(self, key: str) -> bytes | None:
        """The bytes of `key`, or None where there is none."""

    def put_unique(self, prefix: str, data: bytes, suffix: str) -> str:
        """Write `data` under a new name, synced; returns the key `prefix/<uuid7>-<sha12>.<suffix>`."""

    def put(self, key: str, data: bytes) -> None:
        """Create or replace `key` in one step. For pointers that anyone may rewrite from the log, nothing else."""

    def list(self, prefix: str) -> list[str]:
        """The keys below the folder `prefix` ("": all), sorted."""

    def delete(self, key: str) -> None:
        """Remove `key`; it may be gone already."""

    def tidy(self, before: float) -> None:
        """Remove what writers killed before that time (Unix, seconds) left half-written. No key names it."""

    def path(self, key: str) -> str:
        """What another process opens, by fsspec, to read `key` (an object or a folder of them)."""


def checked_key(key: str) -> str:
    """`key`, if it may name an object.  Raises BadName."""
    if not _KEY.fullmatch(key) or ".." in key:
        raise BadName(f"key {key!r} is not allowed: parts of A-Za-z0-9._=- joined by '/', no '..', no '.' first")
    return key


def uuid7() -> str:
    """A new 32-digit hex name that sorts by time of birth (RFC 9562, version 7)."""
    high = (time.time_ns() // 1_000_000) << 16 | 0x7000 | secrets.randbits(12)
    return f"{high << 64 | 0b10 << 62 | secrets.randbits(62):032x}"


def born(name: str) -> float:
    """When a name that begins with a `uuid7` was made (Unix, seconds), by its maker's clock."""
    return int(name[:12], 16) / 1000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wait(attempt: int) -> None:
    """Sleep before try `attempt + 1`: 50 ms, doubling, at most 5 s."""
    time.sleep(min(0.05 * 2**attempt, 5.0))


def settle(store: CommitStore, key: str, data: bytes, *, backoff: Callable[[int], None] = wait) -> bytes:
    """Put `data` at `key` unless it is taken, however replies get lost; returns what `key` holds then.

    Only the same bytes are ever tried at the same key, so a late first try does no harm.
    """
    for attempt in range(TRIES):
        if store.put_if_absent(key, data) == "created":
            return data
        with suppress(StoreError):  # a store that cannot answer now: the outcome is still unknown, try again
            found = store.get(key)
            if found is not None:
                return found
        backoff(attempt)
    raise StoreError(f"{key!r}: written or not is unknown after {TRIES} tries. Is the store up? Restart to recover")


class LocalStore:
    """A folder on a disk with hard links, made by the first write. If it vanishes later, writes fail.

    For tests: `reached` is called with the name of each step, to die there; `sync` makes a file or folder, given as a
    descriptor, outlive a power cut.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        reached: Callable[[str], None] = lambda point: None,
        sync: Callable[[int], None] = os.fsync,
    ) -> None:
        self.root = Path(root).absolute()
        self.reached = reached
        self.sync = sync
        self.met = self.root.is_dir()

    def put_if_absent(self, key: str, data: bytes) -> Outcome:
        outcome: Outcome = "created"
        with self._written(key, data) as (tmp, target):
            try:
                os.link(tmp, target)
            except FileExistsError:
                outcome = "exists"
            self.reached("linked")
            os.unlink(tmp)
        self.reached("link synced")
        return outcome

    def get(self, key: str) -> bytes | None:
        try:
            return self._file(key).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {key!r} in {self.root}: {error}. Check the disk and rights") from error

    def put_unique(self, prefix: str, data: bytes, suffix: str) -> str:
        return _put_unique(self, prefix, data, suffix)

    def put(self, key: str, data: bytes) -> None:
        with self._written(key, data) as (tmp, target):
            os.replace(tmp, target)
            self.reached("replaced")
        self.reached("replacement synced")

    def list(self, prefix: str) -> list[str]:
        top = self._file(prefix) if prefix else self.root
        files = (Path(folder, name) for folder, _, names in os.walk(top) for name in names)
        keys = (file.relative_to(self.root).as_posix() for file in files)
        return sorted(key for key in keys if not key.startswith(f"{_TMP}/"))

    def delete(self, key: str) -> None:
        self._file(key).unlink(missing_ok=True)
        self.reached("deleted")

    def tidy(self, before: float) -> None:
        for tmp in (self.root / _TMP).glob("*"):
            if born(tmp.name) < before:
                tmp.unlink(missing_ok=True)
                self.reached("tidied")

    def path(self, key: str) -> str:
        return str(self._file(key))

    def _file(self, key: str) -> Path:
        return self.root / checked_key(key)

    @contextmanager
    def _written(self, key: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        """`data` in a synced temporary file, and where it shall go; the folder is synced after the move."""
        target, tmp = self._file(key), self.root / _TMP / uuid7()
        self.reached("asked")
        try:
            self._make_folder(tmp.parent)
            self._make_folder(target.parent)
            self.met = True
            with open(tmp, "wb") as file:
                self.reached("opened")
                file.write(data)
                file.flush()
                self.reached("written")
                self.sync(file.fileno())
            self.reached("synced")
            yield tmp, target
            self._sync(target.parent)  # also when the name was there: its writer may have died before this line
        except OSError as error:
            tmp.unlink(missing_ok=True)
            message = f"cannot write {key!r} in {self.root}: {error}. Check space and rights, then restart"
            raise StoreError(message) from error

    def _make_folder(self, folder: Path) -> None:
        """Create `folder` and its parents so that they outlive a power cut."""
        if not folder.is_dir():
            if folder == self.root and self.met:  # made anew, it would begin a second history beside the first
                raise FileNotFoundError("the folder was there and is gone; is its disk mounted?")
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            self._sync(folder.parent)

    def _sync(self, folder: Path) -> None:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sync(handle)
        finally:
            os.close(handle)


def _put_unique(store: CommitStore, prefix: str, data: bytes, suffix: str) -> str:
    key = f"{prefix}/{uuid7()}-{sha256(data)[:12]}.{suffix}"
    settle(store, key, data)
    return key


def probe(store: CommitStore) -> None:
    """Refuse a store on which two writers could both win: StoreError says which promise it broke.

    Eight threads in four races, and a few small writes; run once at the start of a learner.
    """
    name = f"probe/{uuid7()}"
    try:
        _probe_writes(store, name)
        for race in range(4):
            _probe_race(store, f"{name}/race-{race}")
    finally:
        for key in store.list(name):
            store.delete(key)


def _probe_writes(store: CommitStore, name: str) -> None:
    key = f"{name}/first"
    found = settle(store, key, b"first")
    again = settle(store, key, b"second")
    if found != b"first" or again != b"first" or store.get(key) != b"first":
        raise _unsafe("a second put-if-absent replaced the first")
    outcomes = {store.put_if_absent(key, b"third") for _ in range(3)}
    if "created" in outcomes or store.get(key) != b"first":
        raise _unsafe('put-if-absent on an existing key answered "created"')
    store.put(f"{name}/pointer", b"old")
    store.put(f"{name}/pointer", b"new")
    if store.get(f"{name}/pointer") != b"new" or f"{name}/pointer" not in store.list(name):
        raise _unsafe("a replaced pointer was not read or listed back")


def _probe_race(store: CommitStore, key: str) -> None:
    offers = [f"writer {i}".encode() for i in range(8)]
    with ThreadPoolExecutor(len(offers)) as pool:
        outcomes = list(pool.map(lambda offer: store.put_if_absent(key, offer), offers))
    winners = [offer for offer, outcome in zip(offers, outcomes, strict=True) if outcome == "created"]
    if len(winners) > 1 or store.get(key) not in (winners or offers):
        raise _unsafe(f"{len(winners)} of 8 racing writers were told that they had won")


def _unsafe(what: str) -> StoreError:
    return StoreError(f"this store is not safe for commits: {what}. Use a disk with hard links, or S3 or GCS")
