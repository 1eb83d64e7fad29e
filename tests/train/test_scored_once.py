"""A held-out row that the version before was scored on is not asked again, unless that version is another one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from streamcl import zoo
from streamcl.bench.scale_turns import Kept
from streamcl.cluster import media, worker
from streamcl.cluster.worker import Worker
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.sections import Config, EvaluateConfig, StoreConfig
from streamcl.strategies import KINDS
from streamcl.stream import Files
from streamcl.train.batch import Row
from streamcl.train.gate import Evidence
from streamcl.train.model import to_files
from streamcl.train.settings import LoRA, ModelConfig, TrainConfig
from streamcl.types import Rows, Window

torch.set_num_threads(1)
MODEL = ModelConfig(zoo.resolve("zoo:small"), register="streamcl.zoo.tower", lora=LoRA(r=4, alpha=8))


class Scene:
    """A worker, windows of digits with held-out rows, and how many rows it has scored. Mutable."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = Config(
            StoreConfig(str(folder)), MODEL, Files("unused"), strategy=KINDS["finetune"](), evaluate=EvaluateConfig(),
            train=TrainConfig(epochs=1, batch_size=8, lr=5e-3),
        )  # fmt: skip
        self.worker, self.scored = Worker(config, Kept(Log(open_store(str(folder))))), 0
        self.worker.log.acquire("test")
        real = worker.marks

        def counting(model: Any, sets: Mapping[str, Sequence[Row]], **settings: Any) -> Any:
            self.scored += sum(map(len, sets.values()))
            return real(model, sets, **settings)

        monkeypatch.setattr(worker, "marks", counting)
        samples = zoo.load_task("digits", "train").slice(0, 64).combine_chunks().to_batches()[0]
        self.key = media.write(self.worker.store, self.worker.encoder.encode(samples).batch)

    def window(self, number: int, *, base: int, heldout: int) -> Window:
        """16 rows to train on, and the first `heldout` of 32 to be scored on."""
        rows = (Rows(self.key, tuple(range(16 * number, 16 * number + 16))),)
        held = {"digits": (Rows(self.key, tuple(range(32, 32 + heldout))),)}
        return Window(number, "digits", rows, (), seed=1, base=base, index=0, closes_task=False, heldout=held)

    def trained(self, window: Window) -> tuple[int, Evidence, int]:
        """Trains and publishes; the version's number, the gate's evidence, and how many rows were scored."""
        self.scored = 0
        result = self.worker.run(window)
        assert result is not None
        files = to_files(MODEL.lora, self.worker.log.get_object(result.adapter))
        version = self.worker.registry.publish(
            files, window=window.id, task="digits", base_digest=self.worker.base_digest, scores={}
        )
        return version.number, result.evidence, self.scored

    def rows_of(self, evidence: Evidence) -> dict[str, list[bool]]:
        assert evidence.rows is not None
        told: dict[str, list[bool]] = json.loads(self.worker.log.get_object(evidence.rows))["digits"]
        return told


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def test_rows_that_the_base_version_was_scored_on_are_not_asked_again(scene: Scene) -> None:
    first, _, asked = scene.trained(scene.window(0, base=0, heldout=24))
    assert asked == 2 * 24  # before and after
    second = scene.window(1, base=first, heldout=32)
    _, evidence, asked = scene.trained(second)
    assert asked == 8 + 32  # the new ones before, all after
    scene.worker.latest = {}, {}  # as a worker that has just started
    _, again, asked = scene.trained(second)
    assert asked == 2 * 32
    assert scene.rows_of(evidence) == scene.rows_of(again)
    assert any(scene.rows_of(evidence)["before"])
    assert not all(scene.rows_of(evidence)["before"])


def test_of_another_version_than_the_one_trained_last_all_are_asked(scene: Scene) -> None:
    first, _, _ = scene.trained(scene.window(0, base=0, heldout=24))
    scene.trained(scene.window(1, base=first, heldout=24))
    _, evidence, asked = scene.trained(scene.window(2, base=first, heldout=24))  # the second was held back
    assert asked == 2 * 24
    scene.worker.latest = {}, {}
    _, again, _ = scene.trained(scene.window(2, base=first, heldout=24))
    assert scene.rows_of(evidence) == scene.rows_of(again)
