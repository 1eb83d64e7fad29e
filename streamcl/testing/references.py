"""What manifests say of each other and of streamcl: names that must exist, labels that must match, texts that parse."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from streamcl import config
from streamcl.errors import ConfigError
from streamcl.testing.manifests import CLUSTERS, Document, cluster, pods, serve_problems

SECRETS = {"streamcl", "streamcl-redis"}
"""Secrets that the user makes."""
KUBERAY_LABELS = ("ray.io/",)
"""Labels that the operator puts on pods."""


def broken(documents: Sequence[Document]) -> list[str]:
    """References that nothing answers, and texts that do not parse, in manifests without `problems`."""
    made = {(document["kind"], document["metadata"]["name"]) for document in documents}
    found = [
        f"{document['kind']}/{document['metadata']['name']} {where}: {wrong}"
        for document in documents
        for where, template in pods(document)
        for wrong in _pod(template, made, _claimed(document))
    ]
    found += [wrong for document in documents for wrong in (*_selectors(document, documents), *_texts(document))]
    found += [
        f"{document['kind']}/{document['metadata']['name']} wants Secret {name!r}; users make {sorted(SECRETS)}"
        for document in documents
        for name in sorted(set(_secrets(document)) - SECRETS)
    ]
    return found + [wrong for document in documents if document["kind"] in CLUSTERS for wrong in _ray(document)]


def _pod(template: Document, made: set[tuple[str, str]], claimed: set[str]) -> Iterator[str]:
    """Volumes, claims, configurations, secrets and ports that a pod names. `claimed`: volumes made for it by name."""
    spec = template.get("spec", {})
    volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
    for volume in volumes.values():
        for key, kind, name in (
            ("configMap", "ConfigMap", "name"),
            ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
        ):
            if key in volume and (kind, volume[key].get(name)) not in made:
                yield f"volume {volume['name']} wants {kind} {volume[key].get(name)!r}, which nobody makes"
    for container in spec.get("containers", ()):
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in {*volumes, *claimed}:
                yield f"mounts volume {mount['name']!r}; there are {sorted(volumes)}"
        ports = {port.get("name") for port in container.get("ports", ())}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            check = container.get(probe, {})
            port = (check.get("httpGet") or check.get("tcpSocket") or {}).get("port")
            if isinstance(port, str) and port not in ports:
                yield f"{probe} asks port {port!r}; there are {sorted(map(str, ports))}"
        for entry in container.get("env", ()):
            if "value" in entry and any(word in entry["name"] for word in ("PASSWORD", "TOKEN", "SECRET")):
                yield f"{entry['name']} is written down; take it from a Secret"


def _claimed(document: Document) -> set[str]:
    return {claim["metadata"]["name"] for claim in document.get("spec", {}).get("volumeClaimTemplates", ())}


def _secrets(value: Any) -> Iterator[str]:
    """The Secrets that are referred to, wherever that stands."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("secretRef", "secretKeyRef"):
                yield str(item.get("name"))
            yield from _secrets(item)
    elif isinstance(value, list):
        for item in value:
            yield from _secrets(item)


def _selectors(document: Document, documents: Sequence[Document]) -> Iterator[str]:
    """Selectors of ours that match no pod of ours."""
    labels = [template.get("metadata", {}).get("labels", {}) for other in documents for _, template in pods(other)]
    kind, spec = document["kind"], document.get("spec", {})
    selectors: list[Mapping[str, Any]] = []
    if kind == "NetworkPolicy":
        selectors = [spec.get("podSelector", {}), *_peers(spec)]
    elif kind == "Service":
        selectors = [{"matchLabels": spec.get("selector", {})}]
    elif "selector" in spec:
        selectors = [spec["selector"]]
    for selector in selectors:
        wanted = {k: v for k, v in selector.get("matchLabels", {}).items() if not k.startswith(KUBERAY_LABELS)}
        if not any(wanted.items() <= has.items() for has in labels):
            yield f"{kind}/{document['metadata']['name']}: no pod has the labels {wanted}"
        for rule in selector.get("matchExpressions", ()):
            for value in rule.get("values", ()):
                if not any(has.get(rule["key"]) == value for has in labels):
                    yield f"{kind}/{document['metadata']['name']}: no pod has {rule['key']}={value}"


def _peers(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Pod selectors of a policy's rules that mean pods of this namespace."""
    rules = [*spec.get("ingress", ()), *spec.get("egress", ())]
    peers = [peer for rule in rules for peer in (*rule.get("from", ()), *rule.get("to", ()))]
    return [peer["podSelector"] for peer in peers if "podSelector" in peer and "namespaceSelector" not in peer]


def _texts(document: Document) -> Iterator[str]:
    """The run's YAML in a ConfigMap, and Serve's configuration."""
    if document["kind"] == "ConfigMap":
        for name, text in document.get("data", {}).items():
            try:
                config.parse(yaml.safe_load(text))
            except (ConfigError, yaml.YAMLError) as error:
                yield f"ConfigMap/{document['metadata']['name']} {name}: {error}"
    if "serveConfigV2" in document.get("spec", {}):
        yield from (f"serveConfigV2: {wrong}" for wrong in serve_problems(document["spec"]["serveConfigV2"]))


def _ray(document: Document) -> Iterator[str]:
    """Ray's version, the command, and the files that command and Serve's configuration name."""
    version = importlib.metadata.version("ray")
    if cluster(document).get("rayVersion") != version:
        yield f"rayVersion {cluster(document).get('rayVersion')!r}; streamcl is installed with {version}"
    spec = document.get("spec", {})
    files = [word for word in shlex.split(spec.get("entrypoint", "")) if word.startswith("/")]
    if "serveConfigV2" in spec and not serve_problems(spec["serveConfigV2"]):
        files += [app["args"]["run"] for app in yaml.safe_load(spec["serveConfigV2"])["applications"]]
    if spec.get("entrypoint") and shlex.split(spec["entrypoint"])[:2] != ["streamcl", "run"]:
        yield f"entrypoint {spec['entrypoint']!r} is not `streamcl run FILE`"
    for where, template in pods(document):
        for container in template.get("spec", {}).get("containers", ()):
            folders = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
            if where != "submitterPodTemplate":
                yield from (f"{where}: {file} is on no volume" for file in files if _outside(file, folders))


def _outside(file: str, folders: Sequence[str]) -> bool:
    return not any(file.startswith(f"{folder}/") for folder in folders)
