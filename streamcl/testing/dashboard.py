"""Grafana dashboards and Prometheus rules, checked without either: known keys, queries that parse, their metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def unknown(dashboard: Mapping[str, Any]) -> list[str]:
    """What Grafana's own model of a dashboard does not know, or changes."""
    register_default_plugins()
    kept = json.loads(JSONEncoder().encode(Dashboard.from_json(dict(dashboard))))
    return list(_lost(dict(dashboard), kept, ""))


def _lost(given: Any, kept: Any, where: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                yield f"{where}.{key}: unknown"
            else:
                yield from _lost(value, kept[key], f"{where}.{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for index, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from _lost(one, other, f"{where}[{index}]")
    elif given != kept:
        yield f"{where}: {given!r} is read as {kept!r}"


def panels(dashboard: Mapping[str, Any]) -> dict[str, list[str]]:
    """The queries of each panel, by title."""
    return {
        panel["title"]: [target["expr"] for target in panel["targets"]]
        for panel in dashboard["panels"]
        if panel["type"] != "row"
    }


def rules(file: Path) -> dict[str, str]:
    """The expressions of a rules file, by the name of the alert or of the recorded series."""
    groups = yaml.safe_load(file.read_text())["groups"]
    return {rule.get("alert") or rule["record"]: rule["expr"] for group in groups for rule in group["rules"]}


def metrics(query: str) -> set[str]:
    """The names of the series that a query reads.  Raises ValueError if it does not parse."""
    return set(_selected(promql_parser.parse(query.replace("$run", "run"))))


def _selected(node: Any) -> Iterator[str]:
    if isinstance(node, promql_parser.VectorSelector):
        yield str(node.name)
    for part in ("lhs", "rhs", "expr", "param", "vector_selector"):
        if (inner := getattr(node, part, None)) is not None and not isinstance(inner, str | float):
            yield from _selected(inner)
    for inner in getattr(node, "args", None) or ():
        yield from _selected(inner)
