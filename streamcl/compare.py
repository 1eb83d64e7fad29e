"""Two versions side by side, and a version as a folder that other servers take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamcl.errors import Refused
from streamcl.lineage import of_version
from streamcl.registry.published import MANIFEST
from streamcl.registry.versions import Registry
from streamcl.train.evidence import distances
from streamcl.train.model import ADAPTER_CONFIG, ADAPTER_WEIGHTS, from_files
from streamcl.train.settings import PROMPTS_CONFIG
from streamcl.types import Version

README = """# {name}, version {number}

{what} It was made by streamcl in window {window} of {task}, on the base model with digest {base}.
`lineage.json` names the windows, stream positions and sources that it was made of, and its scores.
"""
PEFT = "A PEFT adapter: `PeftModel.from_pretrained(base, FOLDER)`, or vLLM's `--lora-modules {name}=FOLDER`."
POOL = "A pool of prompts, of streamcl's own kind: PEFT and vLLM do not load it, `streamcl serve` does."


def difference(registry: Registry, one: int, two: int) -> dict[str, Any]:
    """Scores of both, settings that differ, and each layer's relative distance ‖ΔW₂ − ΔW₁‖ / ‖ΔW₁‖, as JSON values.

    Distances are None where the two are of different forms.  Raises NoSuchVersion or Corrupt.
    """
    versions = [registry.get(number) for number in (one, two)]
    files = [registry.read(version) for version in versions]
    settings = [_settings(given) for given in files]
    names = sorted({*versions[0].scores, *versions[1].scores})
    odd = sorted(name for name in settings[0].keys() | settings[1].keys() if len({_of(s, name) for s in settings}) > 1)
    weights = [from_files(given) for given in files]
    alike = weights[0].keys() == weights[1].keys() and all(ADAPTER_WEIGHTS in given for given in files)
    scales = [(s["lora_alpha"] / s["r"]) for s in settings] if alike else []
    return {
        "versions": [_about(version) for version in versions],
        "scores": {name: [version.scores.get(name) for version in versions] for name in names},
        "config": {name: [setting.get(name) for setting in settings] for name in odd},
        "layers": distances(*weights, scales=(scales[0], scales[1])) if alike else None,
    }


def export(registry: Registry, number: int, folder: Path) -> str:
    """Writes version `number` to a folder that must be empty or new; what it is.  Raises NoSuchVersion or Corrupt."""
    version = registry.get(number)
    files = registry.read(version)
    if folder.exists() and any(folder.iterdir()):
        raise Refused(f"{folder} is not empty: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    what = (POOL if PROMPTS_CONFIG in files else PEFT).format(name=registry.name)
    about = {"name": registry.name, "number": number, "window": version.window, "task": version.task}
    (folder / "README.md").write_text(README.format(**about, what=what, base=version.base_digest))
    lineage = [
        {"window": step.window, "task": step.task, "positions": step.positions, "sources": step.sources}
        for step in of_version(registry, number)
    ]
    told = {**_about(version), "base_digest": version.base_digest, "scores": dict(version.scores), "lineage": lineage}
    (folder / "lineage.json").write_text(json.dumps(told, indent=1))
    assert MANIFEST not in files, "the manifest is the registry's own"
    return what


def _about(version: Version) -> dict[str, Any]:
    return {name: getattr(version, name) for name in ("number", "digest", "task", "window")}


def _settings(files: Mapping[str, bytes]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files[PROMPTS_CONFIG if PROMPTS_CONFIG in files else ADAPTER_CONFIG])
    return found


def _of(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings.get(name), sort_keys=True)
