"""The stream of the small learner: three files, three tasks and one that returns, repeats, and bad records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TASKS = ("fox", "owl", "elk", "fox")
ROWS = 12
"""Samples of each task."""


def write_stream(folder: Path) -> Path:
    """Writes the files, the same ones every time; the folder."""
    files: dict[str, list[str]] = {f"part-{i}.jsonl": [] for i in range(3)}
    order = 0
    for turn, task in enumerate(TASKS):
        for row in range(ROWS):
            number = turn * ROWS + row
            lines = files[f"part-{number % 3}.jsonl"]
            for record in _records(number, task):
                order += 1
                lines.append(record if isinstance(record, str) else json.dumps({**record, "time": float(order)}))
    folder.mkdir(parents=True)
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


def _records(number: int, task: str) -> list[dict[str, Any] | str]:
    """The sample of a number; now and then one that was there before, and one that is refused."""
    records: list[dict[str, Any] | str] = [_record(f"s/{number}", task)]
    if number % ROWS == 3 and number > ROWS:
        records.append(_record(f"nan/{number}", task))
    if number % 4 == 1:
        records.append(_record(f"s/{number - 1}", task))
    if number % 9 == 5:
        records.append(_record(f"s/{number // 2}", task))
    if number % 7 == 2:
        records.append({**_record(f"bad/{number}", task), "messages": [{"role": "user", "content": "unanswered"}]})
    if number % 17 == 6:
        records.append(f'{{"id": "cut/{number}", "mess')
    return records


def _record(id: str, task: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"what is {id}?"}, {"role": "assistant", "content": task}]
    return {"id": id, "task": task, "messages": messages, "images": []}
