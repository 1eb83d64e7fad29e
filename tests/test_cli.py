"""The command line: what it says, and what it says when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from streamcl.cli import app
from streamcl.errors import ConfigError, SourceError

QUICKSTART = str(Path(__file__).parents[1] / "examples" / "quickstart.yaml")


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'transformers', 'pyarrow'}"
    code = f"import sys, streamcl, streamcl.cli; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    assert "status" in invoke("--help")


def test_check_prints_the_whole_configuration_with_overrides() -> None:
    printed = yaml.safe_load(invoke("check", QUICKSTART, "strategy.kind=replay", "train.lr=1e-4"))
    assert printed["strategy"] == {"kind": "replay", "replay_rows": 1000}
    assert printed["train"]["lr"] == 1e-4
    assert printed["serve"]["host"] == "127.0.0.1"


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'window'"):
        invoke("check", QUICKSTART, "windows.samples=3")


def test_a_store_without_a_run_says_so(tmp_path: Path) -> None:
    store = f"store.path={tmp_path}"
    assert "no version yet" in invoke("versions", "ls", QUICKSTART, store)
    assert "bare base model" in invoke("status", QUICKSTART, store)
    assert json.loads(invoke("status", QUICKSTART, store, "--json"))["versions"] == []


def test_a_source_that_is_not_there_says_so_before_anything_starts(tmp_path: Path) -> None:
    arguments = ("run", QUICKSTART, f"store.path={tmp_path}", f"source.path={tmp_path}/gone")
    with pytest.raises(SourceError, match="gone"):
        invoke(*arguments)


def test_errors_are_one_line_and_exit_code_2() -> None:
    command = [sys.executable, "-m", "streamcl.cli", "check", "no-such-file.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("streamcl: no-such-file.yaml cannot be read")
    assert result.stderr.count("\n") == 1
