"""Prompt tuning: a frozen model and a pool of prompts, of which each sample's own query chooses a few.

    score_j = cos(q_image, key_image_j) + cos(q_text, key_text_j)      the `top` best stand before the first token

A prompt's tokens are ids beyond the vocabulary that stand for the pool's values, so to choose prompts is to prepend
ids: padding, masks, generation and caches need to know nothing of it. The queries come from frozen parts alone, the
tower's features and the token embeddings of the question (never of the answer): training and serving choose alike.

Shapes: N samples, L tokens, V words, P prompts, K tokens of a prompt, E embedding width, C feature channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamcl.train.settings import Prompts

NAME = "prompts"
"""The pool's name in the model, and what its parameters' names begin with."""

Inputs = dict[str, Tensor]


class Pool(nn.Module):
    """Prompts and their keys. Values count in standard deviations of the token embeddings, so rates carry over."""

    def __init__(self, form: Prompts, table: nn.Module, tower: nn.Module, *, channels: int, image_id: int) -> None:
        """`table`, `tower`: the frozen token embeddings and vision tower, which stay the model's."""
        super().__init__()
        self.form, self.image_id = form, image_id
        self.frozen = (table, tower)  # in a tuple, where torch does not look for parameters
        weight = weight_of(table).detach()
        self.words, width = weight.shape
        self.unit = float(weight.float().std())
        self.values = nn.Parameter(torch.zeros(form.pool, form.length, width, device=weight.device))
        self.keys_image = nn.Parameter(torch.zeros(form.pool, channels, device=weight.device))
        self.keys_text = nn.Parameter(torch.zeros(form.pool, width, device=weight.device))

    @property
    def tokens(self) -> int:
        """Tokens that stand before a sample's own."""
        return self.form.top * self.form.length

    @torch.no_grad()
    def queries(self, inputs: Inputs, answers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[N, C], zero without an image, and [N, E]. `answers`: which of the last tokens answer, bool [N, any]."""
        table, ids_NL = self.frozen[0], inputs["input_ids"]
        images_NL = ids_NL == self.image_id
        asked_NL = inputs["attention_mask"].bool() & ~images_NL
        if answers is not None:
            asked_NL = asked_NL & ~F.pad(answers, (ids_NL.shape[1] - answers.shape[1], 0))
        sum_NE = torch.einsum("nle,nl->ne", table(ids_NL).float(), asked_NL.float())
        text_NE = sum_NE / asked_NL.sum(1, keepdim=True).clamp(min=1)
        image_NC = text_NE.new_zeros(len(ids_NL), self.keys_image.shape[1])
        if "pixel_values" in inputs:
            features_IC = self._features(inputs["pixel_values"]).float().mean(1)
            counts_N = images_NL.sum(1)
            counts_N = counts_N * len(features_IC) // counts_N.sum()
            owner_I = torch.arange(len(ids_NL), device=ids_NL.device).repeat_interleave(counts_N)
            image_NC = image_NC.index_add(0, owner_I, features_IC) / counts_N[:, None].clamp(min=1)
        return image_NC, text_NE

    def _features(self, pixels: Tensor) -> Tensor:
        """[images, tokens, C]."""
        tower = self.frozen[1]
        features: Tensor = tower(pixels, output_hidden_states=tower.layer, return_dict=True).last_hidden_state
        return features

    def scores(self, inputs: Inputs, answers: Tensor | None = None) -> Tensor:
        """[N, P], in float32 whatever autocast says: a choice must not depend on the precision around it."""
        with torch.autocast(inputs["input_ids"].device.type, enabled=False):
            image_NC, text_NE = self.queries(inputs, answers)
            image_NP = F.normalize(image_NC, dim=-1) @ F.normalize(self.keys_image.float(), dim=-1).T
            text_NP = F.normalize(text_NE, dim=-1) @ F.normalize(self.keys_text.float(), dim=-1).T
        return image_NP + text_NP

    def prefixed(self, inputs: Inputs, answers: Tensor | None = None) -> Inputs:
        """`inputs` with each sample's prompts between its padding, which is on the left, and its first token.

        Pixels become features, rounded as at ingest, so that the tower runs once.
        """
        if "pixel_values" in inputs and inputs["pixel_values"].dim() == 4:
            inputs = {**inputs, "pixel_values": self._features(inputs["pixel_values"]).half()}
        mask_NL, length = inputs["attention_mask"], self.form.length
        chosen_Nk = self.scores(inputs, answers).topk(self.form.top).indices.sort().values
        prompt_ids = self.words + chosen_Nk[..., None] * length + torch.arange(length, device=mask_NL.device)
        front = {"input_ids": prompt_ids.flatten(1), "attention_mask": mask_NL.new_ones(len(mask_NL), self.tokens)}
        at = torch.arange(mask_NL.shape[1] + self.tokens, device=mask_NL.device)[None]
        first_N1 = mask_NL.argmax(1, keepdim=True)
        moved = torch.where(at < first_N1 + self.tokens, at - first_N1, at)
        source = torch.where(at < first_N1, at + self.tokens, moved)
        return {
            name: torch.cat([front[name], value], 1).gather(1, source) if name in front else value
            for name, value in inputs.items()
        }


class Continued(nn.Module):
    """Token embeddings whose ids from V on are the tokens of a pool's values."""

    def __init__(self, table: nn.Module, pool: Pool) -> None:
        super().__init__()
        self.table, self.pool = table, pool

    @property
    def weight(self) -> Tensor:
        return weight_of(self.table)

    def forward(self, ids: Tensor) -> Tensor:
        known = ids < self.pool.words
        words: Tensor = self.table(ids.where(known, 0))
        prompts = F.embedding((ids - self.pool.words).clamp(min=0), self.pool.values.flatten(0, 1) * self.pool.unit)
        return torch.where(known[..., None], words, prompts.to(words.dtype))


def weight_of(table: nn.Module) -> Tensor:
    """[V, E]: the vectors of a table of token embeddings."""
    weight = table.weight
    assert isinstance(weight, Tensor), f"token embeddings without a weight: {type(table).__name__}"
    return weight


def attach(model: Any, pool: Pool) -> None:
    """Makes `model`, a transformers model, understand the ids of `pool`, and of no other; in place."""
    model.set_input_embeddings(Continued(table_of(model), pool))
    setattr(model, NAME, pool)


def detach(model: Any) -> None:
    """Undoes `attach`, if it was done; in place."""
    if pool_of(model) is not None:
        model.set_input_embeddings(table_of(model))
        delattr(model, NAME)


def table_of(model: Any) -> nn.Module:
    """The model's own token embeddings."""
    table: nn.Module = model.get_input_embeddings()
    return table.table if isinstance(table, Continued) else table


def parameters(pool: Pool) -> dict[str, nn.Parameter]:
    """prompts.values [P, K, E], prompts.keys_image [P, C] and prompts.keys_text [P, E]."""
    return {f"{NAME}.{name}": parameter for name, parameter in pool.named_parameters()}


def pool_of(model: Any) -> Pool | None:
    pool: Pool | None = getattr(model, NAME, None)
    return pool


def prefixed(model: Any, inputs: Inputs, answers: Tensor | None = None) -> Inputs:
    """What to call `model` with: `inputs`, behind the prompts that they choose if the model has a pool."""
    pool = pool_of(model)
    return inputs if pool is None else pool.prefixed(inputs, answers)


def key_loss(model: Any, inputs: Inputs, answers: Tensor) -> Tensor | float:
    """[N]: μ Σ (2 − score_j) over the chosen prompts, whose gradient is that of −μ Σ score_j; 0.0 without a pool."""
    pool = pool_of(model)
    if pool is None:
        return 0.0
    scores_NP = pool.scores(inputs, answers)
    return pool.form.key_loss * (2 - scores_NP.topk(pool.form.top).values).sum(1)


def fresh_pool(params: Mapping[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """New values and keys, standard normal, from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(params[name].shape, generator=generator) for name in sorted(params)}


@torch.no_grad()
def moments(model: Any, inputs: Inputs, answers: Tensor) -> dict[str, Tensor]:
    """HᵀH [d, d], float64, by the pool's parameters; H [n, d]: what of a batch lies in the space of each.

    For the values these are the embeddings of all real tokens as they enter the language model, image tokens after the
    projector; for the keys the queries.
    """
    pool, seen = pool_of(model), list[Tensor]()
    assert pool is not None

    def look(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["inputs_embeds"])

    handle = model.get_decoder().register_forward_pre_hook(look, with_kwargs=True)
    try:
        model(**inputs, logits_to_keep=1)
    finally:
        handle.remove()
    image_NC, text_NE = pool.queries(inputs, answers)
    rows = {"values": seen[0][inputs["attention_mask"].bool()], "keys_image": image_NC, "keys_text": text_NE}
    return {f"{NAME}.{name}": (value := h_nd.double()).T @ value for name, h_nd in rows.items()}


def prior_moments(model: Any) -> dict[str, Tensor]:
    """EᵀE [E, E], float64, of the model's token embeddings: what pre-training knows of the values' space."""
    weight = model.get_input_embeddings().weight.detach().float()
    return {f"{NAME}.values": (weight.T @ weight).double()} if pool_of(model) else {}
