"""The default stream: small real tasks as samples, and as a folder of Parquet partitions that a file source reads.

Pictures of permissively licensed tasks are shipped beside this file; `flags` and `emoji_category` are rendered from
their package.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.parquet as pq

from streamcl.errors import ConfigError
from streamcl.types import SAMPLE_SCHEMA
from streamcl.zoo import emoji
from streamcl.zoo.words import ANIMALS, CHARTS, COUNTING, DIGITS, EMOJI, FLAGS, ICONS, INSTRUCTIONS, MAPS

Split = Literal["train", "test"]
HERE = Path(__file__).parent
SIZES: Mapping[str, int] = {"train": 1200, "test": 300}
EPOCH = 1_767_225_600.0
"""Event time of a stream's first sample: the start of 2026, a fixed fiction."""
FORMAT = 1
"""Part of a stream's identity: raise it when the same arguments would write other samples."""


@dataclass(frozen=True)
class Task:
    """What a task asks for and where its pictures come from."""

    name: str
    classes: tuple[str, ...]
    learnable: bool
    """A tiny model learns it; the others are hard on purpose."""
    shipped: bool
    """Its pictures come with streamcl; otherwise they need the extra `streamcl[zoo]`."""


TASKS: dict[str, Task] = {
    "digits": Task("digits", DIGITS, learnable=True, shipped=True),
    "animals": Task("animals", ANIMALS, learnable=True, shipped=True),
    "icons": Task("icons", ICONS, learnable=True, shipped=True),
    "icons_phosphor": Task("icons_phosphor", ICONS, learnable=True, shipped=True),
    "emoji_category": Task("emoji_category", EMOJI, learnable=True, shipped=False),
    "flags": Task("flags", tuple(FLAGS), learnable=True, shipped=False),
    "maps": Task("maps", MAPS, learnable=True, shipped=True),
    "charts": Task("charts", CHARTS, learnable=False, shipped=True),
    "counting": Task("counting", COUNTING, learnable=False, shipped=True),
}
RENDERED: Mapping[str, Callable[[str, int, Random], list[emoji.Picture]]] = {
    "emoji_category": emoji.emoji_category,
    "flags": emoji.flags,
}


def _pictures(name: str, split: str) -> list[emoji.Picture]:
    if not TASKS[name].shipped:
        return RENDERED[name](split, SIZES[split], Random(f"{name}/{split}"))
    table = pq.read_table(HERE / "data" / split / f"{name}.parquet")
    return list(zip(table["image"].to_pylist(), table["answer"].to_pylist(), strict=True))


def load_task(name: str, split: Split) -> pa.Table:
    """A task's samples, classes in turn, so that any first rows are balanced.  Raises ConfigError for unknown names."""
    if name not in TASKS:
        raise ConfigError(f"no task {name!r} in the zoo; have {', '.join(TASKS)}")
    if split not in SIZES:
        raise ConfigError(f"no split {split!r}; have {', '.join(SIZES)}")
    random = Random(f"{name}/{split}/phrasing")
    rows = []
    for index, (image, answer) in enumerate(_pictures(name, split)):
        asked = [{"type": "image", "text": ""}, {"type": "text", "text": random.choice(INSTRUCTIONS[name])}]
        told = [{"type": "text", "text": answer}]
        rows.append({
            "id": f"{name}/{split}/{index:06d}", "images": [image], "task": name, "time": EPOCH + index,
            "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told}],
            "source": "zoo", "partition": f"{name}/{split}", "position": index + 1,
        })  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)


@dataclass(frozen=True)
class Recipe:
    """What a written stream was made from; equal recipes write equal files."""

    tasks: tuple[str, ...]
    train: int
    test: int
    partitions: int
    seed: int
    format: int = FORMAT

    def __post_init__(self) -> None:
        unknown = [name for name in self.tasks if name not in TASKS]
        if unknown or not self.tasks:
            raise ConfigError(f"no task {', '.join(unknown) or 'named'} in the zoo; have {', '.join(TASKS)}")
        for split, rows in (("train", self.train), ("test", self.test)):
            if not 0 < rows <= SIZES[split]:
                raise ConfigError(
                    f"{split}={rows} is not allowed: a task of the zoo has 1 to {SIZES[split]} {split} samples"
                )
        if not 0 < self.partitions <= 99:
            raise ConfigError(f"partitions={self.partitions} is not allowed: 1 to 99")


def write_stream(
    root: Path, tasks: Sequence[str], *, train: int = 1200, test: int = 300, partitions: int = 2, seed: int = 0
) -> None:
    """Write `root/train/part-*.parquet`, tasks one after another, and `root/test/<task>.parquet`; once only.

    A task may be named again: its next `train` samples follow, from the first again when all were seen.
    Returns at once if `root` holds this stream; raises ConfigError if it holds something else.
    """
    recipe = Recipe(tuple(tasks), train, test, partitions, seed)
    if root.exists():
        return _check(root, recipe)
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write_train(draft / "train", recipe)
        _write_test(draft / "test", recipe)
        (draft / "stream.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n", encoding="utf-8")
        draft.chmod(0o755)
        draft.rename(root)
    except OSError:
        if not root.exists():
            raise
        _check(root, recipe)  # another process wrote it first
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check(root: Path, recipe: Recipe) -> None:
    record = root / "stream.json"
    written = json.loads(record.read_text(encoding="utf-8")) if record.exists() else None
    if written != json.loads(json.dumps(asdict(recipe))):
        raise ConfigError(
            f"{root} exists and holds {written or 'no stream'}, not {asdict(recipe)}: remove it or name another folder"
        )


def _write_train(folder: Path, recipe: Recipe) -> None:
    rows: list[dict[str, Any]] = []
    tables = {name: load_task(name, "train").to_pylist() for name in dict.fromkeys(recipe.tasks)}
    for turn, name in enumerate(recipe.tasks):
        first = recipe.tasks[:turn].count(name) * recipe.train
        part = [_again(tables[name], index) for index in range(first, first + recipe.train)]
        Random(f"{name}/{turn}/{recipe.seed}").shuffle(part)
        rows += part
    for index in range(recipe.partitions):
        partition = f"part-{index:05d}"
        chosen = [{**row, "time": EPOCH + j, "partition": partition} for j, row in enumerate(rows)][
            index :: recipe.partitions
        ]
        _write(folder / f"{partition}.parquet", [{**row, "position": at + 1} for at, row in enumerate(chosen)])


def _again(table: list[dict[str, Any]], index: int) -> dict[str, Any]:
    """The sample at `index` of a table read round and round; from the second round on its id says which."""
    turn, at = divmod(index, len(table))
    return {**table[at], "id": f"{table[at]['id']}.{turn}"} if turn else table[at]


def _write_test(folder: Path, recipe: Recipe) -> None:
    for name in dict.fromkeys(recipe.tasks):
        _write(folder / f"{name}.parquet", load_task(name, "test").slice(0, recipe.test).to_pylist())


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), path, row_group_size=100, compression="zstd")


def resolve(url: str) -> str:
    """The path behind "zoo:small" or "zoo:stream?tasks=digits,animals&train=600&test=100&partitions=2&seed=0".

    A stream is written into the cache folder the first time. Raises ConfigError, naming what exists, for anything else.
    """
    name, _, query = url.removeprefix("zoo:").partition("?")
    models = sorted(path.parent.name for path in (HERE / "checkpoints").glob("*/config.json"))
    if (card := HERE / "checkpoints" / name / "README.md").exists() and name not in models:
        raise ConfigError(f"{url!r} has to be made first, and its folder given instead: {card} says how")
    if not url.startswith("zoo:") or name not in ("stream", *models) or (query and name != "stream"):
        raise ConfigError(f"no {url!r}; have {', '.join(f'zoo:{model}' for model in models)}, and zoo:stream?tasks=...")
    return str(HERE / "checkpoints" / name) if name != "stream" else str(_cached(query))


def _cached(query: str) -> Path:
    asked = dict(parse_qsl(query, keep_blank_values=True))
    numbers = {"train": 1200, "test": 300, "partitions": 2, "seed": 0}
    for key, value in asked.items():
        if key != "tasks" and key not in numbers:
            raise ConfigError(f"no option {key!r} of zoo:stream; have tasks, {', '.join(numbers)}")
        if key in numbers:
            if not value.isascii() or not value.isdigit():
                raise ConfigError(f"zoo:stream: {key}={value!r} is not a whole number")
            numbers[key] = int(value)
    tasks = [task for task in asked.get("tasks", ",".join(TASKS)).split(",") if task]
    recipe = Recipe(tuple(tasks), **numbers)
    cache = Path(os.environ.get("STREAMCL_CACHE") or Path.home() / ".cache" / "streamcl")
    options = "-".join(f"{key}{value}" for key, value in numbers.items())
    root = cache / "zoo" / f"{'+'.join(recipe.tasks)}-{options}-v{FORMAT}"
    write_stream(root, tasks, **numbers)
    return root
