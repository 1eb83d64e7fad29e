"""A random model on disk, its versions, and an engine on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import peft
import pytest
import torch
from tiny_llava import LORA, files_of, save_checkpoint

from streamcl.serve.engine import Engine
from streamcl.train.model import Base, load_base, peft_config
from streamcl.train.settings import LoRA, ModelConfig

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the random model."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder)
    return folder


@pytest.fixture
def fresh_base(checkpoint: Path) -> Callable[[], Base]:
    """Loads the random model again, in double precision: a batch's answer is then its members' answers exactly."""

    def load() -> Base:
        base = load_base(ModelConfig(str(checkpoint), lora=LORA))
        base.model.double()
        return base

    return load


@pytest.fixture(scope="session")
def version_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a random adapter with `PeftModel.save_pretrained`."""

    def save(seed: int, lora: LoRA = LORA) -> Path:
        base = load_base(ModelConfig(str(checkpoint), lora=lora))
        model = peft.get_peft_model(base.model, peft_config(lora))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
        folder = tmp_path_factory.mktemp(f"version-{seed}-r{lora.r}")
        model.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def versions(version_folder: Callable[..., Path]) -> dict[int, dict[str, bytes]]:
    """Versions 1 to 4 as files; their answers differ."""
    return {number: files_of(version_folder(number)) for number in range(1, 5)}


@pytest.fixture
def engine(fresh_base: Callable[[], Base]) -> Iterator[Engine]:
    engine = Engine(fresh_base(), LORA)
    yield engine
    engine.close()
