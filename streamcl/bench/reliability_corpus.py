"""Records that somebody made to break the reader, each with the reason it must be refused for; and good ones.

`run_corpus` writes each into a file of its own, and has the real source read them in a fresh process.
"""

from __future__ import annotations

import base64
import json
import os
import random
import resource
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from streamcl.stream import Files, Merged
from streamcl.stream.isolate import CHILD, TEST_HOOK
from streamcl.testing.deadly import HOOK, TRACE


def image(format: str = "PNG", *, size: tuple[int, int] = (24, 16), frames: int = 1, **options: Any) -> bytes:
    """A picture of noise, the same in every run."""
    noise = random.Random(0)
    pictures = [Image.frombytes("RGB", size, noise.randbytes(3 * size[0] * size[1])) for _ in range(frames)]
    data = BytesIO()
    more = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(data, format, **more, **options)
    return data.getvalue()


def png(width: int, height: int, pixels: bytes = b"", *extra: bytes) -> bytes:
    """An RGB PNG from its parts, whatever they are."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    texts = b"".join(chunk(b"zTXt", data) for data in extra)
    return b"\x89PNG\r\n\x1a\n" + header + texts + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bomb(side: int) -> bytes:
    """A valid PNG of side x side white pixels: a thousand times larger once decoded."""
    rows = zlib.compressobj(1)
    row = b"\0" + b"\xff" * 3 * side
    return png(side, side, b"".join(rows.compress(row) for _ in range(side)) + rows.flush())


def record(*pictures: object, text: str = "What is this?", answer: object = "a fox", **fields: Any) -> dict[str, Any]:
    """A record that is good unless an argument makes it bad."""
    parts: list[dict[str, Any]] = [{"type": "image"} for _ in pictures]
    question = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
    messages = [question, {"role": "assistant", "content": answer}]
    images = [base64.b64encode(p).decode() if isinstance(p, bytes) else p for p in pictures]
    return {"messages": messages, "images": images, **fields}


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "words"} for role in roles]}


def with_content(content: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}]}


GOOD: Mapping[str, Any] = {
    "text": record(),
    "png": record(image()),
    "jpeg": record(image("JPEG")),
    "webp": record(image("WEBP")),
    "two_images": record(image(), image("JPEG")),
    "phone_jpeg": record(image("MPO", frames=2)),
    "unknown_fields": record(image(), weather="rain", nested={"a": [1, 2]}),
    "system_and_turns": turns("system", "user", "assistant", "user", "assistant"),
    "placeholders": record(text="<image> <|im_end|>"),
    "reference": record({"path": "pictures/fox.png"}),
    "labelled": record(task="animals", time=12, id="fox-1", schema=1),
}

BAD: Mapping[str, tuple[str, Any]] = {
    # not a record
    "not_json": ("schema", b"{messages: oops"),
    "empty_object": ("schema", {}),
    "a_list": ("schema", []),
    "a_number": ("schema", 7),
    "half_a_line": ("schema", json.dumps(record()).encode()[:40]),
    "nested_100000_deep": ("too_large", b"[" * 100_000),
    "nested_50000_deep": ("schema", b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "million_lists": ("too_large", b"[" + b"[],[]," * 500_000 + b"[]]"),
    "number_of_10000_digits": ("schema", b'{"messages": ' + b"9" * 10_000 + b"}"),
    "bad_utf8": ("utf8", b'{"messages": "\xff\xfe\xfa"}'),
    "utf16": ("utf8", json.dumps(record()).encode("utf-16").replace(b"\n", b" ")),
    "lone_surrogate": ("utf8", record(text="\ud800")),
    "lone_surrogate_in_id": ("utf8", record(id="\udfff")),
    # fields
    "no_messages": ("schema", {"images": []}),
    "messages_null": ("schema", {"messages": None}),
    "messages_text": ("schema", {"messages": "hello"}),
    "message_number": ("schema", {"messages": [1]}),
    "content_number": ("schema", with_content(3)),
    "part_text": ("schema", with_content(["hello"])),
    "part_of_unknown_type": ("text", with_content([{"type": "audio"}])),
    "text_number": ("text", with_content([{"type": "text", "text": 5}])),
    "text_missing": ("text", with_content([{"type": "text"}])),
    "newer_schema": ("schema", record(schema=99)),
    "schema_text": ("schema", record(schema="1")),
    "role_unknown": ("text", turns("root", "assistant")),
    "two_users": ("text", turns("user", "user", "assistant")),
    "late_system": ("text", turns("user", "system", "assistant")),
    "answer_alone": ("text", turns("assistant")),
    "no_answer": ("answer", turns("user")),
    "empty_answer": ("answer", record(answer="  ")),
    "answer_is_image": ("answer", {**record(answer=[{"type": "image"}]), "images": []}),
    "task_path": ("schema", record(task="../../etc/passwd")),
    "task_number": ("schema", record(task=4)),
    "task_huge": ("schema", record(task="a" * 100_000)),
    "id_huge": ("id", record(id="x" * 100_000)),
    "id_empty": ("id", record(id="")),
    "id_newline": ("id", record(id="a\nb")),
    "id_escape": ("id", record(id="\x1b[2J")),
    "id_number": ("id", record(id=12)),
    "time_nan": ("time", record(time=float("nan"))),
    "time_infinite": ("time", record(time=float("inf"))),
    "time_milliseconds": ("time", record(time=1_700_000_000_000)),
    "time_huge": ("time", record(time=10**300)),
    "time_text": ("time", record(time="now")),
    "time_true": ("time", record(time=True)),
    # sizes
    "megabyte_of_text": ("too_large", record(text="x" * 2**20)),
    "many_texts": ("too_large", with_content([{"type": "text", "text": "x" * 30_000}] * 2)),
    "many_parts": ("too_large", with_content([{"type": "text", "text": ""}] * 1_000)),
    "many_messages": ("too_large", turns(*["user", "assistant"] * 50)),
    "many_images": ("too_large", record(*[image()] * 9)),
    "heavy_image": ("too_large", record(b"\x89PNG\r\n\x1a\n" + bytes(9 * 2**20))),
    "81_megapixels": ("too_large", record(bomb(9_000))),
    "200_megapixels_claimed": ("too_large", record(png(20_000, 10_000))),
    "4_gigapixels_claimed": ("too_large", record(png(2**16, 2**16))),
    # images
    "image_empty": ("image", record(b"")),
    "image_null": ("image", record(None)),
    "image_not_base64": ("image", record("/etc/passwd")),
    "image_not_ascii": ("image", record("ü" * 8)),
    "png_truncated": ("image", record(image()[:-600])),
    "png_header_only": ("image", record(image()[:33])),
    "png_bad_checksum": ("image", record(image().replace(b"IHDR", b"IHDX"))),
    "png_no_pixels": ("image", record(png(8, 8))),
    "png_no_width": ("image", record(png(0, 8))),
    "png_text_bomb": ("image", record(png(1, 1, zlib.compress(b"\0\0"), b"k\0\0" + zlib.compress(bytes(2**26))))),
    "jpeg_truncated": ("image", record(image("JPEG")[:-100])),
    "jpeg_start_only": ("image", record(b"\xff\xd8\xff")),
    "webp_truncated": ("image", record(image("WEBP")[:-40])),
    "thin_strip": ("image", record(image(size=(1, 2_000)))),
    "apng": ("image", record(image(frames=3))),
    "webp_animated": ("image", record(image("WEBP", frames=3))),
    "gif_animated": ("image", record(image("GIF", frames=3))),
    "gif": ("image", record(image("GIF"))),
    "tiff": ("image", record(image("TIFF"))),
    "svg": ("image", record(b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>')),
    "postscript": ("image", record(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n")),
    "wrong_magic": ("image", record(b"RIFF" + image())),
    "html": ("image", record(b"<html>404</html>")),
    "image_without_part": ("image", {**record(), "images": record(image())["images"]}),
    "part_without_image": ("image", {**record(image()), "images": []}),
    "images_an_object": ("schema", {**record(), "images": {"0": ""}}),
    # references
    "url": ("image", record("https://example.org/fox.png")),
    "reference_url": ("image", record({"path": "https://example.org/fox.png"})),
    "reference_chain": ("image", record({"path": "simplecache::s3://bucket/fox.png"})),
    "reference_absolute": ("image", record({"path": "/etc/passwd"})),
    "reference_parent": ("image", record({"path": "pictures/../../secret.png"})),
    "reference_encoded": ("image", record({"path": "%2e%2e/secret.png"})),
    "reference_backslash": ("image", record({"path": "..\\secret.png"})),
    "reference_missing": ("image", record({"path": "pictures/none.png"})),
    "reference_under_file": ("image", record({"path": "pictures/fox.png/x"})),
    "reference_folder": ("image", record({"path": "pictures"})),
    "reference_long": ("image", record({"path": "a" * 300})),
    "reference_zero": ("image", record({"path": "a\0b"})),
    "reference_number": ("image", record({"path": 3})),
    "reference_surrogate": ("image", record({"path": "\ud800"})),
    "reference_link": ("image", record({"path": "pictures/link.png"})),
    "reference_pipe": ("image", record({"path": "pictures/pipe"})),
    "reference_heavy": ("too_large", record({"path": "pictures/heavy.png"})),
}


DEADLY: Mapping[str, tuple[str, Any]] = {
    "kills_by_segfault": ("crash", record(image() + b"segfault")),
    "kills_by_abort": ("crash", record(image(), image() + b"abort")),
    "kills_by_error": ("crash", record(image() + b"broken")),
    "kills_by_memory": ("image", record(image() + b"glutton")),
}
"""Images that kill their decoder, where `streamcl.testing.deadly` is planted in it."""


def write(folder: Path) -> Path:
    """The corpus as a folder of files, a bad record and a good one in each, and the files that references name."""
    root = folder / "root"
    (root / "pictures").mkdir(parents=True)
    (folder / "secret.png").write_bytes(image())
    (root / "pictures" / "fox.png").write_bytes(image())
    with (root / "pictures" / "heavy.png").open("wb") as heavy:
        heavy.truncate(2**32)
    (root / "pictures" / "link.png").symlink_to(folder / "secret.png")
    os.mkfifo(root / "pictures" / "pipe")
    good = [line(value) for value in GOOD.values()]
    for i, (name, (_, value)) in enumerate([*BAD.items(), *DEADLY.items()]):
        (root / f"{name}.jsonl").write_bytes(line(value) + b"\n" + good[i % len(good)] + b"\n")
    return root


def line(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def run_corpus(folder: Path) -> dict[str, Any]:
    """Writes the corpus into `folder`, new or empty, reads it in a process of its own, and says what became of it.

    "files": hostile files. "quarantined": dead letters by reason. "wrong": files whose bad record was accepted, lost or
    refused for another reason. "good" of "good_expected" records beside the bad ones arrived. "crashes": readers that
    died. "decoder_deaths": decoders that did, and were replaced. "peak_rss_mb": of reader and decoder together.
    """
    root = write(folder)
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path, TEST_HOOK: HOOK, TRACE: str(folder / "trace")}
    command = [sys.executable, "-m", "streamcl.bench.reliability_corpus", str(root)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    crashed = child.returncode != 0
    nothing: dict[str, Any] = {"dead": {}, "good": 0, "decoder_deaths": 0, "peak_rss_mb": 0.0, "decoder_rss_mb": 0.0}
    read = nothing if crashed else json.loads(child.stdout)
    dead: dict[str, list[str]] = read.pop("dead")
    expected = {name: [reason] for name, (reason, _) in {**BAD, **DEADLY}.items()}
    quarantined = Counter(reason for reasons in dead.values() for reason in reasons)
    return {
        "files": len(expected),
        "quarantined": dict(sorted(quarantined.items())),
        "wrong": [name for name in expected if dead.get(name) != expected[name]],
        "good_expected": len(expected),
        "crashes": int(crashed),
        "stderr": child.stderr[-2000:] if crashed else "",
        **read,
    }


def main(root: str) -> None:
    """Reads the corpus; prints reasons by file, good records, deaths of the decoder, and peak memory."""
    merged = Merged(Files(root), {})
    dead: dict[str, list[str]] = {}
    good = 0
    while (polled := merged.poll(16)) is not None:
        for letter in polled.dead:
            dead.setdefault(letter.partition.removesuffix(".jsonl"), []).append(letter.reason.split(":")[0])
        good += polled.batch.num_rows
    CHILD.close()
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    told = {"decoder_deaths": CHILD.deaths, "peak_rss_mb": round(sum(peaks), 1), "decoder_rss_mb": round(peaks[1], 1)}
    print(json.dumps({"dead": dead, "good": good, **told}))


if __name__ == "__main__":
    main(sys.argv[1])
