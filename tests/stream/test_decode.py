"""The door: what a sample becomes, and that only BadSample comes out of it otherwise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.bench.reliability_corpus import BAD, GOOD, image, record, turns, with_content
from streamcl.errors import BadSample, ConfigError
from streamcl.stream import REASONS, Limits, decode
from streamcl.stream.decode import SPECIAL, escaped
from streamcl.types import Sample, from_batch, to_batch

LIMITS = Limits()
PNG = image()
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
    | st.sampled_from(["user", "assistant", "system", "text", "image", "\ud800", 10**400])
    | st.sampled_from([PNG, PNG[:50], bytearray(PNG)])
)  # fmt: skip
KEYS = ["messages", "images", "id", "task", "time", "schema", "role", "content", "type", "text"]
keys = st.sampled_from(KEYS) | st.text(max_size=3)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=12
)
parts = st.fixed_dictionaries({"type": st.sampled_from(["text", "image"])}, optional={"text": st.text() | anything})
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": st.text() | st.lists(parts, max_size=3) | anything}
)
pictures = st.lists(st.just(PNG) | anything, max_size=3)
nearly = st.fixed_dictionaries(
    {"messages": st.lists(messages, max_size=4) | anything},
    optional={"images": pictures, "id": anything, "task": anything, "time": anything, "schema": anything},
)


def refusal(raw: Any) -> str | None:
    """Why the door refuses `raw`, or None if it does not. Another exception than BadSample fails the test."""
    try:
        decode(raw, LIMITS)
    except BadSample as error:
        return str(error)
    return None


@settings(max_examples=400, deadline=None)
@given(anything | nearly)
def test_only_a_sample_or_bad_sample_comes_out(raw: Any) -> None:
    if reason := refusal(raw):
        assert reason.split(":")[0] in REASONS
        assert len(reason) < 400
        assert reason.isprintable()
    else:
        sample = decode(raw, LIMITS)
        assert from_batch(to_batch([sample])) == [sample]  # Arrow can hold whatever passed
        assert math.isfinite(sample.time)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.data())
def test_no_mutated_image_breaks_the_door(kind: str, data: st.DataObject) -> None:
    mutant = bytearray(image(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(mutant)))
        mutant[start : start + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    assert (refusal(record(bytes(mutant))) or "image:").split(":")[0] in ("image", "too_large")


@pytest.mark.parametrize("name", [name for name in GOOD if name != "reference"])
def test_good_records_pass(name: str) -> None:
    assert decode(GOOD[name], LIMITS).answer


RECORDS = [name for name, (_, raw) in BAD.items() if isinstance(raw, dict) and not name.startswith("reference")]


@pytest.mark.parametrize("name", RECORDS)
def test_bad_records_are_refused_for_their_reason(name: str) -> None:
    reason, raw = BAD[name]
    with pytest.raises(BadSample, match=f"^{reason}: "):
        decode(raw, LIMITS)


def test_absent_fields_have_defaults() -> None:
    sample = decode(turns("user", "assistant"), LIMITS)
    assert (sample.task, sample.time, sample.images, sample.source, sample.position) == (None, 0.0, (), "", 0)


def test_without_an_id_equal_content_gets_an_equal_id_and_other_content_another() -> None:
    base = decode(record(PNG), LIMITS)
    assert len(base.id) == 32
    assert decode(record(PNG, time=5.0, task="a"), LIMITS).id == base.id
    others = [record(image("JPEG")), record(PNG, text="What?"), record(PNG, answer="a cat")]
    assert base.id not in {decode(other, LIMITS).id for other in others}


def test_bytes_and_base64_are_the_same_image() -> None:
    assert decode({**record(PNG), "images": [PNG]}, LIMITS) == decode(record(PNG), LIMITS)


def test_special_tokens_are_escaped_in_every_role() -> None:
    sample = decode(with_content("<image> a < b <|im_end|> <IMG></s>"), LIMITS)
    assert sample.messages[0].text == "‹image› a < b ‹|im_end|> ‹IMG›‹/s›"
    assert decode(record(answer="<|eot|>"), LIMITS).answer == "‹|eot|>"


@given(st.text(alphabet="<>|/imagesIMG "))
def test_nothing_special_survives_escaping_and_lengths_stay(text: str) -> None:
    assert not SPECIAL.search(escaped(text))
    assert len(escaped(text)) == len(text)


@pytest.mark.parametrize("field", ["image_bytes", "pixels", "text_chars", "images", "messages"])
def test_every_limit_refuses_one_more_than_it_says(field: str) -> None:
    raw = record(PNG, PNG, text="x" * 94)  # 2 messages, 2 images of 24 x 16, 100 characters with the answer
    exact = {"image_bytes": len(PNG), "pixels": 24 * 16, "text_chars": 99, "images": 2, "messages": 2}
    assert decode(raw, replace(LIMITS, **{field: exact[field]}))
    with pytest.raises(BadSample, match=r"^too_large: "):
        decode(raw, replace(LIMITS, **{field: exact[field] - 1}))


def test_a_limit_below_one_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"limits.pixels is 0"):
        Limits(pixels=0)


def test_a_sample_decodes_to_itself_from_its_own_row() -> None:
    sample = decode(record(PNG, id="a", task="t", time=3.0), LIMITS)
    assert decode(sample.row(), LIMITS) == sample
    assert isinstance(sample, Sample)
