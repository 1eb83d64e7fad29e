"""A pool of prompts on the shipped base model: what is chosen, where it stands, what is trained, and as files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from streamcl import zoo
from streamcl.errors import ConfigError, NotFinite
from streamcl.store.memory import TaskMemory
from streamcl.strategies import FwdPrompt, Params
from streamcl.strategies.fwd_prompt import OLD
from streamcl.train.batch import IGNORED, Encoder, Row, answer_logits, collate, to_rows
from streamcl.train.evaluate import exact_match
from streamcl.train.loop import Learning, World
from streamcl.train.model import Base, fresh, from_files, grow, load_base, to_bytes, to_files, write
from streamcl.train.probe import AnswerLoss, WindowProbe
from streamcl.train.prompts import Pool, attach, detach, key_loss, pool_of, prefixed
from streamcl.train.settings import PROMPTS_CONFIG, ModelConfig, Prompts, TrainConfig
from streamcl.types import SAMPLE_SCHEMA, Window

torch.set_num_threads(1)
FORM = Prompts(pool=6, length=3, top=2)
CONFIG = ModelConfig(zoo.resolve("zoo:small"), register="streamcl.zoo.tower", prompts=FORM)


def window(number: int = 1) -> Window:
    return Window(number, "animals", (), (), seed=number, base=0, index=0, closes_task=True)


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(CONFIG)


@pytest.fixture(scope="module")
def rows(base: Base) -> list[Row]:
    """Rows of two tasks, and one without an image."""
    samples = pa.concat_tables([zoo.load_task(task, "train").slice(0, 8) for task in ("animals", "maps")])
    said = [{"role": role, "content": [{"type": "text", "text": "Say yes."}]} for role in ("user", "assistant")]
    text = {**samples.slice(0, 1).to_pylist()[0], "id": "text", "images": [], "messages": said}
    samples = pa.concat_tables([samples, pa.Table.from_pylist([text], schema=SAMPLE_SCHEMA)])
    return to_rows(Encoder(base).encode(samples.combine_chunks().to_batches()[0]).batch)


@pytest.fixture
def learning(base: Base) -> Learning:
    """A fresh pool on the shared model."""
    detach(base.model)
    return Learning(
        grow(base, FORM, seed=0),
        pad_id=base.processor.tokenizer.pad_token_id,
        config=TrainConfig(epochs=8, batch_size=8, lr=0.05),
    )


def pool(learning: Learning) -> Pool:
    found = pool_of(learning.model)
    assert found is not None
    return found


def batch_of(rows: list[Row]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs, and which of their last tokens are answers."""
    batch = collate(rows, pad_id=0)
    return batch, batch.pop("labels") != IGNORED


def test_only_the_pool_is_trained_and_training_lowers_the_loss(learning: Learning, rows: list[Row]) -> None:
    assert set(learning.params) == {"prompts.values", "prompts.keys_image", "prompts.keys_text"}
    assert {p for p in learning.loss.parameters() if p.requires_grad} == set(learning.params.values())
    weights = {name: value.clone() for name, value in learning.model.state_dict().items() if "pool" not in name}
    losses: list[float] = []
    trained = learning.train(
        window(), rows[:16], [], strategy=FwdPrompt(), memory=TaskMemory(),
        on_step=lambda step, steps, log: losses.append(log.loss),
    )  # fmt: skip
    assert np.mean(losses[-2:]) < 0.8 * losses[0]
    started = fresh(learning.params, seed=0)
    assert all((trained.params[name] - value).abs().max() > 1e-3 for name, value in started.items())
    after = learning.model.state_dict()
    assert all(torch.equal(weights[n], after[n]) for n in weights if not n.startswith("prompts."))


def test_exact_match_is_what_greedy_decoding_says(learning: Learning, rows: list[Row]) -> None:
    """The prompts that teacher forcing chooses, with the answer in sight, are those that generation chooses without."""
    told = np.zeros(len(rows), np.bool_)
    for number in range(6):
        if told.mean() < 0.1:
            learning.train(window(number), rows, [], strategy=FwdPrompt(), memory=TaskMemory())
            told = exact_match(learning.model, rows, pad_id=learning.pad_id)
    generated = []
    for row in rows:
        inputs, _ = batch_of([replace(row, answer_ids=row.answer_ids[:0])])
        inputs = prefixed(learning.model, inputs)
        with torch.no_grad():
            out = learning.model.generate(**inputs, max_new_tokens=len(row.answer_ids), do_sample=False)
        generated.append(out[0, inputs["input_ids"].shape[1] :].tolist() == row.answer_ids.tolist())
    assert told.tolist() == generated
    assert 0 < told.mean() < 1


def test_answers_choose_nothing(learning: Learning, rows: list[Row]) -> None:
    inputs, answers = batch_of(rows)
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][:, -answers.shape[1] :] = torch.where(answers, 77, inputs["input_ids"][:, -answers.shape[1] :])
    assert torch.equal(pool(learning).scores(inputs, answers), pool(learning).scores(other, answers))
    assert not torch.equal(pool(learning).scores(inputs), pool(learning).scores(other))  # if they took part, they would


def test_padding_changes_nothing(learning: Learning, rows: list[Row]) -> None:
    learning.train(window(), rows, [], strategy=FwdPrompt(), memory=TaskMemory())
    lengths = {len(row.prompt_ids) + len(row.answer_ids) for row in rows}
    assert len(lengths) > 2  # there is padding
    with torch.no_grad():
        logits, _ = answer_logits(learning.model, collate(rows, pad_id=learning.pad_id))
        for i in (0, 10, len(rows) - 1):
            batch = collate([rows[i]], pad_id=learning.pad_id)
            alone, own = answer_logits(learning.model, batch)
            assert torch.allclose(logits[i, -own.shape[1] :], alone[0], atol=1e-3)


def test_prompts_stand_right_before_the_first_token(learning: Learning, rows: list[Row]) -> None:
    inputs, answers = batch_of(rows)
    longer = prefixed(learning.model, inputs, answers)
    tokens, words = pool(learning).tokens, pool(learning).words
    for i in range(len(rows)):
        pads = int((1 - inputs["attention_mask"][i]).sum())
        ids = longer["input_ids"][i].tolist()
        assert ids[:pads] + ids[pads + tokens :] == inputs["input_ids"][i].tolist()
        assert all(words <= token < words + FORM.pool * FORM.length for token in ids[pads : pads + tokens])
        assert longer["attention_mask"][i].tolist() == [0] * pads + [1] * (len(ids) - pads)
    assert longer["pixel_values"] is inputs["pixel_values"]


def test_an_id_beyond_the_vocabulary_is_a_value_in_units_of_the_embeddings(learning: Learning) -> None:
    table, own = learning.model.get_input_embeddings(), pool(learning)
    with torch.no_grad():
        rows = table(torch.tensor([5, own.words, own.words + FORM.length * 2 + 1]))
        assert torch.equal(rows[0], table.weight[5])
        assert torch.allclose(rows[1].float(), own.values[0, 0] * own.unit)
        assert torch.allclose(rows[2].float(), own.values[2, 1] * own.unit)
    assert own.unit == pytest.approx(float(table.weight.std()), rel=1e-5)


def test_the_chosen_prompts_are_those_of_the_highest_cosines(learning: Learning, rows: list[Row]) -> None:
    """Against the formula, one row at a time; the row without an image is chosen for by its text alone."""
    table = learning.model.get_input_embeddings().weight
    inputs, answers = batch_of(rows)
    scores, own = pool(learning).scores(inputs, answers), pool(learning)
    for i in (0, 10, len(rows) - 1):
        asked = rows[i].prompt_ids[rows[i].prompt_ids != own.image_id].long()
        image = rows[i].inputs["pixel_values"][0].float().mean(0) if rows[i].inputs else torch.zeros(320)
        text = table[asked].float().mean(0)
        for j in range(FORM.pool):
            expected = torch.cosine_similarity(image, own.keys_image[j], dim=0)
            expected = expected + torch.cosine_similarity(text, own.keys_text[j], dim=0)
            assert torch.allclose(scores[i, j], expected, atol=1e-5)
    first = prefixed(learning.model, inputs, answers)["input_ids"] - own.words
    found = [sorted({int(t) // FORM.length for t in row if t >= 0}) for row in first]
    assert found == [sorted(row.topk(FORM.top).indices.tolist()) for row in scores]
    assert len({tuple(some) for some in found}) > 1


def test_rows_of_several_images_are_told_apart(learning: Learning, rows: list[Row]) -> None:
    """A row with two images: its query is the mean of both, and its neighbours keep their own."""
    image = int(pool(learning).image_id)
    one, two, text = rows[0], rows[10], rows[-1]
    places = two.prompt_ids.tolist().index(image)
    both = replace(
        two,
        prompt_ids=torch.cat([two.prompt_ids[:places], torch.full((16,), image), two.prompt_ids[places:]]),
        inputs={"pixel_values": torch.cat([two.inputs["pixel_values"], one.inputs["pixel_values"]])},
    )
    image_NC, _ = pool(learning).queries(*batch_of([text, both, one]))
    assert torch.equal(image_NC[0], torch.zeros(320))
    mean = both.inputs["pixel_values"].float().mean((0, 1))
    assert torch.allclose(image_NC[1], mean, atol=1e-5)
    assert torch.allclose(image_NC[2], one.inputs["pixel_values"].float().mean((0, 1)), atol=1e-5)


def test_the_key_loss_pulls_chosen_keys_and_no_others(learning: Learning, rows: list[Row]) -> None:
    """The loss is cross-entropy plus μ Σ (2 − score) of the chosen; keys get their gradient from it alone."""
    inputs, answers = batch_of(rows[:1])
    own = pool(learning)
    chosen = own.scores(inputs, answers)[0].topk(FORM.top)
    loss = key_loss(learning.model, inputs, answers)
    assert isinstance(loss, torch.Tensor)
    assert loss.item() == pytest.approx(FORM.key_loss * (2 * FORM.top - float(chosen.values.detach().sum())), rel=1e-5)
    batch, weight = collate(rows[:1], pad_id=learning.pad_id), torch.ones(1)
    grads = torch.autograd.grad(AnswerLoss(learning.model)(batch, weight), [own.keys_image, own.keys_text, own.values])
    theirs = torch.autograd.grad(loss.sum(), [own.keys_image, own.keys_text])
    assert all(torch.allclose(a, b) for a, b in zip(grads, theirs, strict=False))
    for grad in grads:
        assert set(grad.flatten(1).norm(dim=1).nonzero().flatten().tolist()) == set(chosen.indices.tolist())


def test_ranks_together_have_the_gradient_of_the_whole_batch(learning: Learning, rows: list[Row]) -> None:
    def gradient(world: World) -> list[torch.Tensor]:
        learning.world = world
        return list(torch.autograd.grad(learning.mean_loss(rows[:7]), [*learning.params.values()]))

    whole, parts = gradient(World()), [gradient(World(rank, 2)) for rank in range(2)]
    for index, value in enumerate(whole):
        assert torch.allclose((parts[0][index] + parts[1][index]) / 2, value, rtol=1e-4, atol=1e-5)


def test_the_probe_sees_what_enters_the_language_model(learning: Learning, rows: list[Row]) -> None:
    """Of one row: the embeddings of its text, the projected features in the images' places, and no padding."""
    row, table = rows[0], learning.model.get_input_embeddings().weight.detach()
    ids = torch.cat([row.prompt_ids, row.answer_ids]).long()
    entering = table[ids].clone()
    with torch.no_grad():
        entering[ids == pool(learning).image_id] = learning.model.model.multi_modal_projector(
            row.inputs["pixel_values"].float()
        )[0]
    probe = WindowProbe(learning.model, learning.params, [row], [], pad_id=learning.pad_id)
    moment = probe.moments()
    torch.testing.assert_close(moment["prompts.values"], entering.double().T @ entering.double())
    assert {name: len(value) for name, value in moment.items()} == {
        name: value.shape[-1] for name, value in learning.params.items()
    }
    several = WindowProbe(learning.model, learning.params, rows[:6], [], pad_id=learning.pad_id, size=4).moments()
    alone = [WindowProbe(learning.model, learning.params, [r], [], pad_id=learning.pad_id).moments() for r in rows[:6]]
    for name, value in several.items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in alone]).sum(0), rtol=1e-4, atol=1e-4)
    expected = (table.float().T @ table.float()).double()
    torch.testing.assert_close(probe.prior(), {"prompts.values": expected})


class OnTheGradient(FwdPrompt):
    """The broken twin: projects before AdamW."""

    projects = False

    def guide(self, grads: Params, params: Params, plan: object, draw: torch.Generator) -> Params:
        return {**grads, **FwdPrompt.project(self, grads, plan)}  # type: ignore[arg-type]


def test_a_second_task_leaves_the_old_space_alone_and_a_projected_gradient_does_not(
    learning: Learning, rows: list[Row]
) -> None:
    leaks = {}
    for strategy in (FwdPrompt(), OnTheGradient()):
        learning.start(None, strategy=strategy, memory=TaskMemory(), seed=0)
        memory = learning.train(window(), rows[:8], [], strategy=strategy, memory=TaskMemory()).memory
        assert memory.group(OLD).keys() == learning.params.keys()
        leaks[type(strategy)] = learning.train(window(2), rows[8:], [], strategy=strategy, memory=memory).leak
    assert leaks[FwdPrompt] < 1e-5
    assert leaks[OnTheGradient] > 1e-2


def test_a_pool_comes_back_from_its_files_bit_for_bit(learning: Learning) -> None:
    params = {name: value.detach().clone() for name, value in learning.params.items()}
    files = to_files(FORM, to_bytes(params))
    assert Prompts.read(json.loads(files[PROMPTS_CONFIG])) == FORM
    back = from_files(files)
    assert all(torch.equal(params[name], back[name]) for name in params)
    with pytest.raises(NotFinite, match="refused"):
        to_files(FORM, to_bytes({**params, "prompts.values": params["prompts.values"] * torch.nan}))
    with pytest.raises(ConfigError, match="does not fit"):
        write(learning.params, {"prompts.values": params["prompts.values"]})


def test_without_its_pool_the_model_is_as_it_was(base: Base, rows: list[Row]) -> None:
    detach(base.model)
    batch = collate(rows[:4], pad_id=0)
    with torch.no_grad():
        bare, _ = answer_logits(base.model, batch)
        grown = grow(base, FORM, seed=0)
        with_pool, _ = answer_logits(grown, batch)
        attach(grown, pool_of(grown))  # type: ignore[arg-type]  # again: the table is still the model's own
        again, _ = answer_logits(grown, batch)
        detach(base.model)
        after, _ = answer_logits(base.model, batch)
    assert torch.equal(bare, after)
    assert torch.equal(with_pool, again)
    assert not torch.allclose(bare, with_pool, atol=1e-2)


@pytest.mark.parametrize("wrong", [{"pool": 0}, {"length": 0}, {"top": 11}, {"top": 0}, {"key_loss": -0.1}])
def test_impossible_pools_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="top from 1 to pool"):
        Prompts(**wrong)
