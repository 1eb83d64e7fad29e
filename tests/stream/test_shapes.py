"""Records in the shapes that others write are the samples they mean."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamcl.bench.reliability_corpus import image
from streamcl.stream import Files
from streamcl.stream.door import Door
from streamcl.stream.formats import Row
from streamcl.types import DeadLetter, Sample, from_batch

PIXEL = image()
TEXT = base64.b64encode(PIXEL).decode()
URL = f"data:image/png;base64,{TEXT}"


def taken(record: dict[str, Any], **columns: str) -> Sample:
    one = Door("s", columns=columns).take(Row(1, record, record), "p")
    assert isinstance(one, Sample), one
    return one


def told(sample: Sample) -> list[tuple[str, list[str]]]:
    return [(m.role, ["<>" if p.type == "image" else p.text for p in m.content]) for m in sample.messages]


def chat(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


ASKED = [("user", ["<>", "What?"]), ("assistant", ["A fox"])]
PLAIN = chat(("user", "What?"), ("assistant", "A fox"))
PARTED = chat(("user", [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]), ("assistant", "A fox"))
LLAVA = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A fox"}]
LINKED = chat(
    ("user", [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": "What?"}]),
    ("assistant", "A fox"),
)
SHAPES: dict[str, dict[str, Any]] = {
    "LLaVA, train": {"id": "7", "image": TEXT, "conversations": LLAVA},
    "LLaVA, a list of images": {"id": "7", "image": [TEXT], "conversations": LLAVA},
    "LLaVA, no placeholder": {"image": TEXT, "conversations": [{"from": "human", "value": "What?"}, LLAVA[1]]},
    "LLaVA, test": {"question_id": 7, "image": TEXT, "text": "What?", "answer": "A fox"},
    "TRL, messages and images": {"messages": PARTED, "images": [TEXT]},
    "TRL, texts and images": {"messages": PLAIN, "images": [TEXT]},
    "TRL, images of Hugging Face": {"messages": PARTED, "images": [{"bytes": PIXEL, "path": "a.png"}]},
    "TRL, prompt and completion": {"prompt": PARTED[:1], "completion": PARTED[1:], "images": [TEXT]},
    "prompt and completion, texts": {"prompt": "What?", "completion": "A fox", "image": TEXT},
    "OpenAI chat": {"messages": LINKED},
    "question and answer": {"question": "What?", "answer": "A fox", "image": URL},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_the_same_sample(shape: str) -> None:
    sample = taken(SHAPES[shape])
    assert told(sample) == ASKED
    assert sample.images == (PIXEL,)
    assert sample.id == taken(SHAPES["LLaVA, train"]).id  # the hash of its content: LLaVA's own ids are not unique


def test_placeholders_stand_where_the_images_belong() -> None:
    value = "Compare <image> with\n<image>\nplease"
    sample = taken({"image": [TEXT, TEXT], "conversations": [{"from": "human", "value": value}, LLAVA[1]]})
    assert told(sample)[0] == ("user", ["Compare ", "<>", " with", "<>", "please"])


def test_several_turns_and_a_system_message() -> None:
    turns = [{"from": "system", "value": "Be short."}, *LLAVA, {"from": "human", "value": "Sure?"}, LLAVA[1]]
    assert [role for role, _ in told(taken({"image": TEXT, "conversations": turns}))] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip


def test_columns_of_other_names_are_mapped() -> None:
    sample = taken(
        {"uid": "a1", "pic": URL, "q": "What?", "a": "A fox", "set": "maps", "id": 7},
        id="uid", images="pic", question="q", answer="a", task="set",
    )  # fmt: skip
    assert (told(sample), sample.id, sample.task) == (ASKED, "a1", "maps")


def test_an_assistant_who_wrote_the_placeholder_shows_no_picture() -> None:
    turns = [LLAVA[0], {"from": "gpt", "value": "the tag <image> is"}]
    assert told(taken({"image": TEXT, "conversations": turns}))[1] == ("assistant", ["the tag ‹image› is"])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "more placeholders than images": ({"image": TEXT, "conversations": [
        {"from": "human", "value": "<image><image>"}, LLAVA[1]]}, "image"),
    "an unknown speaker": ({"conversations": [{"from": "bard", "value": "x"}, LLAVA[1]]}, "text"),
    "a speaker that is a list": ({"conversations": [{"from": [], "value": "x"}, LLAVA[1]]}, "text"),
    "no value": ({"conversations": [{"from": "human"}, LLAVA[1]]}, "schema"),
    "conversations as text": ({"conversations": "x"}, "schema"),
    "a turn that is no object": ({"conversations": [3]}, "schema"),
    "no answer": ({"question_id": 1, "text": "What?"}, "schema"),
    "an answer that is a number": ({"question_id": 1, "text": "What?", "answer": 3}, "schema"),
    "a web address": ({"messages": chat(("user", [{"type": "image_url", "image_url": {"url": "http://x/a.png"}}]),
                                        ("assistant", "a"))}, "image"),
    "an image_url without one": ({"messages": chat(("user", [{"type": "image_url"}]), ("assistant", "a"))}, "image"),
    "data that is no image": ({"image": "data:text/plain;base64,AAAA", "question": "x", "answer": "y"}, "image"),
    "a path out of the root": ({"image": "../a.png", "conversations": LLAVA}, "image"),
    "an absolute path": ({"image": "/etc/a.png", "conversations": LLAVA}, "image"),
    "a path that is a number": ({"image": {"path": 3}, "conversations": LLAVA}, "image"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_malformed_is_a_dead_letter(tmp_path: Path, case: str) -> None:
    record, reason = REFUSED[case]
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    polled = Files(str(tmp_path)).open("a.jsonl", 0).poll(1)
    assert polled is not None
    assert [letter.reason.partition(":")[0] for letter in polled.dead] == [reason]
    assert isinstance(Door("s").take(Row(1, record, record), "p"), DeadLetter)


def test_images_lie_under_a_folder_of_their_own(tmp_path: Path) -> None:
    """As in UCIT and CoIN: instructions here, pictures there."""
    (tmp_path / "instructions" / "IconQA").mkdir(parents=True)
    (tmp_path / "datasets" / "IconQA").mkdir(parents=True)
    (tmp_path / "datasets" / "IconQA" / "1.png").write_bytes(PIXEL)
    (tmp_path / "secret.png").write_bytes(PIXEL)
    records = [{"image": name, "conversations": LLAVA} for name in ("./IconQA/1.png", "IconQA/2.png", "../secret.png")]
    (tmp_path / "instructions" / "IconQA" / "train.json").write_text(json.dumps(records))
    source = Files(f"{tmp_path}/instructions/*/train*.json", images=f"{tmp_path}/datasets")
    assert source.partitions() == ["IconQA/train.json"]
    polled = source.open("IconQA/train.json", 0).poll(9)
    assert polled is not None
    assert [sample.images for sample in from_batch(polled.batch)] == [(PIXEL,)]
    assert [letter.reason.partition(":")[0] for letter in polled.dead] == ["image", "image"]


def test_a_table_of_foreign_columns_is_read_and_one_without_samples_says_what_to_do(tmp_path: Path) -> None:
    from streamcl.errors import SourceError

    rows = {"q": ["What?"], "a": ["A fox"], "pic": [{"bytes": PIXEL, "path": None}], "heavy": [b"x"]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    columns = {"question": "q", "answer": "a", "images": "pic"}
    polled = Files(str(tmp_path), columns=columns).open("a.parquet", 0).poll(9)
    assert polled is not None
    assert [told(sample) for sample in from_batch(polled.batch)] == [ASKED]
    with pytest.raises(SourceError, match=r"columns q, a, pic, heavy; need messages.*say so: columns"):
        Files(str(tmp_path)).open("a.parquet", 0).poll(9)
