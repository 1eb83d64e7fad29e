"""The recipe of the whole base: the LoRA that is trained merged is a LoRA, and its delta makes the same model again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlavaForConditionalGeneration

from streamcl.bench.continual_cell import FORMAT, TRAIN, Cell, strategy_of
from streamcl.train.model import base_digest
from streamcl.zoo.recipe import drawn, smol
from streamcl.zoo.recipe.batches import Row, answer_logits, loss
from streamcl.zoo.recipe.mix import Example
from streamcl.zoo.recipe.model import joined
from streamcl.zoo.tower import EfficientNetLite0Config, EfficientNetLite0Model

IMAGE = (3,) * 16
ROWS = [Row((1, *IMAGE, 7, 8, 9, 2), 2, 0), Row((1, *IMAGE, 7, 4, 5, 6, 2), 4, 1), Row((1, *IMAGE, 9, 9, 2), 1, 2)]


@pytest.fixture
def base() -> LlavaForConditionalGeneration:
    text = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    tower = EfficientNetLite0Model(EfficientNetLite0Config()).state_dict()
    return joined(text, {name: value for name, value in tower.items() if name not in ("mean", "std")}, seed=0)


@pytest.fixture
def examples() -> smol.Examples:
    return smol.Examples.of(ROWS, torch.randn(3, 16, 320, generator=torch.Generator().manual_seed(0)).half())


def shaken(adapters: smol.Adapters) -> None:
    """Gives every adapter a B that is not zero."""
    draw = torch.Generator().manual_seed(1)
    for adapter in adapters.values():
        adapter.b_JOR.data.normal_(0, 0.05, generator=draw)
        adapter.merge()


def with_lora_on(model: LlavaForConditionalGeneration, adapters: smol.Adapters) -> None:
    """The same update as two products beside each frozen layer, as a LoRA is defined."""
    for adapter in adapters.values():
        for layer, linear in enumerate(adapter.linears):
            linear.weight = nn.Parameter(adapter.frozen_JOI[layer])

            def beside(_: nn.Module, x: tuple[torch.Tensor], y: torch.Tensor, a=adapter, j=layer) -> torch.Tensor:  # type: ignore[no-untyped-def]
                return y + (x[0] @ a.a_JRI[j].T) @ a.b_JOR[j].T

            linear.register_forward_hook(beside)


def test_a_batch_of_tensors_costs_what_a_batch_of_rows_costs(
    base: LlavaForConditionalGeneration, examples: smol.Examples
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        rows = loss(base, ROWS, examples.features_NLC.float())
    assert examples.loss(base, torch.arange(3), torch.zeros(())).item() == pytest.approx(rows.item(), abs=0.02)


def test_the_gradients_are_those_of_a_lora(base: LlavaForConditionalGeneration, examples: smol.Examples) -> None:
    adapters = smol.attach(base, seed=0, dtype=torch.float32)
    shaken(adapters)
    seen = examples.features_NLC.float()
    torch.autograd.backward(loss(base, ROWS, seen))
    for adapter in adapters.values():
        adapter.take_gradient()
    factors = [factor for adapter in adapters.values() for factor in (adapter.a_JRI, adapter.b_JOR)]
    found = [factor.grad for factor in factors]
    with_lora_on(base, adapters)
    for own, reference in zip(found, torch.autograd.grad(loss(base, ROWS, seen), factors), strict=True):
        torch.testing.assert_close(own, reference, rtol=1e-3, atol=1e-6)


def test_what_the_delta_makes_of_the_base_answers_as_the_base_with_its_lora_on(
    base: LlavaForConditionalGeneration, examples: smol.Examples, tmp_path: Path
) -> None:
    adapters = smol.attach(base, seed=0, dtype=torch.float32)
    shaken(adapters)
    tower = base.model.vision_tower
    tower.mean += 0.5
    smol.save_delta(base, adapters, tmp_path)
    with_lora_on(base, adapters)
    seen = examples.features_NLC.float()
    trained = answer_logits(base, ROWS, seen)[0]
    with torch.no_grad():
        for adapter in adapters.values():
            for layer in adapter.linears:
                layer._forward_hooks.clear()
    base.model.multi_modal_projector.linear_1.weight.data.zero_()
    plain = answer_logits(base, ROWS, seen)[0]
    tower.mean.zero_()
    smol.add_delta(base, tmp_path)
    assert (plain - trained).abs().max() > 0.01
    torch.testing.assert_close(answer_logits(base, ROWS, seen)[0], trained, rtol=0, atol=1e-3)
    assert tower.mean.eq(0.5).all()


def test_training_lowers_the_loss_and_changes_only_adapters_and_projector(
    base: LlavaForConditionalGeneration, examples: smol.Examples
) -> None:
    adapters = smol.attach(base, seed=0)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    losses = [*smol.train(base, adapters, examples, rates=[3e-3] * 12, seed=0)]
    assert losses[-1] < losses[0] - 0.1
    changed = {name for name, value in base.state_dict().items() if not value.equal(before[name])}
    assert all("projector" in name or "_proj" in name for name in changed)
    assert any("projector" in name for name in changed)
    assert len([name for name in changed if "layers" in name]) == 14


def test_every_example_comes_once_before_any_comes_again() -> None:
    rows_SB = smol.order(smol.BATCH * 3, 6, torch.Generator().manual_seed(0))
    for part in rows_SB.split(3):
        assert sorted(part.flatten().tolist()) == [*range(smol.BATCH * 3)]


def test_the_mix_comes_back_from_its_file(tmp_path: Path) -> None:
    mix = [Example(b"\x89PNG\x00", "What is it?", "a cat"), Example(b"", "Where?", "côte d'ivoire")]
    drawn.write(tmp_path / "mix.parquet", mix)
    assert drawn.read(tmp_path / "mix.parquet") == mix


def test_a_cell_on_the_cpu_has_the_identity_that_it_had_before_cells_had_a_device() -> None:
    cell = Cell("hifgo")
    own = {name: value for name, value in asdict(cell).items() if name != "device"}
    known = [FORMAT, own, asdict(strategy_of(cell)), TRAIN, base_digest(cell.path)]
    assert cell.digest == hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    assert Cell("hifgo", device="cuda").digest != cell.digest


def test_the_shipped_delta_has_what_the_recipe_trains() -> None:
    state = load_file(smol.SHIPPED / smol.DELTA)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    adapters = {f"{kind}.lora_{x}" for kind in smol.LINEAR for x in "AB"}
    assert adapters < shapes.keys()
    assert {name.split(".")[0] for name in shapes.keys() - adapters} == {"projector", "tower"}
    assert shapes["mlp.up_proj.lora_A"] == (30, smol.RANK, 576)
    assert shapes["mlp.up_proj.lora_B"] == (30, 1536, smol.RANK)
    assert all(torch.isfinite(value).all() and value.any() for value in state.values())
