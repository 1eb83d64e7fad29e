"""Training a window on the shipped base model: batches, scores, ranks, adapters as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pyarrow as pa
import pytest
import torch

from streamcl import zoo
from streamcl.errors import ConfigError, NotFinite
from streamcl.store.memory import TaskMemory
from streamcl.strategies import DGG, Replay, Strategy
from streamcl.train.batch import IGNORED, Encoder, Row, answer_logits, collate, to_rows
from streamcl.train.evaluate import exact_match
from streamcl.train.feed import batches, repeated
from streamcl.train.loop import Learning, World, rate
from streamcl.train.model import Base, fresh, from_files, grow, load_base, params_of, to_bytes, to_files, write
from streamcl.train.settings import LoRA, ModelConfig, TrainConfig
from streamcl.types import Window, from_batch

torch.set_num_threads(1)
CONFIG = ModelConfig(zoo.resolve("zoo:small"), register="streamcl.zoo.tower", lora=LoRA(r=4, alpha=8))


def window(number: int = 1, *, closes_task: bool = True) -> Window:
    return Window(number, "animals", (), (), seed=number, base=0, index=0, closes_task=closes_task)


@pytest.fixture(scope="module")
def base() -> Base:
    loaded = load_base(CONFIG)
    loaded.model.double()  # so that tolerances are about the algebra
    return loaded


@pytest.fixture(scope="module")
def rows(base: Base) -> list[Row]:
    samples = pa.concat_tables([zoo.load_task(task, "train").slice(0, 24) for task in ("animals", "maps")])
    return to_rows(Encoder(base).encode(samples.combine_chunks().to_batches()[0]).batch)


@pytest.fixture(scope="module")
def model(base: Base) -> peft.PeftModel:
    return grow(base, CONFIG.lora, seed=0)


@pytest.fixture
def learning(model: peft.PeftModel, base: Base) -> Learning:
    """A fresh adapter on the shared model."""
    write(params_of(model), fresh(params_of(model), seed=0))
    return Learning(model, pad_id=base.processor.tokenizer.pad_token_id, config=TrainConfig(epochs=5, lr=5e-3))


def test_training_lowers_the_loss_and_is_the_same_every_time(learning: Learning, rows: list[Row]) -> None:
    seen, losses = [], []
    for _ in range(2):
        write(learning.params, fresh(learning.params, seed=0))
        trained = learning.train(
            window(), rows, [], strategy=Strategy(), memory=TaskMemory(),
            on_step=lambda step, steps, log: losses.append(log.loss),
        )  # fmt: skip
        seen.append(trained)
        assert trained.steps == 5 * 3
    assert losses[:15] == losses[15:]
    assert np.mean(losses[12:15]) < 0.7 * losses[0]
    assert all(torch.equal(seen[0].params[name], seen[1].params[name]) for name in seen[0].params)


def test_exact_match_is_what_greedy_decoding_says(learning: Learning, rows: list[Row], base: Base) -> None:
    """On a half-trained adapter some answers are right and some wrong: both must be told as generation tells them."""
    told = np.zeros(len(rows), np.bool_)
    for number in range(10):
        if not told.any():
            learning.train(window(number), rows, [], strategy=Strategy(), memory=TaskMemory())
            told = exact_match(learning.model, rows, pad_id=learning.pad_id)
    generated = []
    for row in rows:
        inputs = {name: value for name, value in collate([row], pad_id=0).items() if name not in ("labels",)}
        length = len(row.prompt_ids)
        inputs |= {"input_ids": inputs["input_ids"][:, :length], "attention_mask": inputs["attention_mask"][:, :length]}
        with torch.no_grad():
            out = learning.model.generate(**inputs, max_new_tokens=len(row.answer_ids), do_sample=False)
        generated.append(out[0, length:].tolist() == row.answer_ids.tolist())
    assert told.tolist() == generated
    assert 0 < told.mean() < 1


def test_padding_changes_no_answer(learning: Learning, rows: list[Row]) -> None:
    learning.train(window(), rows, [], strategy=Strategy(), memory=TaskMemory())
    with torch.no_grad():
        logits, labels = answer_logits(learning.model, collate(rows, pad_id=learning.pad_id))
        for i in (0, 30):
            alone, own = answer_logits(learning.model, collate([rows[i]], pad_id=learning.pad_id))
            assert torch.allclose(logits[i, -own.shape[1] :], alone[0], atol=1e-3)  # rotary angles are float32
            assert labels[i, -own.shape[1] :].tolist() == own[0].tolist()
            assert (labels[i, : -own.shape[1]] == IGNORED).all()


def test_cached_features_stand_in_for_pixels(base: Base, learning: Learning, rows: list[Row]) -> None:
    sample = from_batch(zoo.load_task("animals", "train").slice(0, 1))[0]
    _, inputs = Encoder(base)._inputs(sample)
    assert inputs["pixel_values"].dim() == 4
    batch = collate(rows[:1], pad_id=learning.pad_id)
    with torch.no_grad():
        cached, _ = answer_logits(learning.model, batch)
        seen, _ = answer_logits(learning.model, batch | {"pixel_values": inputs["pixel_values"]})
        other, _ = answer_logits(learning.model, batch | {"pixel_values": inputs["pixel_values"].flip(-1) * 0})
    assert torch.allclose(cached, seen, atol=2e-2)  # the cache is in half precision
    assert not torch.allclose(cached, other, atol=2e-2)  # and the image does matter


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("count", [16, 7, 2, 1])
def test_ranks_together_have_the_gradient_of_the_whole_batch(
    learning: Learning, rows: list[Row], size: int, count: int
) -> None:
    def gradient(world: World) -> list[torch.Tensor]:
        learning.world = world
        return list(torch.autograd.grad(learning.mean_loss(rows[:count]), [*learning.params.values()]))

    whole = gradient(World())
    parts = [gradient(World(rank, size)) for rank in range(size)]
    for index, value in enumerate(whole):
        averaged = sum(part[index] for part in parts) / size  # what DDP does
        assert torch.allclose(averaged, value, rtol=1e-4, atol=1e-5)  # logits are cast to float32


def test_a_window_without_samples_consolidates(learning: Learning) -> None:
    trained = learning.train(window(), [], [], strategy=DGG(), memory=TaskMemory())
    assert trained.steps == 0
    assert trained.memory.group("anchor").keys() == trained.params.keys()


def test_a_task_that_goes_on_is_not_consolidated(learning: Learning, rows: list[Row]) -> None:
    going_on = window(closes_task=False)
    trained = learning.train(going_on, rows[:16], [], strategy=DGG(), memory=TaskMemory())
    assert not trained.memory.tensors


def test_replayed_rows_are_trained_on(learning: Learning, rows: list[Row]) -> None:
    with_replay = learning.train(window(), rows[:16], rows[24:40], strategy=Replay(), memory=TaskMemory())
    assert with_replay.steps == 5 * 2


@pytest.mark.parametrize(("share", "count"), [(0.0, 3), (0.1, 3), (0.5, 8), (0.75, 24)])
def test_replay_is_repeated_until_it_has_its_share(rows: list[Row], share: float, count: int) -> None:
    found = [row.id for row in repeated(rows[:3], beside=8, share=share)]
    assert len(found) == count
    times = [found.count(row.id) for row in rows[:3]]
    assert max(times) - min(times) <= 1
    assert repeated([], beside=8, share=share) == []


def test_among_some_answers_only_these_can_be_given(learning: Learning, rows: list[Row]) -> None:
    """A model that knows nothing is right where one answer is left, and at least as often among few as among all."""
    some = rows[:12]
    alone = [exact_match(learning.model, [row], pad_id=learning.pad_id, among=[row])[0] for row in some[:4]]
    assert all(alone)
    free = exact_match(learning.model, some, pad_id=learning.pad_id)
    among = exact_match(learning.model, some, pad_id=learning.pad_id, among=rows)
    assert (among | ~free).all()
    assert free.sum() < among.sum() < len(some)


def test_a_poisoned_window_leaves_no_adapter(learning: Learning, rows: list[Row]) -> None:
    bad = Row("bad", rows[0].prompt_ids, rows[0].answer_ids, {"pixel_values": torch.full((1, 16, 320), torch.nan)})
    with pytest.raises(NotFinite):
        learning.train(window(), [*rows[:3], bad], [], strategy=Strategy(), memory=TaskMemory())
    with pytest.raises(NotFinite, match="refused"):
        to_bytes({"w": torch.tensor([1.0, torch.inf])})


def test_a_published_folder_loads_with_peft_and_gives_our_logits(
    learning: Learning, rows: list[Row], tmp_path: Path
) -> None:
    trained = learning.train(window(), rows, [], strategy=Strategy(), memory=TaskMemory())
    for name, data in to_files(CONFIG.lora, to_bytes(trained.params)).items():
        (tmp_path / name).write_bytes(data)
    batch = collate(rows[:8], pad_id=learning.pad_id)
    plain = load_base(CONFIG).model.double()
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path))
    with torch.no_grad():
        ours, _ = answer_logits(learning.model, batch)
        loaded, _ = answer_logits(theirs, batch)
        bare, _ = answer_logits(load_base(CONFIG).model.double(), batch)
    assert torch.allclose(ours, loaded, atol=1e-4)
    assert not torch.allclose(ours, bare, atol=1e-1)  # the adapter does something


def test_adapter_files_come_back_bit_for_bit(learning: Learning) -> None:
    params = {name: value.detach().clone() for name, value in learning.params.items()}
    back = from_files(to_files(CONFIG.lora, to_bytes(params)))
    assert all(torch.equal(params[name], back[name]) for name in params)


def test_an_adapter_of_another_shape_is_refused(learning: Learning) -> None:
    values = {name: value.detach() for name, value in learning.params.items()}
    name = next(iter(values))
    with pytest.raises(ConfigError, match=r"model\.lora\.r"):
        write(learning.params, values | {name: values[name][:1]})
    with pytest.raises(ConfigError, match=r"model\.lora\.targets"):
        write(learning.params, {})


def test_every_row_comes_once_an_epoch() -> None:
    rows = [Row(str(i), torch.zeros(0), torch.zeros(0), {}) for i in range(10)]
    ids = [[row.id for batch in batches(rows, 4, epochs=1, seed=s) for row in batch] for s in (0, 0, 1)]
    assert sorted(ids[0]) == sorted(str(i) for i in range(10))
    assert ids[0] == ids[1] != ids[2]


def test_the_rate_rises_then_falls_to_zero() -> None:
    rates = [rate(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.01
