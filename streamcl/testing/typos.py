"""Typing errors in deployment files, and whether the checks find them."""

from __future__ import annotations

import copy
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamcl.testing import manifests
from streamcl.testing.manifests import Document
from streamcl.testing.references import broken

FREE = {"labels", "annotations", "matchLabels", "rayStartParams", "data", "limits", "requests"}
"""Mappings whose keys are names that somebody chose: the schemas take any."""


@dataclass(frozen=True)
class Typo:
    """A wrong text in one file of `deploy/`."""

    overlay: str
    file: str
    right: str
    wrong: str


TYPOS = (
    Typo("cpu", "base/learner.yaml", "enableInTreeAutoscaling", "enableInTreeAutoscalling"),
    Typo("cpu", "base/learner.yaml", 'num-cpus: "1"', "num-cpus: 1"),
    Typo("cpu", "base/learner.yaml", "maxReplicas: 4", "maxReplicas: 0"),
    Typo("cpu", "base/learner.yaml", "run /etc/streamcl/", "run /etc/stremcl/"),
    Typo("cpu", "base/endpoint.yaml", "version: v2", "version: 2"),
    Typo("cpu", "base/endpoint.yaml", "readinessProbe:", "readynessProbe:"),
    Typo("cpu", "base/endpoint.yaml", "num_replicas: 2", "num_replica: 2"),
    Typo("cpu", "base/endpoint.yaml", "name: streamcl-redis", "name: streamcl-reddis"),
    Typo("cpu", "base/networkpolicy.yaml", "policyTypes", "policyType"),
    Typo("cpu", "base/networkpolicy.yaml", "component: endpoint}", "component: endpiont}"),
    Typo("cpu", "base/redis.yaml", "tcpSocket: {port: redis}", "tcpSocket: {port: reddis}"),
    Typo("cpu", "overlays/cpu/kustomization.yaml", "name: streamcl-run", "name: streamcl-rnu"),
    Typo("cpu", "components/pvc/kustomization.yaml", "claimName: streamcl-data", "claimName: streamcl-date"),
    Typo("gpu", "components/gpu/endpoint.yaml", "value: replicas", "value: replica"),
    Typo("gpu", "components/gpu/learner.yaml", "groupName: gpu", "grouName: gpu"),
    Typo("gpu", "overlays/gpu/run.yaml", "strategy:", "stratgey:"),
)


def wrongs(overlay: Path, crds: Path) -> list[str]:
    """Everything that the checks say of what an overlay renders to."""
    try:
        documents = manifests.render(overlay)
    except subprocess.CalledProcessError as error:
        return [error.stderr.strip()]
    return checked(documents, crds)


def checked(documents: Sequence[Document], crds: Path) -> list[str]:
    """What is wrong with each document, or else with what they say of each other."""
    return manifests.problems(documents, crds) or broken(documents)


def planted(typo: Typo, deploy: Path, crds: Path, scratch: Path) -> list[str]:
    """What the checks say of `deploy` with a typo in it. `scratch`: a folder that is not there yet."""
    shutil.copytree(deploy, scratch)
    file = scratch / typo.file
    text = file.read_text()
    assert typo.right in text, f"{typo.file} has no {typo.right!r}"
    file.write_text(text.replace(typo.right, typo.wrong))
    return wrongs(scratch / "overlays" / typo.overlay, crds)


def misspelt(documents: Sequence[Document], seed: int) -> tuple[str, list[Document]]:
    """The documents with two letters swapped in one key, drawn by `seed`; and where."""
    dice = random.Random(seed)
    changed = copy.deepcopy(list(documents))
    places = [place for document in changed for place in _keys(document, document["kind"])]
    where, holder, key = dice.choice(places)
    at = dice.choice([i for i in range(len(key) - 1) if key[i] != key[i + 1]])
    holder[key[:at] + key[at + 1] + key[at] + key[at + 2 :]] = holder.pop(key)
    return f"{where}.{key}", changed


def _keys(value: Any, where: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Every key that a schema names, with its mapping."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in FREE:
                yield from _keys(item, f"{where}.{key}")
            if len(set(key)) > 1 and key not in ("kind", "metadata"):
                yield where, value, key
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item, where)
