"""Adapters: any plain LoRA becomes what PEFT makes of it, and a bad one changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from tiny_llava import LORA, QUESTION, Files, digest, files_of

from streamcl.errors import ConfigError, Corrupt, NotFinite
from streamcl.serve.engine import Engine
from streamcl.serve.generate import encode
from streamcl.serve.slots import Slots, read_adapter
from streamcl.train.model import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Base, peft_config, to_bytes, to_files


def with_tensors(files: Files, change: Callable[[dict[str, torch.Tensor]], object]) -> Files:
    tensors = load_safetensors(files[ADAPTER_WEIGHTS])
    change(tensors)
    return {**files, ADAPTER_WEIGHTS: save_safetensors(tensors)}


def with_config(files: Files, old: bytes, new: bytes) -> Files:
    assert old in files[ADAPTER_CONFIG]
    return {**files, ADAPTER_CONFIG: files[ADAPTER_CONFIG].replace(old, new)}


def first(tensors: dict[str, torch.Tensor]) -> str:
    return min(tensors)


BAD = {
    "nan": (NotFinite, lambda f: with_tensors(f, lambda t: t[first(t)].fill_(float("nan")))),
    "infinity": (NotFinite, lambda f: with_tensors(f, lambda t: t[first(t)].view(-1)[-1:].fill_(float("inf")))),
    "a tensor is missing": (ConfigError, lambda f: with_tensors(f, lambda t: t.pop(first(t)))),
    "a base weight": (
        ConfigError,
        lambda f: with_tensors(f, lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(99, 32)})),
    ),
    "rank differs from the tensors": (ConfigError, lambda f: with_config(f, b'"r": 4', b'"r": 5')),
    "rank zero": (ConfigError, lambda f: with_config(f, b'"r": 4', b'"r": 0')),
    "no such layers": (ConfigError, lambda f: with_config(f, b"language_model", b"audio_model")),
    "dora": (ConfigError, lambda f: with_config(f, b'"use_dora": false', b'"use_dora": true')),
    "another method": (ConfigError, lambda f: with_config(f, b'"LORA"', b'"IA3"')),
    "not json": (Corrupt, lambda f: {**f, ADAPTER_CONFIG: b"{"}),
    "not safetensors": (Corrupt, lambda f: {**f, ADAPTER_WEIGHTS: f[ADAPTER_WEIGHTS][:50]}),
    "no weights": (Corrupt, lambda f: {ADAPTER_CONFIG: f[ADAPTER_CONFIG]}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_version_is_refused_and_the_old_one_answers(
    name: str, engine: Engine, versions: Mapping[int, Files]
) -> None:
    error, spoil = BAD[name]
    engine.load(1, digest(1), versions[1])
    before = engine.answer([QUESTION])
    with pytest.raises(error):
        engine.load(2, digest(2), spoil(versions[2]))
    assert engine.version == (1, digest(1))
    assert engine.answer([QUESTION]) == before
    engine.load(3, digest(3), versions[3])
    assert engine.answer([QUESTION]) != before


FORMS = {
    "same": LORA,
    "higher rank": replace(LORA, r=8),
    "lower rank": replace(LORA, r=2),
    "other scale": replace(LORA, alpha=3),
    "other layers": replace(LORA, targets=r".*language_model.*\.(k_proj|up_proj)"),
}


def test_logits_are_those_of_peft_whatever_form_follows_which(
    fresh_base: Callable[[], Base], version_folder: Callable[..., Path]
) -> None:
    base, slots_base = fresh_base(), fresh_base()
    inputs = encode(base.processor, QUESTION, context=256).inputs
    bare = base.model(**inputs).logits
    slots = Slots(slots_base.model, peft_config(LORA), count=3)
    torch.testing.assert_close(slots.model(**inputs).logits, bare)
    expected = {}
    order = ["other scale", "same", "higher rank", "same", "other layers", "lower rank", "same"]
    for seed, name in enumerate(order):
        folder, slot = version_folder(seed, FORMS[name]), slots.names[seed % 3]
        adapter = read_adapter(files_of(folder))
        if not slots.fits(slot, adapter):
            slots.rebuild(slot, adapter)
        slots.write(slot, adapter)
        expected[slot] = PeftModel.from_pretrained(fresh_base().model, folder).eval()(**inputs).logits
        for known, logits in expected.items():
            slots.use(known)
            torch.testing.assert_close(slots.model(**inputs).logits, logits, atol=1e-5, rtol=0)
        assert (expected[slot] - bare).abs().max() > 0.01
    slots.use(None)
    torch.testing.assert_close(slots.model(**inputs).logits, bare)


def test_what_training_and_peft_write_fits_a_slot_as_it_is(
    fresh_base: Callable[[], Base], versions: Mapping[int, Files]
) -> None:
    slots = Slots(fresh_base().model, peft_config(LORA), count=2)
    by_peft = read_adapter(versions[1])
    by_training = read_adapter(to_files(LORA, to_bytes(by_peft.params)))
    assert slots.fits(slots.names[0], by_peft)
    assert slots.fits(slots.names[0], by_training)
    assert not slots.fits(slots.names[0], read_adapter(to_files(replace(LORA, r=8), to_bytes(by_peft.params))))
