"""Small directories in the exact layout of UCIT and CoIN, filled with pictures of the zoo."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from streamcl import zoo
from streamcl.bench.continual_data import ORDERS

PICTURES = ("digits", "maps", "animals", "icons")
CAPTIONS = ("VizWiz", "Flickr30k")


def _rows(zoo_task: str, split: Any, count: int, start: int) -> list[tuple[bytes, str, str]]:
    table = zoo.load_task(zoo_task, split).slice(start, count).to_pylist()
    return [
        (r["images"][0], r["messages"][0]["content"][-1]["text"], r["messages"][1]["content"][0]["text"]) for r in table
    ]


def _jpeg(data: bytes) -> bytes:
    sink = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(sink, "JPEG")
    return sink.getvalue()


def _answer(kind: str, task: str, answer: str) -> str:
    if kind == "CoIN" and task == "Grounding":
        return "[0.1, 0.2, 0.5, 0.9]"
    return f"a picture of the {answer}." if kind == "UCIT" and task in CAPTIONS else answer


def write(root: Path, kind: str, *, train: int, test: int) -> Path:
    """UCIT: instructions/TASK/{train_4w,test_3000}.json, datasets/TASK/...; CoIN: Instruction_Type1/TASK/*.json."""
    for number, task in enumerate(ORDERS[kind]):
        source = PICTURES[number % len(PICTURES)]
        for split, count, start in (("train", train, number * train), ("test", test, 0)):
            found: list[dict[str, Any]] = []
            for at, (data, text, answer) in enumerate(_rows(source, split, count, start)):
                key = f"{task}/images/{split}_{at}.jpg"
                path = root / ("datasets" if kind == "UCIT" else "") / key
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(_jpeg(data))
                said = _answer(kind, task, answer)
                turns = [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": said}]
                if split == "train":
                    found.append({"id": str(at), "image": f"./{key}", "conversations": turns})
                else:
                    found.append({"question_id": at, "image": f"./{key}", "text": text, "answer": said})
            names = {"UCIT": {"train": "train_4w.json", "test": "test_3000.json"}}
            folder = root / ("instructions" if kind == "UCIT" else "Instruction_Type1") / task
            folder.mkdir(parents=True, exist_ok=True)
            (folder / names.get(kind, {}).get(split, f"{split}.json")).write_text(json.dumps(found, indent=2))
    return root
