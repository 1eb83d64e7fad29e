"""`streamcl inspect` shows what a run would read, and what it would refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from streamcl.bench.reliability_corpus import image, line, record
from streamcl.cli import app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torn = record(image()[:-400], id="torn")
    rows = [*(record(image(), id=f"r{i}", text=f"what is {i}?") for i in range(9)), record(image(), id="r1"), torn]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(map(line, rows)))
    return tmp_path


def inspected(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["inspect", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_schema_samples_images_and_problems(folder: Path) -> None:
    sheet = folder / "sheet.png"
    found = json.loads(inspected(str(folder), "--sheet", str(sheet), "--json"))
    assert found["schema"]["messages"] == "list"
    assert (found["good"], found["looked_at"], found["images"]) == (10, 11, 10)
    assert found["samples"][0]["messages"][0] == "user: [image] what is 0?"
    assert found["samples"][0]["images"][0].startswith("PNG 24 x 16")
    assert [problem["count"] for problem in found["problems"]] == [1, 1]
    assert found["problems"][0]["example"].startswith("a.jsonl:11  image: ")
    with Image.open(sheet) as picture:
        colours = picture.convert("RGB").getcolors(1_000_000)
        assert picture.size == (8 * 160, 2 * 186)
        assert len(colours or ()) > 50  # pictures, not white paper


def test_text_for_people_and_settings(folder: Path) -> None:
    output = inspected(str(folder), "source.columns.id=uid", "--sheet", str(folder / "s.png"))
    assert "10 good of the first 11 rows" in output
    assert "refused, such as a.jsonl:11" in output


def test_a_run_file_names_its_source(folder: Path) -> None:
    (folder / "run.yaml").write_text(f"store: s\nmodel: m\nsource: {{kind: files, path: {folder}/a.jsonl}}\n")
    assert "1 partitions: a.jsonl" in inspected(str(folder / "run.yaml"), "--sheet", str(folder / "s.png"))
