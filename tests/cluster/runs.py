"""Small runs on real Ray: a stream on disk, its configuration, and the command in a process of its own."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from streamcl import zoo
from streamcl.testing import free_port

TASKS = ("animals", "maps")


def settings(folder: Path, *, train: int, **sections: Any) -> dict[str, Any]:
    """A run over two zoo tasks with `train` samples each, in `folder`."""
    zoo.write_stream(folder / "stream", TASKS, train=train, test=12, partitions=2)
    values: dict[str, Any] = {
        "name": "small",
        "store": {"path": str(folder / "store"), "shards": 2},
        "batch": 16,
        "model": {"path": "zoo:small", "lora": {"r": 4, "alpha": 8}},
        "source": {"kind": "files", "path": str(folder / "stream" / "train")},
        "detector": {"kind": "labels"},
        "strategy": {"kind": "dgg", "replay_rows": 16},
        "window": {"samples": 1000},
        "replay": {"capacity": 16, "key": "seed"},
        "train": {"epochs": 1, "batch_size": 8},
        "evaluate": {"path": str(folder / "stream" / "test"), "samples": 12},
        "serve": {"port": free_port()},
        "ask": {"per_second": 2},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    return values


def add_bad_samples(folder: Path) -> None:
    """A truncated PNG, a record without an answer, and an instruction of 1 MB, as a third partition."""
    sink = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(sink, "PNG")
    whole = base64.b64encode(sink.getvalue()).decode()
    cut = base64.b64encode(sink.getvalue()[: len(sink.getvalue()) // 2]).decode()

    def record(id: str, text: str, image: str, answer: str | None) -> dict[str, Any]:
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return {"id": id, "messages": messages, "images": [image], "task": TASKS[0], "time": 0.0}

    records = [
        record("bad/truncated", "what is this?", cut, "noise"),
        record("bad/unanswered", "what is this?", whole, None),
        record("bad/endless", "what " * 200_000, whole, "noise"),
        record("good/one", "what is this?", whole, "noise"),
    ]
    lines = "".join(json.dumps(one) + "\n" for one in records)
    (folder / "stream" / "train" / "extra.jsonl").write_text(lines)


def write_yaml(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(yaml_file: Path, *overrides: str) -> subprocess.Popen[str]:
    """`streamcl run` in a process group of its own; JSON on standard output."""
    command = [sys.executable, "-m", "streamcl.cli", "run", str(yaml_file), *overrides, "--json"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=dict(os.environ)
    )
