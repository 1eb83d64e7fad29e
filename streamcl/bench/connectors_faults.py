"""What goes wrong with files: each fault ends in an error that says what to do, or in dead letters; nothing is lost.

Each case reads some rows, breaks something, reads on, and mends it: then the rows are exactly those that an undisturbed
reader gets.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streamcl.bench.report import Claim
from streamcl.errors import SourceError
from streamcl.registry.backends import LocalStore
from streamcl.stream import Files, Merged
from streamcl.stream.fingerprint import Unchanged
from streamcl.types import from_batch

COMMAND = "python -m streamcl.bench.connectors"
ROWS = 9
BEFORE = 4


@dataclass(frozen=True)
class Case:
    """A fault of a source."""

    name: str
    source: Files
    breaks: Callable[[], object]
    mends: Callable[[], object]
    says: tuple[str, ...]
    """What an error's message holds, or a dead letter's reason."""


def read(
    source: Files, ledger: LocalStore, positions: dict[str, int], count: int
) -> tuple[list[str], dict[str, int], list[str]]:
    """Up to `count` more rows: their ids, the positions then, and the reasons of those that were refused."""
    merged = Merged(Unchanged(source, ledger), positions)
    ids: list[str] = []
    reasons: list[str] = []
    while len(ids) + len(reasons) < count and (polled := merged.poll(count - len(ids) - len(reasons))) is not None:
        ids += [sample.id for sample in from_batch(polled.batch)]
        reasons += [letter.reason for letter in polled.dead]
    return ids, merged.positions, reasons


def outcome(case: Case, folder: Path) -> dict[str, Any]:
    """What a case ended in."""
    ledger = LocalStore(folder / "ledger")
    first, positions, _ = read(case.source, ledger, {}, BEFORE)
    case.breaks()
    try:
        more, after, reasons = read(case.source, ledger, positions, 99)
        said = "; ".join(reasons)
    except SourceError as error:
        said, more, after = str(error), [], positions
    case.mends()
    rest, _, _ = read(case.source, ledger, after, 99)
    whole = first + more + rest
    intact = sorted(whole) == [f"r{n}" for n in range(ROWS)]
    return {"case": case.name, "said": said, "told": all(word in said for word in case.says), "intact": intact}


def lines(first: int, last: int, **renamed: str) -> bytes:
    rows = [{"id": f"r{n}", "question": "what?", "answer": "a fox"} for n in range(first, last)]
    return b"".join(json.dumps({renamed.get(k, k): v for k, v in row.items()}).encode() + b"\n" for row in rows)


def table(path: Path, first: int, last: int, **renamed: str) -> None:
    pq.write_table(pa.Table.from_pylist([json.loads(x) for x in lines(first, last, **renamed).splitlines()]), path)


def local(folder: Path) -> Iterator[Case]:
    replaced, cut, changed, foreign = (folder / name for name in ("replaced", "cut", "changed", "foreign"))
    for place in (replaced, cut, changed, foreign):
        place.mkdir()
    whole = lines(0, ROWS)
    (replaced / "a.jsonl").write_bytes(whole)
    yield Case(
        "a file replaced by one of the same length", Files(str(replaced)),
        lambda: (replaced / "a.jsonl").write_bytes(whole.replace(b"fox", b"cat")),
        lambda: (replaced / "a.jsonl").write_bytes(whole), ("was replaced under a committed position", "restore it"),
    )  # fmt: skip
    (cut / "a.jsonl").write_bytes(whole)
    yield Case(
        "a file that is shorter than what was read", Files(str(cut)),
        lambda: (cut / "a.jsonl").write_bytes(lines(0, BEFORE - 1)),
        lambda: (cut / "a.jsonl").write_bytes(whole), ("committed position", "restore it"),
    )  # fmt: skip
    (changed / "a.jsonl").write_bytes(lines(0, BEFORE + 1))
    yield Case(
        "JSON Lines whose fields change midway", Files(str(changed)),
        lambda: (changed / "a.jsonl").open("ab").write(lines(50, 53, question="q", answer="a")),
        lambda: (changed / "b.jsonl").write_bytes(lines(BEFORE + 1, ROWS)), ("schema: messages is None",),
    )  # fmt: skip
    table(foreign / "a.parquet", 0, ROWS)
    yield Case(
        "Parquet whose columns change in the next file", Files(str(foreign)),
        lambda: table(foreign / "b.parquet", 50, 53, question="q", answer="a"),
        lambda: (foreign / "b.parquet").unlink(), ("has columns id, q, a; need messages", "columns: {messages:"),
    )  # fmt: skip


class _Refuses(BaseHTTPRequestHandler):
    """An object store that knows nobody."""

    def do_GET(self) -> None:
        why = b"<Message>The Access Key Id you provided does not exist</Message>"
        body = b"<Error><Code>InvalidAccessKeyId</Code>" + why + b"</Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def refusing() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@contextmanager
def endpoint(url: str | None, **environment: str) -> Iterator[None]:
    """The environment in which a client finds an endpoint and who it is."""
    import fsspec
    import s3fs

    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update({"AWS_EC2_METADATA_DISABLED": "true", **environment})
    fsspec.config.conf["s3"] = {"endpoint_url": url, "config_kwargs": {"retries": {"max_attempts": 1}}}
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        fsspec.config.conf.pop("s3", None)
        s3fs.S3FileSystem.clear_instance_cache()


def bucket(folder: Path) -> Iterator[dict[str, Any]]:
    """The cases that need an object store."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    me = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "my-secret"}
    name = f"stream-{os.getpid()}"

    def fill() -> None:
        fs = s3fs.S3FileSystem()
        fs.mkdir(name)
        fs.pipe(f"{name}/in/a.jsonl", lines(0, ROWS))

    with endpoint(url, **me):
        fill()
        source = Files(f"s3://{name}/in")
        yield outcome(
            Case("a bucket that vanished", source, lambda: s3fs.S3FileSystem().rm(name, recursive=True), fill,
                 ("cannot be read", "bucket does not exist", "Check path, rights and network")),
            folder / "vanished",
        )  # fmt: skip
    for who, about in (({}, "no credentials"), (me, "wrong credentials")):
        with refusing() as wrong, endpoint(wrong, **who):
            said = _said(source)
        told = ("Unable to locate credentials" if not who else "Access Key") in said and "Check path, rights" in said
        with endpoint(url, **me):  # the bucket is as it was
            ids, _, _ = read(source, LocalStore(folder / about.split()[0]), {}, 99)
        intact = ids == [f"r{n}" for n in range(ROWS)] and "my-secret" not in said
        yield {"case": about, "said": said, "told": told, "intact": intact}
    server.stop()


def _said(source: Files) -> str:
    try:
        source.partitions()
    except SourceError as error:
        return str(error)
    return ""


def measured() -> tuple[list[dict[str, Any]], list[Claim]]:
    with tempfile.TemporaryDirectory(prefix="streamcl-faults-") as root:
        folder = Path(root)
        rows = [outcome(case, folder / f"case-{number}") for number, case in enumerate(local(folder))]
        rows += bucket(folder)
    return rows, [claim(rows)]


def claim(rows: list[dict[str, Any]]) -> Claim:
    bad = [row["case"] for row in rows if not (row["told"] and row["intact"])]
    names = "; ".join(row["case"] for row in rows)
    value = f"{len(rows) - len(bad)} of {len(rows)}" + (f"; not: {', '.join(bad)}" if bad else "")
    what = f"faults of files that end in an error that says what to do, or in dead letters, nothing lost: {names}"
    return Claim("6.5", what, "all", value, not bad, COMMAND)
