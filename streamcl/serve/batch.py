"""The requests under way as one batch: they join and leave it between two steps, each with its own version.

Newcomers go through the model together, those of one version at a time; then every step makes one token of each row,
whatever its version. Rows are aligned at their last token: what is shorter is padded on the left, in the keys and
values too, and the padding that nobody needs any longer is cut off.

Shapes: N rows, W tokens of the longest, D dimensions of a position (most models: none).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from streamcl.serve.generate import Draw, Prompt, Response, stack
from streamcl.serve.loaded import Held, Label
from streamcl.serve.slots import Slots
from streamcl.serve.text import Text
from streamcl.train.prompts import prefixed

Listen = Callable[[str, Label], None]
"""Hears each new piece of an answer's text (the first may be empty) and the version that makes it."""


class Answer(Future[Response]):
    """The answer to come. `cancel` also ends one that is being made, before its next token."""

    unwanted = False

    def cancel(self) -> bool:
        self.unwanted = True
        return super().cancel()


class Row:
    """A request under way. Mutable."""

    def __init__(self, prompt: Prompt, held: Held, answer: Answer, listen: Listen, tokenizer: Any) -> None:
        self.prompt, self.held, self.answer, self.listen = prompt, held, answer, listen
        self.draw, self.text = Draw(prompt.request), Text(tokenizer, prompt.request.stop)
        self.tokens, self.last, self.reason = 0, -1, ""

    @property
    def ended(self) -> bool:
        return bool(self.reason) or self.answer.unwanted

    def take(self, token: int, eos_ids: frozenset[int]) -> None:
        """Takes the next token, and ends where it should."""
        self.tokens, self.last = self.tokens + 1, token
        said = "" if token in eos_ids else self.text.push(token)
        if token in eos_ids or self.text.stopped:
            self.reason = "stop"
        elif self.tokens >= self.prompt.request.max_tokens:
            self.reason = "length"
        if self.reason:
            said += self.text.end()
        if said or self.tokens == 1:
            self.listen(said, self.held.label)

    def response(self) -> Response:
        return Response(self.text.shown, *self.held.label, self.reason, self.prompt.length, self.tokens)


class Batch:
    """The rows under way, with their keys and values. Mutable, and for the compute thread alone."""

    def __init__(self, slots: Slots, tokenizer: Any) -> None:
        self.rows: list[Row] = []
        self._slots = slots
        eos = slots.model.generation_config.eos_token_id
        self._eos_ids = frozenset({tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None})
        self._pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._cache, self._mask_NW, self._positions_DN = DynamicCache(), torch.empty(0, 0), torch.empty(0)

    @torch.no_grad()
    def join(self, held: Held, rows: Sequence[Row]) -> None:
        """Takes in newcomers of one version, and makes the first token of each."""
        self._slots.use(held.place)
        model = self._slots.model.get_base_model()
        inputs = stack([row.prompt for row in rows], pad_id=self._pad_id)
        weight = model.get_input_embeddings().weight
        inputs = {name: x.to(weight.device, weight.dtype if x.is_floating_point() else None)
                  for name, x in inputs.items()}  # fmt: skip
        inputs = prefixed(model, inputs)
        ids_NL, mask_NL = inputs.pop("input_ids"), inputs.pop("attention_mask")
        known = {"attention_mask": mask_NL, "use_cache": True, **inputs}
        positions = model._prepare_position_ids_for_generation(ids_NL, known)
        cache = DynamicCache()
        prepared = model.prepare_inputs_for_generation(
            ids_NL, past_key_values=cache, position_ids=positions, is_first_iteration=True, logits_to_keep=1, **known
        )
        logits_NV = self._slots.model(**prepared).logits[:, -1]
        self._merge(rows, cache, mask_NL, positions[..., -1])
        self._take(rows, logits_NV)

    @torch.no_grad()
    def step(self) -> None:
        """Makes the next token of every row."""
        through = self._slots.rows([row.held.lora for row in self.rows])
        self._mask_NW = pad(self._mask_NW, (0, 1), value=1)
        self._positions_DN = self._positions_DN + 1
        logits_NV = self._slots.model(
            input_ids=torch.tensor([[row.last] for row in self.rows], device=self._mask_NW.device),
            attention_mask=self._mask_NW, position_ids=self._positions_DN[..., None], past_key_values=self._cache,
            use_cache=True, **through,
        ).logits[:, -1]  # fmt: skip
        self._take(self.rows, logits_NV)

    def leave(self) -> list[Row]:
        """Takes out, and returns, the rows that have ended."""
        gone = [row for row in self.rows if row.ended]
        if gone:
            self._keep([index for index, row in enumerate(self.rows) if not row.ended])
        return gone

    def clear(self) -> list[Row]:
        """Takes out, and returns, all rows."""
        rows, self.rows = self.rows, []
        self._cache = DynamicCache()
        return rows

    def _take(self, rows: Sequence[Row], logits_NV: Tensor) -> None:
        """Chooses each row's token; those that draw one after the other, the rest at once."""
        tokens = logits_NV.argmax(-1).tolist()
        for row, token, logits_V in zip(rows, tokens, logits_NV, strict=True):
            row.take(token if row.draw.generator is None else int(row.draw.noisy(logits_V).argmax()), self._eos_ids)

    def _merge(self, rows: Sequence[Row], cache: DynamicCache, mask_NL: Tensor, positions_DN: Tensor) -> None:
        if not self.rows:
            self.rows, self._cache, self._mask_NW, self._positions_DN = [*rows], cache, mask_NL, positions_DN
            return
        width = max(self._mask_NW.shape[1], mask_NL.shape[1])
        for mine, theirs in zip(self._cache.layers, cache.layers, strict=True):
            mine.keys = torch.cat([_widened(mine.keys, width), _widened(theirs.keys, width)])
            mine.values = torch.cat([_widened(mine.values, width), _widened(theirs.values, width)])
        masks = [pad(mask, (width - mask.shape[1], 0)) for mask in (self._mask_NW, mask_NL)]
        self.rows, self._mask_NW = [*self.rows, *rows], torch.cat(masks)
        self._positions_DN = torch.cat([self._positions_DN, positions_DN], -1)

    def _keep(self, indices: list[int]) -> None:
        if not indices:
            self.clear()
            return
        self.rows = [self.rows[index] for index in indices]
        mask_NW = self._mask_NW[indices]
        first = int(mask_NW.argmax(1).min())
        self._mask_NW, self._positions_DN = mask_NW[:, first:], self._positions_DN[..., indices]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[indices, :, first:], layer.values[indices, :, first:]


def _widened(x_NHLE: Tensor, width: int) -> Tensor:
    """Keys or values, padded on the left to `width` tokens."""
    return pad(x_NHLE, (0, 0, width - x_NHLE.shape[2], 0))
