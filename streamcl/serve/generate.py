"""What the engine is asked and what it answers; prompts as tensors, and seeded draws.

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

from streamcl.errors import BadSample
from streamcl.stream.images import FORMATS
from streamcl.train.batch import chat
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
    caller: str = ""
    """Who asks, if known: in a trial of a candidate one caller is answered by one version (`serve.trial`)."""

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


def stack(prompts: Sequence[Prompt], *, pad_id: int) -> dict[str, Tensor]:
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


class Draw:
    """Chooses a request's tokens: the most likely one, or a draw from its own seed. Mutates its generator.

    The arg max of logits / temperature plus Gumbel noise is a draw from the softmax, and the noise comes from the
    request's own generator: its draws do not depend on its neighbours.
    """

    def __init__(self, request: Request) -> None:
        self.temperature = request.temperature
        self.generator = torch.Generator().manual_seed(request.seed) if request.temperature > 0 else None

    def noisy(self, logits_V: Tensor) -> Tensor:
        """Scores whose arg max is the token."""
        if self.generator is None:
            return logits_V
        noise_V = -torch.empty(len(logits_V)).exponential_(generator=self.generator).log()
        return logits_V / self.temperature + noise_V.to(logits_V)
