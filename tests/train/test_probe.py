"""Frozen adapters in the forward pass, and gradients anywhere in parameter space, on the shipped base, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl import zoo
from streamcl.store.memory import TaskMemory
from streamcl.strategies import HiFGO, Params, Terms
from streamcl.strategies.stacked import stacked
from streamcl.train.batch import IGNORED, Encoder, Row, answer_logits, collate, to_rows
from streamcl.train.loop import Learning
from streamcl.train.model import Base, adapted, added, grow, load_base, params_of, write
from streamcl.train.probe import AnswerLoss, WindowProbe
from streamcl.train.settings import LoRA, ModelConfig, TrainConfig
from streamcl.types import Window

torch.set_num_threads(1)
RANK, SCALE = 4, 2
PLACE = ModelConfig(zoo.resolve("zoo:small"), register="streamcl.zoo.tower")


def grown(rank: int) -> tuple[Base, Any]:
    base = load_base(PLACE)
    base.model.double()  # so that tolerances are about the algebra
    return base, grow(base, LoRA(r=rank, alpha=SCALE * rank), seed=0).double()


@pytest.fixture(scope="module")
def base_and_model() -> tuple[Base, Any]:
    return grown(RANK)


@pytest.fixture(scope="module")
def rows(base_and_model: tuple[Base, Any]) -> list[Row]:
    samples = pa.concat_tables([zoo.load_task(task, "train").slice(0, 5) for task in ("animals", "maps")])
    return to_rows(Encoder(base_and_model[0]).encode(samples.combine_chunks().to_batches()[0]).batch)


@pytest.fixture
def learning(base_and_model: tuple[Base, Any]) -> Learning:
    """Some adapter, neither fresh nor zero, on the shared model."""
    base, model = base_and_model
    config = TrainConfig(epochs=1, batch_size=8)
    learning = Learning(model, pad_id=base.processor.tokenizer.pad_token_id, config=config)
    write(learning.params, some(learning.params, seed=1))
    return learning


def some(like: Params, *, seed: int, rank: int = RANK) -> Params:
    """A random adapter with an update in every layer."""
    draw, params = torch.Generator().manual_seed(seed), {}
    for name, value in like.items():
        shape = (rank, value.shape[1]) if "lora_A" in name else (value.shape[0], rank)
        params[name] = 0.5 * torch.randn(shape, generator=draw, dtype=torch.float64) / shape[1] ** 0.5
    return params


def probe_of(learning: Learning, rows: list[Row]) -> WindowProbe:
    return WindowProbe(learning.model, learning.params, rows, [], pad_id=learning.pad_id, size=4)


def state(learning: Learning) -> list[Tensor]:
    return [value.detach().clone() for value in learning.model.parameters()]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def logits(model: Any, rows: list[Row], pad_id: int) -> Tensor:
    with torch.no_grad():
        return answer_logits(model, collate(rows, pad_id=pad_id))[0]


def loss(learning: Learning, rows: list[Row]) -> float:
    """The mean loss, in float64 throughout."""
    with torch.no_grad():
        out, labels = answer_logits(learning.model, collate(rows, pad_id=learning.pad_id))
    token = F.cross_entropy(out.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return (token.sum(1) / (labels != IGNORED).sum(1)).mean().item()


def test_added_adapters_leave_the_weights_bit_for_bit_as_they_were(learning: Learning) -> None:
    before = state(learning)
    with added(learning.model, some(learning.params, seed=2, rank=7)):
        assert not same(before, state(learning))
    assert same(before, state(learning))
    with pytest.raises(KeyboardInterrupt), added(learning.model, some(learning.params, seed=2)):
        raise KeyboardInterrupt
    assert same(before, state(learning))


def test_the_merged_forward_pass_is_that_of_both_adapters_unmerged(learning: Learning, rows: list[Row]) -> None:
    live, old = dict(learning.params), some(learning.params, seed=2, rank=3)
    _, unmerged = grown(RANK + 3)
    write(params_of(unmerged), stacked([live, old]))
    with added(learning.model, old):
        merged = logits(learning.model, rows, learning.pad_id)
    assert (merged - logits(unmerged, rows, learning.pad_id)).abs().max() < 1e-10
    assert (merged - logits(learning.model, rows, learning.pad_id)).abs().max() > 1e-3  # the old one does something


@pytest.mark.parametrize("rank", [RANK, 6])
def test_serving_answers_with_what_is_published_alone_and_puts_everything_back(
    learning: Learning, rows: list[Row], rank: int
) -> None:
    published, before = some(learning.params, seed=3, rank=rank), state(learning)
    _, alone = grown(rank)
    write(params_of(alone), published)
    with learning.serving(published):
        served = logits(learning.model, rows, learning.pad_id)
    assert (served - logits(alone, rows, learning.pad_id)).abs().max() < 1e-10
    assert same(before, state(learning))


STEP = 1e-3
"""Of differences; norms and rotary angles are float32 in the model, so smaller ones drown in rounding."""


def difference(learning: Learning, rows: list[Row], places: list[tuple[Params, Params]]) -> float:
    """The loss's slope between two places 2 STEP apart, each the live parameters and an adapter to add."""
    kept, found = {name: value.detach().clone() for name, value in learning.params.items()}, []
    for live, extra in places:
        write(learning.params, live)
        with added(learning.model, extra):
            found.append(loss(learning, rows))
    write(learning.params, kept)
    return (found[0] - found[1]) / (2 * STEP)


def test_the_weight_gradient_is_the_losss_slope_at_the_old_model(learning: Learning, rows: list[Row]) -> None:
    old, before = some(learning.params, seed=2), state(learning)
    grads = probe_of(learning, rows).weight_gradient(old)
    assert same(before, state(learning))
    assert not any(weight.requires_grad for weight in adapted(learning.model).values())
    new, along = {}, 0.0
    for name, grad in grads.items():  # the new adapter is the steepest of its rank
        left, sizes, right = torch.linalg.svd(grad, full_matrices=False)
        new[name], new[name.replace("lora_A", "lora_B")] = right[:1], left[:, :1]
        along += SCALE * sizes[0].item()
    steps = [{n: v * (s if "lora_B" in n else 1) for n, v in new.items()} for s in (STEP, -STEP)]
    silent = {name: torch.zeros_like(value) for name, value in learning.params.items()}
    at_old = difference(learning, rows, [(silent, stacked([old, step])) for step in steps])
    elsewhere = difference(learning, rows, [(silent, step) for step in steps])
    assert along == pytest.approx(at_old, rel=1e-3)
    assert along != pytest.approx(elsewhere, rel=1e-2)


def test_the_gradient_is_the_losss_slope_at_any_parameters_with_old_adapters_in(
    learning: Learning, rows: list[Row]
) -> None:
    here, old, before = some(learning.params, seed=5), some(learning.params, seed=2, rank=6), state(learning)
    grads = probe_of(learning, rows).gradient(here, old)
    assert same(before, state(learning))
    length = torch.cat([grad.flatten() for grad in grads.values()]).norm().item()
    steps = [{n: v + s / length * grads[n] for n, v in here.items()} for s in (STEP, -STEP)]
    assert length == pytest.approx(difference(learning, rows, [(step, old) for step in steps]), rel=1e-3)
    assert length != pytest.approx(difference(learning, rows, [(step, {}) for step in steps]), rel=1e-2)


def test_the_squared_gradient_is_the_mean_of_each_samples_own(learning: Learning, rows: list[Row]) -> None:
    some_rows = rows[3:7]
    found = probe_of(learning, some_rows).squared_gradient(dict(learning.params))
    grads = []
    for row in some_rows:
        value = AnswerLoss(learning.model)(collate([row], pad_id=learning.pad_id), torch.ones(1, dtype=torch.float64))
        grads.append(torch.autograd.grad(value, [*learning.params.values()]))
    for index, name in enumerate(learning.params):
        own = torch.stack([grad[index] for grad in grads])
        assert torch.allclose(found[name], own.square().mean(0), rtol=1e-9, atol=1e-18)
        assert not torch.allclose(found[name], own.mean(0).square(), rtol=0.1, atol=1e-18)


def test_a_probe_without_rows_answers_with_zeros(learning: Learning) -> None:
    probe = probe_of(learning, [])
    answers = [probe.gradient(dict(learning.params)), probe.squared_gradient(dict(learning.params))]
    assert not any(value.any() for answer in answers for value in answer.values())
    assert probe.replay_gradient(dict(learning.params)) is None


class Watching(HiFGO):
    """Notes in each step whether the adapted weights are the bare base's."""

    model: ClassVar[Any]
    bare: ClassVar[list[Tensor]]
    seen: ClassVar[list[bool]]

    def penalty(self, params: Params, plan: Any) -> Terms:
        self.seen.append(same(self.bare, [*adapted(self.model).values()]))
        return super().penalty(params, plan)


def test_the_first_stage_runs_on_the_bare_base_and_the_second_with_the_old_adapters(
    learning: Learning, rows: list[Row]
) -> None:
    weights = [weight.detach().clone() for weight in adapted(learning.model).values()]
    Watching.model, Watching.bare, Watching.seen = learning.model, weights, []
    memory = TaskMemory({"adapter/0": some(learning.params, seed=2)})
    strategy = Watching(stage2=0.2)
    learning.start(None, strategy=strategy, memory=memory, seed=0)
    window = Window(2, "maps", (), (), seed=2, base=0, index=1, closes_task=True)
    trained = learning.train(window, rows, [], strategy=strategy, memory=memory)
    assert Watching.seen == [True, False]  # eight rows, then two: a step each
    assert trained.penalties.keys() == {"orth", "norm"}
    assert {len(value) for name, value in trained.served.items() if "lora_A" in name} == {2 * RANK}
    assert same(weights, [*adapted(learning.model).values()])


def test_weights_of_lower_precision_have_their_gradient_in_float32(rows: list[Row]) -> None:
    base = load_base(ModelConfig(PLACE.path, register=PLACE.register, dtype="bfloat16"))
    model = grow(base, LoRA(r=RANK, alpha=SCALE * RANK), seed=0)
    config = TrainConfig(epochs=1, batch_size=8, precision="bfloat16")
    learning = Learning(model, pad_id=base.processor.tokenizer.pad_token_id, config=config)
    memory, strategy = TaskMemory({"adapter/0": some(learning.params, seed=2)}), HiFGO(space="weights")
    learning.start(None, strategy=strategy, memory=memory, seed=0)
    rows = [replace(row, inputs={name: value.float() for name, value in row.inputs.items()}) for row in rows]
    window = Window(2, "maps", (), (), seed=2, base=0, index=1, closes_task=True)
    trained = learning.train(window, rows, [], strategy=strategy, memory=memory)
    assert trained.penalties["orth"] > 0
    probe = WindowProbe(learning.model, learning.params, rows, [], pad_id=learning.pad_id, bfloat16=True)
    assert {grad.dtype for grad in probe.weight_gradient(dict(memory.group("adapter/0"))).values()} == {torch.float32}


def test_replay_is_for_the_stage_that_has_the_old_adapters_in(learning: Learning, rows: list[Row]) -> None:
    old, new = rows[:5], rows[5:]
    words = {tuple(row.answer_ids.tolist()) for row in old}
    assert not words & {tuple(row.answer_ids.tolist()) for row in new}
    passes: list[set[tuple[int, ...]]] = []
    loss = learning.loss

    def watched(batch: dict[str, Tensor], weight_N: Tensor) -> Tensor:
        passes.append({tuple(label[label != IGNORED].tolist()) for label in batch["labels"]})
        return loss(batch, weight_N)

    learning.loss = watched
    memory = TaskMemory({"adapter/0": some(learning.params, seed=2)})
    strategy = HiFGO(replay_rows=5, replay_share=0.5)
    learning.start(None, strategy=strategy, memory=memory, seed=0)
    window = Window(2, "maps", (), (), seed=2, base=0, index=1, closes_task=True)
    learning.train(window, new, old, strategy=strategy, memory=memory)
    first, second = passes
    assert not first & words
    assert second & words
