"""The command line: what it says, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from streamcl.bench.reliability_corpus import record
from streamcl.cli import app
from streamcl.errors import ConfigError, SourceError
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.stream import Files, Limits, Merged, to_jsonl
from streamcl.stream.deadletter import RING_BYTES
from streamcl.types import DeadLetter

QUICKSTART = str(Path(__file__).parents[1] / "examples" / "quickstart.yaml")


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def loaded(among: set[str], *, by: str) -> str:
    """Which of these packages are loaded once `by` is imported, as a list is printed."""
    code = f"import sys, {by}; print(sorted({among} & set(sys.modules)))"
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


def test_help_imports_nothing_heavy() -> None:
    assert loaded({"torch", "ray", "transformers", "pyarrow"}, by="streamcl, streamcl.cli") == "[]"
    assert "status" in invoke("--help")


def test_check_prints_the_whole_configuration_with_overrides() -> None:
    printed = yaml.safe_load(invoke("check", QUICKSTART, "strategy.kind=replay", "train.lr=1e-4"))
    assert printed["strategy"] == {"kind": "replay", "replay_rows": 1000, "replay_share": 0.0}
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


def buried(folder: Path, *batches: list[DeadLetter]) -> list[str]:
    """A store whose commits have these dead letters, and the arguments that name it and its source."""
    from streamcl.cluster.commits import bury

    log = Log(open_store(str(folder / "store")))
    log.acquire("test")
    for letters in batches:
        head = log.head()
        assert head is not None
        log.append("data", state=bury(log, {"refs": head.state.get("refs", {})}, letters))
    (folder / "run.yaml").write_text(
        f"store: {folder}/store\nmodel: none\nsource: {{kind: files, path: {folder}/in}}\n"
    )
    return [str(folder / "run.yaml"), "source.limits.text_chars=1000"]


def test_dead_letters_are_listed_and_come_in_again(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    lines = [record(text="x" * 500, id="long"), record(answer="", id="mute\x1b")]
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    polled = Merged(Files(str(tmp_path / "in"), Limits(text_chars=100)), {}).poll(9)
    assert polled is not None
    arguments = buried(tmp_path, list(polled.dead[:1]), [], list(polled.dead[1:]))
    listed = invoke("deadletter", "ls", *arguments)
    assert "a.jsonl:1 long  too_large: " in listed
    assert "2 dead letters" in listed
    assert "\x1b" not in listed
    found = json.loads(invoke("deadletter", "ls", *arguments, "--json"))
    assert found == {"letters": [asdict(letter) for letter in polled.dead], "dropped": 0}
    replayed = invoke("deadletter", "replay", *arguments)
    assert "1 samples written to resubmitted-" in replayed
    assert "1 still refused, 0 submitted before" in replayed
    assert "nothing to submit again" in invoke("deadletter", "replay", *arguments)


def test_dead_letters_are_bounded_and_those_that_gave_way_are_counted(tmp_path: Path) -> None:
    letters = [DeadLetter("text: x", f"id-{i}", "s", "p", i, "y" * 2_000) for i in range(3_000)]
    arguments = buried(tmp_path, *(letters[i : i + 500] for i in range(0, 3_000, 500)))
    found = json.loads(invoke("deadletter", "ls", *arguments, "--json"))
    assert found["dropped"] > 0
    assert [one["position"] for one in found["letters"]] == list(range(found["dropped"], 3_000))
    assert 0.99 * RING_BYTES < len(to_jsonl(letters[found["dropped"] :])) <= RING_BYTES


def test_a_run_without_dead_letters_says_so(tmp_path: Path) -> None:
    arguments = buried(tmp_path)
    assert invoke("deadletter", "ls", *arguments) == "0 dead letters\n"


def test_status_says_whether_the_counters_add_up(tmp_path: Path) -> None:
    arguments = buried(tmp_path)
    log = Log(open_store(str(tmp_path / "store")))
    log.acquire("another")
    log.append("data", state={"counters": {"in": 6, "accepted": 1, "dup": 1, "late": 1, "dead": 1, "pending": 2}})
    assert json.loads(invoke("status", *arguments, "--json"))["unaccounted"] == 0
    assert "unaccounted 0" in invoke("status", *arguments)
    with pytest.raises(AssertionError, match="do not balance"):
        log.append("data", state={"counters": {"in": 7, "accepted": 1, "dup": 1, "late": 1, "dead": 1, "pending": 2}})


def test_status_is_watched_until_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "streamcl.cli", "status", *buried(tmp_path), "--watch"]
    terminal = {**os.environ, "FORCE_COLOR": "1"}
    pipe = subprocess.PIPE
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a test run in the background may ignore it
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=terminal, preexec_fn=heeded) as watching:
        assert watching.stdout is not None
        first = watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=60)
    assert f"store    {tmp_path}/store" in first
    assert (watching.returncode, said) == (0, "")


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


def test_what_an_operator_types_starts_without_the_model_libraries() -> None:
    """peft, transformers and ray take seconds to import, and none of them is needed to read a log."""
    assert loaded({"peft", "transformers", "ray"}, by="streamcl.operate, streamcl.status") == "[]"
