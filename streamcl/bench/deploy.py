"""Deployment files: are they valid, are typing errors found, and does every panel and alert read what a run exports?

python -m streamcl.bench.deploy              both parts
python -m streamcl.bench.deploy manifests    no Ray, half a minute
python -m streamcl.bench.deploy metrics      the quickstart with fewer samples, watched by Debian's Prometheus
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import compose_spec
import httpx
import yaml
from rich.console import Console

from streamcl.bench.report import Claim, about, save, saved
from streamcl.cluster.metrics import exporters
from streamcl.config import load
from streamcl.learner import Learner
from streamcl.run import run_to_the_end
from streamcl.testing import dashboard, free_port
from streamcl.testing.manifests import render
from streamcl.testing.scrape import Scraper
from streamcl.testing.typos import TYPOS, checked, misspelt, planted, wrongs

COMMAND = "python -m streamcl.bench.deploy"
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PARTS = ("manifests", "metrics")
SWAPPED = 60
"""Keys of rendered manifests in which two letters are swapped, one at a time."""
STREAM = "zoo:stream?tasks=digits,animals&train=96&test=20"
SMALL = (
    "train.epochs=1", "window.samples=48", "strategy.replay_rows=16", "evaluate.samples=10", "detector.kind=labels",
)  # fmt: skip
"""By labels, for so few samples are one task to the detector, and a run of one version ends before it is scraped."""


def definitions() -> Path:
    """KubeRay's CRDs, which are not part of the project."""
    for parent in ROOT.parents:
        if (found := parent / "shared" / "kuberay-crds").is_dir():
            return found
    raise SystemExit("put KubeRay's CRDs of release 1.7 into ../shared/kuberay-crds")


def manifests(say: Console) -> dict[str, Any]:
    """Overlays, compose file and image are checked, then typing errors are planted."""
    crds = definitions()
    overlays = sorted((DEPLOY / "overlays").iterdir())
    wrong = {path.name: wrongs(path, crds) for path in overlays}
    documents = {path.name: render(path) for path in overlays}
    say.print({name: f"{len(documents[name])} objects, {len(wrong[name])} wrong" for name in wrong})
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = len(compose_spec.PyCompose.from_json(json.dumps(compose)))
    lint = subprocess.run(["hadolint", str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False).stdout
    missed = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, typo in enumerate(TYPOS):
            if not planted(typo, DEPLOY, crds, Path(scratch) / str(number)):
                missed.append(f"{typo.file}: {typo.wrong}")
    say.print(f"{len(TYPOS)} typing errors, missed: {missed}")
    unseen = []
    for seed in range(SWAPPED):
        where, changed = misspelt(documents[overlays[seed % len(overlays)].name], seed)
        if not checked(changed, crds):
            unseen.append(where)
    say.print(f"{SWAPPED} keys with two letters swapped, missed: {unseen}")
    return {
        "part": "manifests",
        "objects": {name: len(found) for name, found in documents.items()},
        "wrong": wrong,
        "services": services,
        "hadolint": lint,
        "typos": len(TYPOS),
        "missed": missed,
        "swapped": SWAPPED,
        "unseen": unseen,
    }


def metrics(say: Console) -> dict[str, Any]:
    """A run, scraped by Prometheus: the state of every rule, and what each panel's queries give."""
    panels = dashboard.panels(json.loads((DEPLOY / "grafana" / "streamcl.json").read_text()))
    schema = dashboard.unknown(json.loads((DEPLOY / "grafana" / "streamcl.json").read_text()))
    scraper = Scraper(exporters)
    with tempfile.TemporaryDirectory() as scratch, prometheus(Path(scratch)) as server:
        scraper.exporters = lambda: announced(Path(scratch))
        scraper.start()
        overrides = (f"store.path={scratch}/store", f"serve.port={free_port()}", f"source.path={STREAM}#train")
        config = load(ROOT / "examples" / "quickstart.yaml", [*SMALL, *overrides, f"evaluate.path={STREAM}#test"])
        began = time.time()
        summary = run_to_the_end(Learner(config), quiet=True)
        scraper.stop()
        rules = server("rules", {})["groups"]
        health = {rule["name"]: rule["health"] for group in rules for rule in group["rules"]}
        span = {"start": began, "end": time.time(), "step": 1}
        empty = [
            f"{title}: {query}"
            for title, queries in panels.items()
            for query in queries
            if not server("query_range", {"query": query.replace("$run", config.name), **span})["result"]
        ]
    wanted = {name for queries in panels.values() for query in queries for name in dashboard.metrics(query)}
    say.print({"versions": len(summary["versions"]), "panels": len(panels), "empty": empty, "rules": len(health)})
    return {
        "part": "metrics",
        "versions": len(summary["versions"]),
        "panels": len(panels),
        "schema": schema,
        "missing": sorted(wanted - scraper.values.keys()),
        "exported": sorted(name for name in scraper.values if name.startswith("ray_streamcl_")),
        "empty": empty,
        "rules": health,
    }


def announced(folder: Path) -> list[str]:
    """The run's exporters, also told to Prometheus."""
    found = exporters()
    if found:
        hosts = [url.removeprefix("http://").removesuffix("/metrics") for url in found]
        (folder / "targets.json").write_text(json.dumps([{"targets": hosts}]))
    return found


@contextmanager
def prometheus(folder: Path) -> Iterator[Any]:
    """Debian's Prometheus with our rules, reading `targets.json`; a function that asks its API."""
    tool = shutil.which("prometheus")
    if tool is None:
        raise SystemExit("Prometheus is not installed: apt-get install prometheus")
    shutil.copy(DEPLOY / "prometheus" / "rules.yaml", folder)
    scrape = {"job_name": "streamcl", "file_sd_configs": [{"files": ["targets.json"], "refresh_interval": "1s"}]}
    settings = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": ["rules.yaml"]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump({**settings, "scrape_configs": [scrape]}))
    port = free_port()
    flags = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    listen = f"--web.listen-address=127.0.0.1:{port}"
    with subprocess.Popen([tool, *flags, listen], stderr=subprocess.DEVNULL) as process:
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=60.0)

        def asked(path: str, params: Mapping[str, Any]) -> Any:
            return client.get(path, params=dict(params)).raise_for_status().json()["data"]

        try:
            yield asked
        finally:
            process.terminate()


def claims(rows: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """8.2 and 8.6, as far as they were measured."""
    found = []
    if row := rows.get("manifests"):
        wrong = sum(map(len, row["wrong"].values()))
        objects = ", ".join(f"{name} {count}" for name, count in row["objects"].items())
        value = (
            f"{wrong} wrong in overlays of {objects} objects; compose.yaml ({row['services']} services) and Dockerfile "
            f"without complaint; {row['typos'] - len(row['missed'])} of {row['typos']} typing errors found, and "
            f"{row['swapped'] - len(row['unseen'])} of {row['swapped']} keys with two letters swapped"
        )
        holds = not (wrong or row["hadolint"] or row["missed"] or row["unseen"])
        what = "rendered manifests validate strictly (Kubernetes' schemas, KubeRay's CRDs, references); planted errors"
        found.append(Claim("8.2", what, "0 wrong; 10 of 10 found", value, holds, f"{COMMAND} manifests"))
    if row := rows.get("metrics"):
        sick = [name for name, health in row["rules"].items() if health != "ok"]
        value = (
            f"{len(row['schema'])} unknown keys; {row['panels']} panels, {len(row['missing'])} metrics missing in the "
            f"scrape, {len(row['empty'])} queries without an answer from Prometheus; {len(row['rules'])} rules, "
            f"{len(sick)} not ok; {len(row['exported'])} metrics of ours in a run of {row['versions']} versions"
        )
        holds = bool(row["versions"] and row["rules"]) and not (
            sick or any(row[k] for k in ("schema", "missing", "empty"))
        )
        what = (
            "dashboard is of Grafana's schema, its panels show what a run exports, Debian's Prometheus runs the rules"
        )
        found.append(Claim("8.6", what, "0 unknown, 0 missing, 0 not ok", value, holds, f"{COMMAND} metrics"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what to measure anew; all without any")
    parts = parser.parse_args().parts or PARTS
    say = Console(stderr=True)
    rows = {row["part"]: row for row in saved("deploy")["rows"]}
    for part in parts:
        rows[part] = {"manifests": manifests, "metrics": metrics}[part](say)
        save("deploy", about(seeds=[0]), rows=[*rows.values()], claims=claims(rows))
    for claim in claims(rows):
        say.print(f"{claim.id} {'holds' if claim.holds else 'MISSED'}: {claim.value}")


if __name__ == "__main__":
    main()
