"""Pools of prompts as versions: they answer as in training, LoRA may follow or precede, and a bad one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from tiny_llava import LORA, QUESTION, Files, ask, digest, png

from streamcl.errors import BadSample, ConfigError, Corrupt, NotFinite
from streamcl.serve.engine import Engine, Request
from streamcl.serve.generate import encode
from streamcl.train.batch import Row, answer_logits, collate
from streamcl.train.model import Base, fresh, grow, params_of, to_bytes, to_files, write
from streamcl.train.prompts import pool_of
from streamcl.train.settings import PROMPTS_CONFIG, PROMPTS_WEIGHTS, Prompts

FORM = Prompts(pool=6, length=3, top=2)


@pytest.fixture(scope="session")
def pool(checkpoint: object) -> Callable[..., dict[str, bytes]]:
    """Writes a random pool as training would."""

    def save(seed: int, form: Prompts = FORM) -> dict[str, bytes]:
        shapes = {
            "prompts.values": torch.zeros(form.pool, form.length, 32),
            "prompts.keys_image": torch.zeros(form.pool, 32),
            "prompts.keys_text": torch.zeros(form.pool, 32),
        }
        return to_files(form, to_bytes(fresh(shapes, seed=seed)))

    return save


@pytest.fixture
def engine(fresh_base: Callable[[], Base]) -> Iterator[Engine]:
    engine = Engine(fresh_base(), LORA)
    yield engine
    engine.close()


REQUESTS = [
    ask("What is this?", images=(png(200),), max_tokens=8),
    ask("And these two?", images=(png(90), png(10)), max_tokens=8),
    ask("Say something without a picture, please.", max_tokens=8),
    ask("?", images=(png(90),), max_tokens=8),
]


def follows_teacher_forcing(base: Base, files: Files, request: Request, ids: list[int]) -> bool:
    """Whether each of `ids` is the arg max of training's logits, with `ids` fed in as the answer."""
    write(params_of(base.model), load_safetensors(files[PROMPTS_WEIGHTS]))
    inputs = encode(base.processor, request, context=256).inputs
    rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    row = Row("", inputs["input_ids"][0], torch.tensor(ids), rest)
    with torch.no_grad():
        logits, labels = answer_logits(base.model, collate([row], pad_id=0))
    return bool((logits.argmax(-1) == labels).all())


def test_a_pool_answers_as_teacher_forcing_says_alone_and_in_a_batch(
    engine: Engine, fresh_base: Callable[[], Base], pool: Callable[..., Files]
) -> None:
    base = fresh_base()
    grow(base, FORM, seed=0)
    chosen = set()
    for seed in (1, 2):
        files = pool(seed)
        engine.load(seed, digest(seed), files)
        together = engine.answer(REQUESTS)
        assert together == [engine.answer([request])[0] for request in REQUESTS]
        for request, response in zip(REQUESTS, together, strict=True):
            ids = base.processor.tokenizer(response.text, add_special_tokens=False)["input_ids"]
            if response.finish_reason == "stop":
                ids.append(base.processor.tokenizer.eos_token_id)
            assert len(ids) == response.completion_tokens
            assert follows_teacher_forcing(base, files, request, ids)
            found = pool_of(base.model)
            assert found is not None
            chosen.add(
                tuple(found.scores(encode(base.processor, request, context=256).inputs)[0].topk(2).indices.tolist())
            )
        other = REQUESTS[0], base.processor.tokenizer(together[0].text, add_special_tokens=False)["input_ids"]
        assert not follows_teacher_forcing(base, pool(seed + 10), *other)  # another pool answers otherwise
    assert len(chosen) > 2


def test_pools_and_lora_follow_each_other(
    engine: Engine, pool: Callable[..., Files], versions: Mapping[int, Files]
) -> None:
    bare = engine.answer([QUESTION])[0]
    larger = Prompts(pool=4, length=5, top=3)
    order = {1: versions[1], 12: pool(2), 13: pool(3, larger), 2: versions[2], 14: pool(4), 3: versions[3]}
    first = {}
    for number, files in order.items():
        engine.load(number, digest(number), files)
        engine.check()
        first[number] = engine.answer([QUESTION])[0]
        assert (first[number].version, first[number].digest) == (number, digest(number))
    assert len({response.text for response in first.values()} | {bare.text}) == len(order) + 1
    for number in [13, 1, 14, 12, 3, 2, 12]:
        engine.load(number, digest(number), order[number])
        assert engine.answer([QUESTION])[0] == first[number]
    engine.load(0, bare.digest, {})
    assert engine.answer([QUESTION])[0] == bare


def test_prompts_count_towards_the_context(engine: Engine, pool: Callable[..., Files]) -> None:
    inputs = encode(engine._base.processor, QUESTION, context=256).inputs
    room = 256 - inputs["input_ids"].shape[1]
    full = ask("What is this?", images=(png(200),), max_tokens=room)
    engine.submit(full).result()
    engine.load(1, digest(1), pool(1))
    with pytest.raises(BadSample, match=f"more than the model's {256 - 6}"):
        engine.submit(full)


def with_tensors(files: Files, change: Callable[[dict[str, torch.Tensor]], object]) -> Files:
    tensors = load_safetensors(files[PROMPTS_WEIGHTS])
    change(tensors)
    return {**files, PROMPTS_WEIGHTS: save_safetensors(tensors)}


def with_config(files: Files, **changes: object) -> Files:
    return {**files, PROMPTS_CONFIG: json.dumps(json.loads(files[PROMPTS_CONFIG]) | changes).encode()}


VALUES = "prompts.values"
BAD = {
    "nan": (NotFinite, lambda f: with_tensors(f, lambda t: t[VALUES].fill_(float("nan")))),
    "a tensor is missing": (ConfigError, lambda f: with_tensors(f, lambda t: t.pop(VALUES))),
    "a tensor too many": (ConfigError, lambda f: with_tensors(f, lambda t: t.update(more=torch.zeros(2)))),
    "another width": (ConfigError, lambda f: with_tensors(f, lambda t: t.update({VALUES: torch.zeros(6, 3, 31)}))),
    "pool differs from the tensors": (ConfigError, lambda f: with_config(f, pool=7)),
    "more chosen than there are": (ConfigError, lambda f: with_config(f, top=7)),
    "a part of a token": (ConfigError, lambda f: with_config(f, length=3.0)),
    "a number as text": (ConfigError, lambda f: with_config(f, top="two")),
    "an unknown field": (ConfigError, lambda f: with_config(f, depth=3)),
    "another kind": (ConfigError, lambda f: with_config(f, kind="prefix")),
    "not a mapping": (ConfigError, lambda f: {**f, PROMPTS_CONFIG: b"[]"}),
    "not json": (Corrupt, lambda f: {**f, PROMPTS_CONFIG: b"{"}),
    "not safetensors": (Corrupt, lambda f: {**f, PROMPTS_WEIGHTS: f[PROMPTS_WEIGHTS][:50]}),
    "no weights": (Corrupt, lambda f: {PROMPTS_CONFIG: f[PROMPTS_CONFIG]}),
    "no configuration": (Corrupt, lambda f: {PROMPTS_WEIGHTS: f[PROMPTS_WEIGHTS]}),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("before", ["pool", "lora"])
def test_a_bad_pool_is_refused_and_the_version_before_answers(
    name: str, before: str, engine: Engine, pool: Callable[..., Files], versions: Mapping[int, Files]
) -> None:
    error, spoil = BAD[name]
    engine.load(1, digest(1), pool(1) if before == "pool" else versions[1])
    answered = engine.answer([QUESTION])
    with pytest.raises(error):
        engine.load(2, digest(2), spoil(pool(2)))
    assert engine.version == (1, digest(1))
    assert engine.answer([QUESTION]) == answered
    engine.load(3, digest(3), versions[3])
    assert engine.answer([QUESTION]) != answered
