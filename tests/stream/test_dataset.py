"""Datasets as sources: the same samples as from files, from any row on, whatever holds the rows."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from streamcl.bench.reliability_corpus import image
from streamcl.errors import SourceError
from streamcl.stream import Dataset, Iterable, Merged
from streamcl.stream.base import Source
from streamcl.types import from_batch

PIXEL = image()
ROWS = 75


def rows() -> list[dict[str, Any]]:
    def talk(number: int) -> list[dict[str, Any]]:
        asked = [{"type": "image", "text": None}, {"type": "text", "text": f"what is {number}?"}]
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]

    found = [{"id": f"r{n}", "messages": talk(n), "images": [PIXEL], "time": float(n)} for n in range(ROWS)]
    found[7]["messages"][1]["content"][0]["text"] = " "
    return found


def generated() -> Iterator[dict[str, Any]]:
    yield from rows()


class RayLike:
    """What a Ray Data dataset shows of itself."""

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        return generated()


def hugging_face() -> datasets.Dataset:
    features = datasets.Features({
        "id": datasets.Value("string"),
        "messages": datasets.List({
            "role": datasets.Value("string"),
            "content": datasets.List({"type": datasets.Value("string"), "text": datasets.Value("string")}),
        }),
        "images": datasets.List(datasets.Image()),
        "time": datasets.Value("float64"),
    })  # fmt: skip
    data = {name: [row[name] for row in rows()] for name in features}
    data["images"] = [[{"bytes": PIXEL, "path": None}] for _ in range(ROWS)]
    return datasets.Dataset.from_dict(data, features=features)


def saved(tmp_path: Path) -> Source:
    datasets.DatasetDict({"test": hugging_face()}).save_to_disk(tmp_path / "d")
    return Dataset(str(tmp_path / "d"), split="test")


SOURCES: dict[str, Callable[[Path], Source]] = {
    "a list": lambda folder: Iterable(rows()),
    "a function": lambda folder: Iterable(generated),
    "a function by name": lambda folder: Dataset(f"{__name__}:generated"),
    "Ray Data": lambda folder: Iterable(RayLike()),
    "Hugging Face": lambda folder: Iterable(hugging_face()),
    "Hugging Face, streaming": lambda folder: Iterable(hugging_face().to_iterable_dataset()),
    "Hugging Face, from disk": saved,
}


def read(source: Source, position: int, limit: int) -> tuple[list[Any], list[Any]]:
    merged, good, dead = Merged(source, {"rows": position}), list[Any](), list[Any]()
    while (polled := merged.poll(limit)) is not None:
        good += [(s.id, s.messages, s.time, s.position, len(s.images)) for s in from_batch(polled.batch)]
        dead += [(letter.position, letter.reason.partition(":")[0]) for letter in polled.dead]
    return good, dead


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_gives_the_same_rows_from_any_position(tmp_path: Path, kind: str) -> None:
    source, expected = SOURCES[kind](tmp_path), read(Iterable(rows()), 0, 1_000)
    assert len(expected[0]) == ROWS - 1
    assert expected[1] == [(8, "answer")]
    for position, limit in ((0, 1_000), (0, 7), (33, 10), (ROWS, 1)):
        found = read(source, position, limit)
        assert found == tuple(
            [one for one in part if one[3 if part is expected[0] else 0] > position] for part in expected
        )
    with pytest.raises(SourceError, match="changed under a committed position"):
        read(source, ROWS + 1, 1)


def test_pictures_of_pillow_and_odd_rows(tmp_path: Path) -> None:
    with Image.open(io.BytesIO(PIXEL)) as picture:
        picture.load()
    given = [
        {"question": "what?", "answer": "it", "pic": picture},
        "text",
        {"question": "what?", "answer": 3, "pic": picture},
    ]
    polled = Iterable(given, columns={"images": "pic"}).open("rows", 0).poll(9)
    assert polled is not None
    assert [s.images[0][:4] for s in from_batch(polled.batch)] == [b"\x89PNG"]
    assert [(d.position, d.reason.partition(":")[0]) for d in polled.dead] == [(2, "schema"), (3, "schema")]
    assert "<PngImageFile>" in polled.dead[1].payload


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Iterable(iter([])), "give a function"),
        (Dataset("no/such/folder"), "cannot be loaded|needs"),
        (Dataset("no_such_module:rows"), "needs no_such_module"),
        (Dataset("json:no_such_function"), "cannot be loaded"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(source: Source, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        Merged(source, {}).poll(1)
