"""`streamcl inspect`: what a run would read of a source, before it does."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from streamcl import config
from streamcl.errors import ConfigError
from streamcl.learner import resolve
from streamcl.stream import Files, Source
from streamcl.stream.base import Merged
from streamcl.types import DeadLetter, Sample, from_batch

SHOWN = 5
"""Samples shown as text."""
CELL, COLUMNS, CAPTION = 160, 8, 26
"""Pixels of a picture on the contact sheet, pictures a line, and pixels of the text below one."""
WAIT_S = 3.0
"""How long an endless source may have nothing before it is taken as it is."""


def source_of(where: str, settings: Sequence[str]) -> Source:
    """The source of a run's YAML file, or the files at a URL.  Raises ConfigError."""
    if where.endswith((".yaml", ".yml")):
        return resolve(config.load(where, settings)).source
    tree: config.Tree = {"source": {"kind": "files", "path": where}, "store": "unused", "model": "unused"}
    for setting in settings:
        config.apply(tree, setting)
    return resolve(config.parse(tree)).source


def inspected(source: Source, *, rows: int, sheet: Path) -> dict[str, Any]:
    """Partitions, schema, samples and refused rows of the first `rows`; images go to `sheet`.  Raises SourceError."""
    partitions = source.partitions()
    if not partitions:
        raise ConfigError(f"source {source.name!r} has no partition yet: nothing to look at")
    samples, dead = _read(source, rows)
    pictures = [(data, sample) for sample in samples for data in sample.images]
    if pictures:
        _sheet(pictures).save(sheet)
    return {
        "source": source.name,
        "partitions": len(partitions),
        "first": partitions[:SHOWN],
        "schema": source.schema(partitions[0]) if isinstance(source, Files) else {},
        "looked_at": len(samples) + len(dead),
        "good": len(samples),
        "tasks": dict(Counter(sample.task or "" for sample in samples)),
        "samples": [_told(sample) for sample in samples[:SHOWN]],
        "sheet": str(sheet) if pictures else None,
        "images": len(pictures),
        "problems": _problems(samples, dead),
    }


def _read(source: Source, rows: int) -> tuple[list[Sample], list[DeadLetter]]:
    merged, samples, dead = Merged(source, {}), list[Sample](), list[DeadLetter]()
    until = time.monotonic() + WAIT_S
    while len(samples) + len(dead) < rows and (polled := merged.poll(rows - len(samples) - len(dead))) is not None:
        samples += from_batch(polled.batch)
        dead += polled.dead
        if not len(polled):
            if time.monotonic() > until:
                break
            time.sleep(0.05)
    return samples, dead


def _told(sample: Sample) -> dict[str, Any]:
    """A sample as text: `[image]` where one stands."""
    turns = [
        f"{m.role}: {' '.join('[image]' if part.type == 'image' else part.text for part in m.content)}"[:500]
        for m in sample.messages
    ]
    place = {"id": sample.id, "partition": sample.partition, "position": sample.position}
    return {
        **place,
        "task": sample.task,
        "time": sample.time,
        "messages": turns,
        "images": list(map(_size, sample.images)),
    }


def _size(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return f"{image.format} {image.width} x {image.height}, {len(data)} bytes"


def _problems(samples: Sequence[Sample], dead: Sequence[DeadLetter]) -> list[dict[str, Any]]:
    """Refused rows by the first word of their reason, and ids that come twice."""
    reasons = Counter(letter.reason.partition(":")[0] for letter in dead)
    found = []
    for reason, count in reasons.most_common():
        letter = next(letter for letter in dead if letter.reason.startswith(reason))
        place = f"{letter.partition}:{letter.position}"
        found.append({"problem": "refused", "count": count, "example": f"{place}  {letter.reason}"})
    twice = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    if twice:
        found.append({"problem": "id comes twice: learned once", "count": len(twice), "example": twice[0]})
    return found


def _sheet(pictures: Sequence[tuple[bytes, Sample]]) -> Image.Image:
    """The pictures side by side, each with the answer below it."""
    lines = -(-len(pictures) // COLUMNS)
    whole = Image.new("RGB", (min(len(pictures), COLUMNS) * CELL, lines * (CELL + CAPTION)), "white")
    draw = ImageDraw.Draw(whole)
    for number, (data, sample) in enumerate(pictures):
        left, top = number % COLUMNS * CELL, number // COLUMNS * (CELL + CAPTION)
        with Image.open(io.BytesIO(data)) as image:
            small = image.convert("RGBA")
        scale = (CELL - 8) / max(small.size)
        small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))))
        whole.paste(small, (left + (CELL - small.width) // 2, top + (CELL - small.height) // 2), small)
        draw.text((left + 4, top + CELL), sample.answer[:24].encode("ascii", "replace").decode(), fill="black")
    return whole


def as_text(found: dict[str, Any]) -> str:
    """What was found, for a terminal: whatever the data holds, no control character is printed."""
    lines = [f"{found['partitions']} partitions: {', '.join(found['first'])}"]
    lines += [f"  {name}: {kind}" for name, kind in found["schema"].items()]
    lines.append(f"{found['good']} good of the first {found['looked_at']} rows")
    for sample in found["samples"]:
        lines.append(f"{sample['partition']}:{sample['position']} {sample['id']}  task {sample['task'] or '-'}")
        lines += [f"    {text}" for text in (*sample["messages"], *sample["images"])]
    if found["sheet"]:
        lines.append(f"{found['images']} images: {found['sheet']}")
    lines += [f"{p['count']} x {p['problem']}, such as {p['example']}" for p in found["problems"]]
    lines.append("no problems" if not found["problems"] else "what is refused goes to the dead letters")
    return "\n".join(ascii(line)[1:-1] if not line.isprintable() else line for line in lines)
