"""What `kubectl apply -k deploy/overlays/…` would apply: known keys only, references that hold, typing errors found."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from streamcl import config
from streamcl.app import app
from streamcl.testing import manifests
from streamcl.testing.manifests import pods, render, serve_problems
from streamcl.testing.references import broken
from streamcl.testing.typos import TYPOS, Typo, checked, misspelt, planted

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(path.name for path in (DEPLOY / "overlays").iterdir())


@pytest.fixture(scope="module")
def crds() -> Path:
    """KubeRay's definitions, which are not part of the project."""
    for parent in ROOT.parents:
        if (found := parent / "shared" / "kuberay-crds").is_dir():
            return found
    pytest.skip("KubeRay's CRDs are not here: put those of release 1.7 into ../shared/kuberay-crds")


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("*.y*ml")), ids=lambda file: file.relative_to(DEPLOY).as_posix())
def test_every_file_is_yaml(file: Path) -> None:
    assert all(document for document in yaml.safe_load_all(file.read_text()))


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("run.yaml")), ids=lambda file: file.parent.name)
def test_every_run_is_a_configuration(file: Path) -> None:
    assert config.load(file).serve.host == "0.0.0.0"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_to_what_kubernetes_and_kuberay_know(overlay: str, crds: Path) -> None:
    documents = render(DEPLOY / "overlays" / overlay)
    assert {"RayJob", "RayService", "ConfigMap", "NetworkPolicy"} <= {document["kind"] for document in documents}
    assert checked(documents, crds) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_references_hold(overlay: str) -> None:
    assert broken(render(DEPLOY / "overlays" / overlay)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_not_root_and_may_nothing(overlay: str) -> None:
    for document in render(DEPLOY / "overlays" / overlay):
        for _, template in pods(document):
            assert template["spec"]["securityContext"]["runAsNonRoot"]
            for container in template["spec"]["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert container["resources"]["limits"].keys() >= {"cpu", "memory"}


def test_a_changed_run_is_a_changed_cluster() -> None:
    documents = {document["kind"]: document for document in render(DEPLOY / "overlays" / "cpu")}
    name = documents["ConfigMap"]["metadata"]["name"]
    assert name.startswith("streamcl-run-")
    for kind in ("RayJob", "RayService"):
        assert f"'configMap': {{'name': '{name}'}}" in str(documents[kind])


@pytest.mark.parametrize("typo", TYPOS, ids=lambda typo: f"{typo.file}: {typo.wrong}")
def test_a_typing_error_is_found(typo: Typo, crds: Path, tmp_path: Path) -> None:
    assert planted(typo, DEPLOY, crds, tmp_path / "deploy")


@pytest.mark.parametrize("seed", range(6))
def test_two_swapped_letters_in_a_key_are_found(seed: int, crds: Path) -> None:
    where, changed = misspelt(render(DEPLOY / "overlays" / OVERLAYS[seed % 2]), seed)
    assert checked(changed, crds), where


def test_serve_keys_that_ray_would_take_silently_are_refused() -> None:
    service = next(one for one in render(DEPLOY / "overlays" / "cpu") if one["kind"] == "RayService")
    right = service["spec"]["serveConfigV2"]
    assert serve_problems(right) == []
    assert serve_problems(right.replace("max_replicas_per_node", "max_replicas_a_node"))
    assert serve_problems(right.replace("streamcl.app:app", "streamcl.app:ap"))


def test_the_application_that_serve_imports_is_built_from_a_run_file() -> None:
    bound = app({"run": str(ROOT / "examples" / "quickstart.yaml"), "overrides": ["serve.max_batch=3"]})
    deployment = bound._bound_deployment
    assert deployment.name == "streamcl"
    assert deployment.max_ongoing_requests == 12


def test_rules_in_cel_are_not_passed_over(crds: Path) -> None:
    job = next(one for one in render(DEPLOY / "overlays" / "cpu") if one["kind"] == "RayJob")
    job["spec"]["managedBy"] = "ray.io/kuberay-operator"
    assert any("CEL" in wrong for wrong in manifests.problems([job], crds))
