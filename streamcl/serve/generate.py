"""A batch of chat requests through one model: prompts as tensors, seeded sampling, where each answer ends.

Shapes: N requests, L prompt tokens, V words of the vocabulary.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from streamcl.errors import BadSample
from streamcl.stream.images import FORMATS
from streamcl.train.batch import chat
from streamcl.train.prompts import prefixed
from streamcl.types import Message


@dataclass(frozen=True)
class Request:
    """One chat to answer.  Raises BadSample when its images do not match its messages."""

    messages: tuple[Message, ...]
    images: tuple[bytes, ...] = ()
    """JPEG, PNG or WEBP files, in the order of the messages' image parts."""
    max_tokens: int = 32
    temperature: float = 0.0
    """0 takes the most likely token; above, tokens are drawn from softmax(logits / temperature)."""
    seed: int = 0
    """Of the draws. An equal request gets an equal answer from an equal version, whoever shares its batch, but for
    near-ties that the rounding of a batch's arithmetic decides."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    version: int | None = None
    """The version that must answer; None: the live one."""

    def __post_init__(self) -> None:
        places = sum(part.type == "image" for message in self.messages for part in message.content)
        if places != len(self.images):
            raise BadSample(f"request: {places} image parts but {len(self.images)} images; give one image per part")
        if self.max_tokens < 1 or self.temperature < 0 or "" in self.stop:
            raise BadSample("request: max_tokens is at least 1, temperature at least 0, and no stop string is empty")


@dataclass(frozen=True)
class Response:
    """An answer and the version that made it."""

    text: str
    version: int
    digest: str
    """Of the version that answered; of the base model for version 0."""
    finish_reason: str
    """"stop": the model or a stop string ended it; "length": `max_tokens` did."""
    prompt_tokens: int
    completion_tokens: int
    """Tokens made, the end of sequence included."""


@dataclass(frozen=True)
class Prompt:
    """A request as model inputs: each is [1, L], or [images, ...]."""

    request: Request
    inputs: dict[str, Tensor]

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]


def encode(processor: Any, request: Request, *, context: int) -> Prompt:
    """`request` as tensors, if prompt and answer fit into `context` tokens.  Raises BadSample."""
    text = processor.apply_chat_template(chat(request.messages), add_generation_prompt=True, tokenize=False)
    images = [Image.open(io.BytesIO(data), formats=FORMATS).convert("RGB") for data in request.images]
    prompt = Prompt(request, dict(processor(text=[text], images=images or None, return_tensors="pt")))
    if prompt.length + request.max_tokens > context:
        raise BadSample(
            f"request: {prompt.length} prompt tokens and {request.max_tokens} to make are more than the model's "
            f"{context}; shorten the messages or lower max_tokens"
        )
    return prompt


def complete(model: Any, tokenizer: Any, prompts: Sequence[Prompt], *, version: int, digest: str) -> list[Response]:
    """The answers of `model`, named as `version`, to one batch of prompts."""
    eos = model.generation_config.eos_token_id
    eos_ids = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    inputs = _stack(prompts, pad_id=pad_id)
    weight = model.get_input_embeddings().weight
    inputs = {name: x.to(weight.device, weight.dtype if x.is_floating_point() else None) for name, x in inputs.items()}
    inputs = prefixed(model, inputs)
    requests = [prompt.request for prompt in prompts]
    ends = _Ends(requests, tokenizer, start=inputs["input_ids"].shape[1], eos_ids=eos_ids)
    settings = GenerationConfig(
        max_new_tokens=max(request.max_tokens for request in requests),
        do_sample=False,
        pad_token_id=pad_id,
        eos_token_id=sorted(eos_ids) or None,
    )
    model.generate(**inputs, generation_config=settings, logits_processor=[_Draw(requests)], stopping_criteria=[ends])
    return [
        Response(ends.texts[row], version, digest, ends.reasons[row], prompt.length, ends.tokens[row])
        for row, prompt in enumerate(prompts)
    ]


def _stack(prompts: Sequence[Prompt], *, pad_id: int) -> dict[str, Tensor]:
    """Prompts as one batch: what is per token is padded on the left, the rest is joined."""
    width = max(prompt.length for prompt in prompts)
    batch: dict[str, Tensor] = {}
    for name in sorted({name for prompt in prompts for name in prompt.inputs}):
        parts = []
        for prompt in prompts:
            x = prompt.inputs.get(name)
            if x is not None and x.shape == (1, prompt.length):
                x = pad(x, (width - prompt.length, 0), value=pad_id if name == "input_ids" else 0)
            if x is not None:
                parts.append(x)
        batch[name] = torch.cat(parts)
    return batch


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Turns greedy decoding into sampling, row by row. Mutates its generators.

    The arg max of logits / temperature plus Gumbel noise is a draw from the softmax, and the noise comes from the row's
    own generator: a request's draws do not depend on its neighbours.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.draws = [
            (row, request.temperature, torch.Generator().manual_seed(request.seed))
            for row, request in enumerate(requests)
            if request.temperature > 0
        ]

    def __call__(self, input_ids: Tensor, scores_NV: Tensor) -> Tensor:
        scores_NV = scores_NV.clone()
        for row, temperature, generator in self.draws:
            noise_V = -torch.empty(scores_NV.shape[1]).exponential_(generator=generator).log()
            scores_NV[row] = scores_NV[row] / temperature + noise_V.to(scores_NV)
        return scores_NV


class _Ends(StoppingCriteria):  # type: ignore[misc]
    """Ends each row at its own limit, stop string or end of sequence. Mutates `texts`, `tokens` and `reasons`."""

    def __init__(self, requests: Sequence[Request], tokenizer: Any, *, start: int, eos_ids: set[int]) -> None:
        self.requests, self.tokenizer, self.start, self.eos_ids = requests, tokenizer, start, eos_ids
        self.texts = [""] * len(requests)
        self.tokens = [0] * len(requests)
        self.reasons = [""] * len(requests)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        for row, ids in enumerate(input_ids[:, self.start :].tolist()):
            if not self.reasons[row]:
                self._advance(row, ids)
        return torch.tensor([bool(reason) for reason in self.reasons], device=input_ids.device)

    def _advance(self, row: int, ids: list[int]) -> None:
        request = self.requests[row]
        ended, full = ids[-1] in self.eos_ids, len(ids) >= request.max_tokens
        self.tokens[row] = len(ids)
        if not (ended or full or request.stop):
            return
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        cuts = [text.index(word) for word in request.stop if word in text]
        self.texts[row] = text[: min(cuts)] if cuts else text
        self.reasons[row] = "stop" if ended or cuts else "length" if full else ""
