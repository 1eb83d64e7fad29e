"""Versions: immutable, content-addressed folders that a commit makes visible."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from streamcl.errors import BadName, Corrupt, NoSuchVersion
from streamcl.registry.backends import settle, sha256
from streamcl.registry.log import COLLECTED, Log
from streamcl.registry.record import Record, canonical
from streamcl.types import Version, checked_name

MANIFEST = "manifest.json"


class Published:
    """A model's versions in a log. Reading needs no fence; `publish` does. For one thread."""

    def __init__(self, log: Log, name: str) -> None:
        self.log = log
        self.name = checked_name(name)

    def publish(
        self,
        files: Mapping[str, bytes],
        *,
        window: int,
        task: str,
        base_digest: str,
        scores: Mapping[str, float],
        state: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Version:
        """Make a version of `files` visible: all of them first, then one commit. A window has at most one version.

        Asked again for a window that has its version, returns that one and writes nothing. A rollback reopens the
        windows it undid. `extra` is kept in the commit, for people.
        """
        answer = self._answer(window)
        if answer is not None:
            return answer
        digest, path = self._write(files)
        before, number = self._newest()
        fields: dict[str, Any] = {
            "number": number + 1, "digest": digest, "path": path, "window": window, "task": task,
            "base_digest": base_digest, "scores": dict(scores),
        }  # fmt: skip
        version = {**fields, "name": self.name, "extra": dict(extra or {}), "before": before}
        self.log.append("version", state=state, version=version)
        return Version(**fields)

    def read(self, version: Version) -> dict[str, bytes]:
        """The version's files by name.  Raises Corrupt unless each matches the digest it was published with."""
        sums = self._manifest(version)
        files: dict[str, bytes] = {}
        for name, digest in sums.items():
            files[name] = self.log.get_object({"key": f"{version.path}/{name}", "sha256": digest})
        return files

    def get(self, number: int) -> Version:
        """Version `number`.  Raises NoSuchVersion."""
        return version_of(self.record(number))

    def record(self, number: int) -> Record:
        """The commit of version `number`.  Raises NoSuchVersion."""
        newest = 0
        for record in self._published():
            found = version_of(record)
            newest = max(newest, found.number)
            if found.number == number:
                return record
        have = f"have 1-{newest}" if newest else "none was published yet"
        raise NoSuchVersion(f"no version {number} in {self.log.store.path(f'versions/{self.name}')}; {have}")

    def versions(self) -> list[Version]:
        """Every version ever published, oldest first; those of windows that a rollback undid as well."""
        return [version_of(record) for record in self._published()][::-1]

    def newest(self, record: Record | None = None) -> Version | None:
        """The newest version as of a commit (the newest), without those that were undone by then."""
        return next((version_of(before) for before in self.log.lineage(record) if self._made(before)), None)

    def intact(self, version: Version | None) -> bool:
        """Whether the version, if there is one, can be read."""
        try:
            return version is None or bool(self.read(version))
        except Corrupt:
            return False

    # --- inside ------------------------------------------------------------------------------------------------

    def _write(self, files: Mapping[str, bytes]) -> tuple[str, str]:
        """Write the version's folder; returns its digest and key. What is there already is kept and compared.

        The folder bears the digest, and the commit's number too where one of that digest is damaged or was collected:
        a collector that was stopped half-way may still delete the old name.
        """
        if not files or MANIFEST in files:
            raise BadName(f"a version needs files, and none named {MANIFEST!r}; got {sorted(files)}")
        sums = {name: sha256(data) for name, data in files.items()}
        digest = _digest(sums)
        whole = {**files, MANIFEST: canonical({"name": self.name, "digest": digest, "files": sums})}
        head = self.log.head()
        path = f"versions/{self.name}/{digest}"
        if (head and COLLECTED in head.state) or not self._fill(path, whole):
            path = f"{path}-{head.n + 1 if head else 1}"
            if not self._fill(path, whole):
                raise Corrupt(f"{path} holds other files than were just written to it: check the disk, try again")
        return digest, path

    def _fill(self, path: str, files: Mapping[str, bytes]) -> bool:
        """Write what is not there; whether all is as it should be."""
        store, backoff = self.log.store, self.log.backoff
        return all(settle(store, f"{path}/{name}", data, backoff=backoff) == data for name, data in files.items())

    def _manifest(self, version: Version) -> dict[str, str]:
        key = f"{version.path}/{MANIFEST}"
        try:
            sums: dict[str, str] = dict(json.loads(self.log.store.get(key) or b"")["files"])
        except (ValueError, TypeError, KeyError) as error:
            raise Corrupt(f"{key} is missing or cannot be parsed ({error}): roll back to another version") from error
        if _digest(sums) != version.digest:
            raise Corrupt(f"{key} lists files of digest {_digest(sums)}, not {version.digest}: roll back from it")
        return sums

    def _answer(self, window: int) -> Version | None:
        """The version of a window, if it has one that no rollback undid. It comes after the window's own commit."""
        for record in self.log.lineage():
            if (made := self._made(record)) and made["window"] == window:
                return version_of(record)
            if record.window and record.window.get("id") == window:
                return None
        return None

    def _made(self, record: Record) -> dict[str, Any] | None:
        """What the commit says of the version that it made visible, if it made one of this model."""
        return record.version if record.version and record.version["name"] == self.name else None

    def _published(self) -> Iterator[Record]:
        """The version commits, newest first; each names the one before it."""
        before, _ = self._newest()
        while before is not None:
            record = self.log.get(before)
            assert record.version is not None, f"commit {before} was named as a version, but is a {record.kind}"
            yield record
            before = record.version["before"]

    def _newest(self) -> tuple[int | None, int]:
        """The newest version's commit, and the highest number in use: a broken commit may have been a version."""
        lost, n = 0, None
        for record in self.log.back():
            lost += 0 if n is None else n - record.n - 1
            n = record.n
            if made := self._made(record):
                return n, made["number"] + lost
        return None, lost + (n - 1 if n else 0)


def _digest(sums: Mapping[str, str]) -> str:
    """The content address of a set of files: sha256 over the sorted (name, sha256) pairs."""
    return sha256(canonical(sorted(sums.items())))


def version_of(record: Record) -> Version:
    assert record.version is not None, f"commit {record.n} is a {record.kind}, not a version"
    kept = ("number", "digest", "path", "window", "task", "base_digest", "scores")
    return Version(**{name: record.version[name] for name in kept})
