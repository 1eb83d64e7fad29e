"""The write-ahead log of pushed samples: on the disk before their producer is told that they were taken.

Many callers append at once and share one sync. A shard has one writer at a time, which only writes to segments that it
made itself; a reader goes on to the next segment once there is one. So after each sync, and before anyone is told, the
writer looks whether somebody else made the next one: then what it wrote may not be read, and it says so.

No byte is written where another may have been read: a writer that starts, and one whose write failed, begin a new
segment. So a position that was committed stays true, whatever a power cut takes off the end of a segment.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Protocol

from streamcl.errors import StoreError
from streamcl.stream.frames import END, MAGIC, framed, place
from streamcl.stream.segments import Segments, segment_name

SEGMENT_BYTES = 16 * 2**20
"""A folder's segment ends with the group that reaches this size."""
GROUP_BYTES = 8 * 2**20
"""About how much is written with one sync, at most."""


class Shard(Protocol):
    """Where one writer writes. Mutable; for one thread, except `name`, and `sizes`, which may be read by any."""

    @property
    def name(self) -> str: ...

    @property
    def sizes(self) -> dict[int, int]:
        """Bytes by segment; those that are committed may be taken out."""

    def write(self, frames: bytes) -> None:
        """When this returns, the frames outlive a power cut and will be read.  Raises StoreError: perhaps not."""

    def close(self) -> None: ...


class Wal:
    """Appends to a shard, for any number of threads. Mutable."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._queue: queue.SimpleQueue[tuple[bytes, Future[None]] | None] = queue.SimpleQueue()
        self._queued = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="streamcl-wal", daemon=True)
        self._thread.start()

    def append(self, payloads: Sequence[bytes]) -> Future[None]:
        """Done when all payloads, in their order, are durable. Fails with StoreError: each may be there, or not."""
        frames, done = b"".join(map(framed, payloads)), Future[None]()
        with self._lock:
            self._queued += len(frames)
        self._queue.put((frames, done))
        return done

    def pending(self, positions: Mapping[str, int]) -> int:
        """Bytes on their way into the shard, or there but beyond `positions`."""
        segment, offset = place(positions.get(self.shard.name, 0))
        for number in [number for number in dict(self.shard.sizes) if number < segment]:
            del self.shard.sizes[number]
        sizes = dict(self.shard.sizes)
        return self._queued + sum(sizes.values()) - min(offset, sizes.get(segment, 0))

    def close(self) -> None:
        """Writes what was appended, and gives the shard free."""
        self._queue.put(None)
        self._thread.join()
        self.shard.close()

    def _run(self) -> None:
        going_on = True
        while going_on:
            group, size = [self._queue.get()], 0
            with contextlib.suppress(queue.Empty):
                while group[-1] is not None:
                    size += len(group[-1][0])
                    if size >= GROUP_BYTES:
                        break
                    group.append(self._queue.get_nowait())
            going_on = group[-1] is not None
            self._write([one for one in group if one is not None])
            with self._lock:
                self._queued -= size

    def _write(self, group: Sequence[tuple[bytes, Future[None]]]) -> None:
        wanted = [(frames, done) for frames, done in group if done.set_running_or_notify_cancel()]
        try:
            if wanted:
                self.shard.write(b"".join(frames for frames, _ in wanted))
        except Exception as error:  # raised where it is waited for
            for _, done in wanted:
                done.set_exception(error)
        else:
            for _, done in wanted:
                done.set_result(None)


class FolderShard:
    """A shard in a folder: the first one that no living writer on this machine holds. Mutable.

    For tests: `sync` makes a file or folder, given as a descriptor, outlive a power cut.
    """

    def __init__(
        self, root: str | Path, *, segment_bytes: int = SEGMENT_BYTES, sync: Callable[[int], None] = os.fsync
    ) -> None:
        """Raises StoreError."""
        self.root, self.segment_bytes, self.sync = Path(root).absolute(), segment_bytes, sync
        self.sizes: dict[int, int] = {}
        self._lock = self._file = -1
        self._number = 0
        with self._telling():
            self._claim()

    def write(self, frames: bytes) -> None:
        with self._telling():
            try:
                if self._file >= 0 and self.sizes[self._number] + len(frames) > self.segment_bytes:
                    self._end()
                if self._file < 0:
                    self._begin()
                _write(self._file, frames)
                self.sync(self._file)
                if self._path(self._number + 1).exists():
                    self._claim()
                    raise OSError("another writer has taken over the shard. Send the samples again")
            except BaseException:
                self._leave()
                raise
            self.sizes[self._number] += len(frames)

    def close(self) -> None:
        with self._telling():
            if self._file >= 0:
                self._end()
            os.close(self._lock)
            self._lock = -1

    def _claim(self) -> None:
        """Takes a free shard: the lock lasts as long as this process, however it ends."""
        if self._lock >= 0:
            os.close(self._lock)
        for number in count():
            self.folder = self.root / str(number)
            self._make_folder(self.folder)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                continue
            for draft in self.folder.glob(".*"):
                draft.unlink()
            self.name = self.folder.name
            self.sizes = Segments(str(self.root)).sizes(self.name)
            self._number = max(self.sizes, default=0)
            return

    def _begin(self) -> None:
        """Makes the next segment, which is seen with its head or not at all."""
        number = 1 + max(self._number, *Segments(str(self.root)).sizes(self.name), 0)
        draft = self.folder / f".{uuid.uuid4().hex}"
        self._file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _write(self._file, MAGIC)
            self.sync(self._file)
            os.link(draft, self._path(number))
        finally:
            draft.unlink()
        self._number, self.sizes[number] = number, len(MAGIC)
        self._sync(self.folder)

    def _end(self) -> None:
        """Marks the segment as whole."""
        _write(self._file, END)
        self.sync(self._file)
        self.sizes[self._number] += len(END)
        self._leave()

    def _leave(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _path(self, number: int) -> Path:
        return self.folder / segment_name(number)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot write to {self.root}: {error}. Check space and rights") from error

    def _make_folder(self, folder: Path) -> None:
        """Creates `folder` and its parents so that they outlive a power cut."""
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            self._sync(folder.parent)

    def _sync(self, folder: Path) -> None:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sync(handle)
        finally:
            os.close(handle)


class BucketShard:
    """A shard in a store of whole objects: a segment a group, created if absent. Writers may share it. Mutable."""

    def __init__(self, settle: Callable[[str, bytes], bytes], segments: Segments, name: str = "0") -> None:
        """`settle(key, data)` puts `data` at a key of the log unless it is taken; what lies there then."""
        self.settle, self.name = settle, name
        self.sizes = segments.sizes(name)
        self._number = max(self.sizes, default=0)

    def write(self, frames: bytes) -> None:
        data = MAGIC + frames + END
        found = b""
        while found != data:
            found = self.settle(f"{self.name}/{segment_name(self._number + 1)}", data)
            self._number += 1
            self.sizes[self._number] = len(found)

    def close(self) -> None:
        return


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
