"""One stream in every form that a connector reads: the tasks of the quickstart, and two samples that are bad."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from streamcl import zoo
from streamcl.stream import Files, Merged
from streamcl.types import SAMPLE_SCHEMA, Sample, from_batch

TASKS = ("digits", "animals", "icons", "maps")
REFUSED = 2
Section = dict[str, Any]


def samples_of(folder: Path, *, train: int, test: int) -> list[Sample]:
    """The stream in its order of time, and behind it a sample without an answer and one with half a picture."""
    zoo.write_stream(folder, TASKS, train=train, test=test, partitions=2)
    merged, found = Merged(Files(str(folder / "train")), {}), list[Sample]()
    while (polled := merged.poll(1_000)) is not None:
        found += from_batch(polled.batch)
    return found


def records(samples: list[Sample]) -> list[dict[str, Any]]:
    """As raw records with images as bytes."""
    rows = []
    for sample in samples:
        row = sample.row()
        rows.append({name: row[name] for name in ("id", "messages", "images", "task", "time")})
    mute, torn = (json.loads(json.dumps({**rows[-1], "images": []})) for _ in range(REFUSED))
    mute |= {"id": "mute", "images": rows[-1]["images"], "time": rows[-1]["time"] + 1}
    mute["messages"][-1]["content"][0]["text"] = ""
    torn |= {"id": "torn", "images": [rows[-1]["images"][0][:-60]], "time": rows[-1]["time"] + 2}
    return [*rows, mute, torn]


def as_json(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record, "images": [base64.b64encode(data).decode() for data in record["images"]]}


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(as_json(row)).encode() + b"\n" for row in rows)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return pa.table({name: pa.array(values, SAMPLE_SCHEMA.field(name).type) for name, values in columns.items()})


def parquet(folder: Path, rows: list[dict[str, Any]]) -> Section:
    for part in range(2):
        pq.write_table(table(rows[part::2]), folder / f"part-{part}.parquet", row_group_size=100)
    return {"kind": "files", "path": str(folder)}


def arrow(folder: Path, rows: list[dict[str, Any]]) -> Section:
    for part, new in enumerate((pa.ipc.new_file, pa.ipc.new_stream)):
        whole = table(rows[part::2])
        with new(str(folder / f"part-{part}.arrow"), whole.schema) as writer:
            writer.write_table(whole, max_chunksize=100)
    return {"kind": "files", "path": str(folder)}


def packed_lines(folder: Path, rows: list[dict[str, Any]]) -> Section:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines(rows[0::2])))
    (folder / "b.jsonl.zst").write_bytes(zstandard.compress(lines(rows[1::2])))
    return {"kind": "files", "path": f"{folder}/*.jsonl.*"}


def llava(folder: Path, rows: list[dict[str, Any]]) -> Section:
    """A JSON array, pictures in a folder beside it."""
    (folder / "instructions").mkdir()
    (folder / "pictures").mkdir()
    found = []
    for number, row in enumerate(rows):
        (folder / "pictures" / f"{number}.png").write_bytes(row["images"][0])
        said = [
            "".join("<image>\n" if p["type"] == "image" else p["text"] for p in m["content"]) for m in row["messages"]
        ]
        turns = [{"from": who, "value": value} for who, value in zip(("human", "gpt"), said, strict=True)]
        about = {name: row[name] for name in ("id", "task", "time")}
        found.append({**about, "image": f"./{number}.png", "conversations": turns})
    (folder / "instructions" / "train.json").write_text(json.dumps(found, indent=1))
    path, pictures = str(folder / "instructions"), str(folder / "pictures")
    return {"kind": "files", "path": path, "images": pictures, "columns": {"id": "id"}}


def openai(folder: Path, rows: list[dict[str, Any]]) -> Section:
    found = []
    for row in rows:
        urls = iter(as_json(row)["images"])
        said = [{**m, "content": [_part(part, urls) for part in m["content"]]} for m in row["messages"]]
        found.append({"uid": row["id"], "messages": said, "task": row["task"], "time": row["time"]})
    (folder / "chat.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    return {"kind": "files", "path": str(folder / "chat.jsonl"), "columns": {"id": "uid"}}


def _part(part: Mapping[str, str], urls: Iterator[str]) -> dict[str, Any]:
    if part["type"] == "text":
        return dict(part)
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{next(urls)}"}}


def webdataset(folder: Path, rows: list[dict[str, Any]]) -> Section:
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number, row in enumerate(rows[shard::2]):
                record = json.dumps({name: value for name, value in row.items() if name != "images"}).encode()
                for suffix, data in (("png", row["images"][0]), ("json", record)):
                    info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return {"kind": "files", "path": f"{folder}/*.tar"}


def hugging_face(folder: Path, rows: list[dict[str, Any]]) -> Section:
    import datasets

    datasets.Dataset(table(rows)).save_to_disk(str(folder / "saved"))
    return {"kind": "dataset", "path": str(folder / "saved")}


WRITTEN = {
    "files: Parquet": parquet,
    "files: Arrow": arrow,
    "files: JSON Lines, gzip and zstd": packed_lines,
    "files: LLaVA": llava,
    "files: OpenAI chat": openai,
    "files: WebDataset": webdataset,
    "dataset: Hugging Face": hugging_face,
}
"""Each form that lies somewhere before a run begins: writes it, and gives the source's section."""
