"""NaN never reaches a version: injected at a step, in weights, in the optimizer's state, it costs the window only.

A real worker on the small base trains a window from a real store; what it leaves there is what could be published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from streamcl import zoo
from streamcl.cluster import media
from streamcl.cluster.worker import Worker
from streamcl.errors import NotFinite
from streamcl.sections import Config, StoreConfig
from streamcl.store.memory import TaskMemory
from streamcl.strategies import KINDS
from streamcl.stream import Files
from streamcl.train.model import from_files, to_bytes
from streamcl.train.settings import LoRA, ModelConfig, TrainConfig
from streamcl.train.step import StepLog
from streamcl.types import Ref, Refs, Rows, Window

torch.set_num_threads(1)
STEPS = 6
"""Steps of the window: 24 samples, 3 epochs, 12 a step."""
MODEL = ModelConfig(zoo.resolve("zoo:small"), register="streamcl.zoo.tower", lora=LoRA(r=4, alpha=8))


class Kept:
    """Memories in a list. Mutable."""

    def __init__(self) -> None:
        self.written: list[TaskMemory] = []

    def read(self, refs: Refs | None) -> TaskMemory:
        return TaskMemory()

    def write(self, memory: TaskMemory) -> tuple[Ref, ...]:
        self.written.append(memory)
        return ({"key": "memory", "sha256": ""},)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    config = Config(
        StoreConfig(str(tmp_path_factory.mktemp("store"))), MODEL, Files("unused"),
        strategy=KINDS["dgg"](), train=TrainConfig(epochs=3, batch_size=12),
    )  # fmt: skip
    return Worker(config, Kept())


@pytest.fixture(scope="module")
def window(kept: Worker) -> Window:
    samples = zoo.load_task("animals", "train").slice(0, 24).combine_chunks().to_batches()[0]
    return stored(kept, kept.encoder.encode(samples).batch)


@pytest.fixture
def worker(kept: Worker) -> Worker:
    """The worker, as another test left it; what was published is gone."""
    for key in kept.store.list("data/adapter"):
        kept.store.delete(key)
    kept.memory.written.clear()  # type: ignore[attr-defined]
    return kept


def stored(worker: Worker, batch: pa.RecordBatch) -> Window:
    rows = (Rows(media.write(worker.store, batch), tuple(range(batch.num_rows))),)
    return Window(1, "animals", rows, (), seed=1, base=0, index=0, closes_task=True)


def poisoned(params: Any, value: float = torch.nan) -> None:
    """One number in one tensor, in the middle of the model."""
    with torch.no_grad():
        sorted(params.items())[len(params) // 2][1].view(-1)[0] = value


@contextmanager
def after_step(step: int, act: Callable[[torch.optim.Optimizer], None]) -> Iterator[list[int]]:
    """`act` on the optimizer after its step number `step`; the list holds the steps there were."""
    seen: list[int] = []

    def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.append(len(seen) + 1)
        if seen[-1] == step:
            act(optimizer)

    handle = register_optimizer_step_post_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def moment(optimizer: torch.optim.Optimizer, name: str) -> None:
    state = next(iter(optimizer.state.values()))
    state[name].view(-1)[0] = torch.nan


def check_nothing_is_left(worker: Worker) -> None:
    assert worker.store.list("data/adapter") == []
    assert worker.memory.written == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("step", [1, 3, STEPS])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_in_the_weights(worker: Worker, window: Window, step: int, value: float) -> None:
    def inject(done: int, steps: int, log: StepLog) -> None:
        assert steps == STEPS
        if done == step:
            poisoned(worker.learning.params, value)

    with pytest.raises(NotFinite):
        worker.run(window, inject)
    check_nothing_is_left(worker)


@pytest.mark.parametrize("step", [1, 3, STEPS - 1])
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_in_the_state_of_the_optimizer(worker: Worker, window: Window, step: int, name: str) -> None:
    with after_step(step, lambda optimizer: moment(optimizer, name)) as seen, pytest.raises(NotFinite):
        worker.run(window)
    assert step < len(seen) <= STEPS
    check_nothing_is_left(worker)


@pytest.mark.parametrize("step", [1, 4, STEPS])
def test_in_the_gradient_of_a_step(worker: Worker, window: Window, step: int) -> None:
    """And no parameter was changed by that step."""
    seen: list[dict[str, Tensor]] = []

    def remember(done: int, steps: int, log: StepLog) -> None:
        seen.append({name: value.detach().clone() for name, value in worker.learning.params.items()})

    calls = 0

    def hook(grad: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return grad * torch.nan if calls == step else grad

    parameter = next(iter(worker.learning.params.values()))
    handle = parameter.register_hook(hook)
    with pytest.raises(NotFinite, match="before the update"):
        worker.run(window, remember)
    handle.remove()
    assert len(seen) == step - 1
    if seen:
        assert all(torch.equal(seen[-1][name], value) for name, value in worker.learning.params.items())
    check_nothing_is_left(worker)


def test_in_the_features_of_a_sample(worker: Worker, window: Window) -> None:
    """Ingest refuses such a sample; if one were in the store all the same, its window would be abandoned."""
    samples = zoo.load_task("animals", "train").slice(0, 24).combine_chunks().to_batches()[0]
    batch = worker.encoder.encode(samples).batch
    inputs = batch["inputs"].to_pylist()
    inputs[7] = inputs[7][:-64] + b"\xff\x7f" * 32  # NaN in half precision
    place = batch.schema.get_field_index("inputs")
    with pytest.raises(NotFinite):
        worker.run(stored(worker, batch.set_column(place, batch.schema.field(place), pa.array(inputs, pa.binary()))))
    check_nothing_is_left(worker)


def test_the_next_window_is_trained_as_if_nothing_had_been(worker: Worker, window: Window) -> None:
    calm = worker.run(window)
    with pytest.raises(NotFinite):
        worker.run(window, lambda done, steps, log: poisoned(worker.learning.params))
    again = worker.run(window)
    assert calm is not None
    assert again is not None
    assert again.adapter["sha256"] == calm.adapter["sha256"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_strategy_stops_at_weights_that_became_nan_in_the_last_step(
    kind: str, worker: Worker, window: Window
) -> None:
    """Before it makes anything of them: a decomposition of NaN raises, and that would end the run."""
    strategy = KINDS[kind]()
    if strategy.adapter != "lora":
        pytest.skip("needs another form of adapter")
    learning, rows = worker.learning, media.read(worker.store, window.samples)
    learning.start(None, strategy=strategy, memory=TaskMemory(), seed=0)

    def train() -> bytes:
        trained = learning.train(
            window, rows, [], strategy=strategy, memory=TaskMemory(),
            on_step=lambda done, steps, log: poisoned(learning.params) if done == steps else None,
        )  # fmt: skip
        return to_bytes(trained.served)

    with pytest.raises(NotFinite):
        train()


def test_without_the_guard_it_would_have_been_stored(worker: Worker, window: Window) -> None:
    """The opposite: the same injection is in what training leaves, and the reader's guard refuses it once more."""
    from safetensors.torch import save

    worker.learning.start(None, strategy=worker.config.strategy, memory=TaskMemory(), seed=0)
    poisoned(worker.learning.params)
    params = {name: value.detach() for name, value in worker.learning.params.items()}
    with pytest.raises(NotFinite, match="refused"):
        to_bytes(params)
    with pytest.raises(NotFinite, match="refused"):
        from_files({"adapter_model.safetensors": save(params)})
