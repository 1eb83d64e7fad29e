"""The quickstart, measured: what is learned and kept, by strategy; and that a killed run ends as a calm one.

Each run is the command that a user types, in a process of its own, over a store of its own.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from streamcl.bench.report import Claim, about, save
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.testing import kill_tree

COMMAND = "python -m streamcl.bench.quickstart"
YAML = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
RUNS = {
    "finetune": ["strategy.kind=finetune"],
    "replay": ["strategy.kind=replay", "strategy.replay_rows=240"],
    "dgg": [],
    "dgg, labels": ["detector.kind=labels"],
}
"""What is run, and what differs from the quickstart as it is."""


@contextmanager
def run(store: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """`streamcl run` over `store`; killed with all it started if it is left running."""
    command = [sys.executable, "-m", "streamcl.cli", "run", str(YAML), f"store.path={store}", *overrides, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            kill_tree(process.pid)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=1800)
    result: dict[str, Any] = json.loads(out)
    return result


def killed_in_window(number: int, store: Path, *overrides: str) -> int:
    """Starts a run and kills it two seconds into training window `number`; how many processes died."""
    with run(store, *overrides) as process:
        log = Log(open_store(str(store)))
        while True:
            head = log.head()
            if head is not None and head.kind == "window" and head.window and head.window["id"] == number:
                time.sleep(2.0)
                return kill_tree(process.pid)
            if process.poll() is not None:
                raise RuntimeError(f"the run ended before window {number} came")
            time.sleep(0.1)


def logits_gap(store: Path) -> float:
    """Largest difference between our logits and those of `PeftModel.from_pretrained` on the plain base."""
    import peft
    from transformers import AutoModelForImageTextToText

    from streamcl import config, learner
    from streamcl.registry.versions import Registry
    from streamcl.stream import Files
    from streamcl.train.batch import Encoder, answer_logits, collate, to_rows
    from streamcl.train.model import from_files, grow, load_base, params_of, write

    settings = learner.resolve(config.load(YAML, [f"store.path={store}"]))
    log = Log(open_store(str(store)))
    registry = Registry(log, settings.name)
    version = registry.versions()[-1]
    base = load_base(settings.model)
    source = Files(path=str(settings.evaluate.path))
    polled = source.open(source.partitions()[0], 0).poll(16)
    assert polled is not None
    batch = collate(to_rows(Encoder(base).encode(polled.batch).batch), pad_id=base.processor.tokenizer.pad_token_id)
    ours = grow(base, settings.model.lora, seed=0)
    write(params_of(ours), from_files(registry.read(version)))
    plain = AutoModelForImageTextToText.from_pretrained(settings.model.path, dtype=torch.float32)
    plain.model.vision_tower = base.model.model.vision_tower
    theirs = peft.PeftModel.from_pretrained(plain, log.store.path(version.path)).eval()
    with torch.no_grad():
        gap = (answer_logits(ours, batch)[0] - answer_logits(theirs, batch)[0]).abs().max()
    return float(gap)


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    console = Console(stderr=True)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="streamcl-bench-") as folder:
        root = Path(folder)
        for kind, overrides in RUNS.items():
            with console.status(f"quickstart with {kind}"), run(root / kind.replace(", ", "-"), *overrides) as process:
                results[kind] = finish(process)
            console.print(f"{kind}: Last {results[kind]['last']:.3f} in {results[kind]['seconds']['wall']:.0f} s")
        with console.status("killed in the third window"):
            died = killed_in_window(3, root / "killed")
        with console.status("the same command again"), run(root / "killed") as process:
            again = finish(process)
        gap = logits_gap(root / "dgg")
    path = save("quickstart", about(seeds=[0]), rows=_rows(results), claims=_claims(results, again, died, gap))
    console.print(f"written: {path}")


def _rows(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    names = ("last", "imd", "avg", "bwt", "forgetting", "fwt", "matrix", "zero_shot", "requests", "seconds", "counters")
    return [{"strategy": kind, **{name: result.get(name) for name in names}} for kind, result in results.items()]


def _claims(results: dict[str, dict[str, Any]], again: dict[str, Any], died: int, gap: float) -> list[Claim]:
    dgg, floor = results["dgg"], results["finetune"]
    requests, tasks = dgg["requests"], len(dgg["matrix"]["tasks"])
    best = max(("replay", "dgg"), key=lambda kind: float(results[kind]["last"]))
    labels = results["dgg, labels"]
    gap_labels = 100 * abs(labels["last"] - dgg["last"])
    gain = 100 * (results[best]["last"] - floor["last"])
    calm = tasks >= 4 and len(dgg["versions"]) >= 4 and not requests["failed"] and not requests["mismatched"]
    same = again["counters"] == dgg["counters"] and len(again["versions"]) == len(dgg["versions"])
    return [
        Claim(
            "1.1", "tasks learned, versions swapped, requests failed, answers from another version; wall time",
            ">= 4, >= 4, 0, 0; < 480 s",
            f"{tasks}, {len(dgg['versions'])}, {requests['failed']} and {requests['mismatched']} of "
            f"{requests['total']}; {dgg['seconds']['wall']:.0f} s",
            calm and dgg["seconds"]["wall"] < 480, COMMAND,
        ),
        Claim(
            "1.2", f"{best} above finetune in Last, points", ">= 15",
            f"{gain:.1f} ({100 * results[best]['last']:.1f} against {100 * floor['last']:.1f})", gain >= 15, COMMAND,
        ),
        Claim(
            "1.3", "kill -9 of the whole tree in window 3, then the same command: counts as undisturbed",
            "equal", f"{'equal' if same else 'different'}: {again['counters']}, {died} processes killed", same, COMMAND,
        ),
        Claim(
            "1.5", "largest gap between our logits and PeftModel.from_pretrained on the published folder", "<= 1e-4",
            f"{gap:.1e}", gap <= 1e-4, COMMAND,
        ),
        Claim(
            "3.6", "Last without labels (mmd) against the run with labels, same seed, points", "<= 1",
            f"{gap_labels:.1f} ({100 * dgg['last']:.1f} against {100 * labels['last']:.1f})", gap_labels <= 1,
            "streamcl run examples/quickstart.yaml detector.kind=labels",
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
