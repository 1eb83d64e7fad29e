"""The run as one value: YAML, overrides, and the dataclasses of the components, checked at the door.

A component's dataclass is its YAML section. `kind` chooses among a folder's KINDS; nothing is declared twice.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from streamcl import detect, strategies, stream
from streamcl.errors import ConfigError
from streamcl.sections import Config

KINDS: Mapping[str, Mapping[str, Any]] = {
    "source": stream.KINDS,
    "detector": detect.KINDS,
    "strategy": strategies.KINDS,
}
"""Sections that have a `kind`, and what it may be."""

SHORT = {**dict.fromkeys(KINDS, "kind"), "store": "path", "model": "path"}
"""Sections that may be written as one value, and what it is."""

Tree = dict[str, Any]


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file, with `key.sub=value` overrides.  Raises ConfigError."""
    try:
        tree = _yaml(Path(path).read_text(encoding="utf-8"), str(path)) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Give the path of a YAML file") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds a {type(tree).__name__}; a mapping of sections is wanted")
    for override in overrides:
        apply(tree, override)
    return parse(tree)


def apply(tree: Tree, override: str) -> None:
    """Puts one `key.sub=value` into `tree`, in place. Another `kind` drops the settings of the old one.

    Raises ConfigError.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"override {override!r}: write key=value, such as strategy.kind=replay")
    *sections, key = path.split(".")
    for section in sections:
        if isinstance(short := tree.setdefault(section, {}), str) and section in SHORT:
            tree[section] = {SHORT[section]: short}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {section} is a value, not a section")
    value = _yaml(text, f"override {override!r}")
    if key == "kind" and tree.get("kind", value) != value:
        tree.clear()
    tree[key] = value


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {error}") from error


def parse(tree: Tree) -> Config:
    """A mapping of sections as a Config.  Raises ConfigError."""
    config: Config = _build(Config, tree, "")
    return config


def _build(cls: Any, tree: Any, where: str, start: Any = None) -> Any:
    """The dataclass `cls` from a mapping, or `start` with what it says; `where`: its path in the file, for messages."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{where or 'the file'} is {tree!r}; a mapping is wanted")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    for key in tree:
        if key not in known:
            raise ConfigError(_unknown(_join(where, key), str(key), sorted(known)))
    values = {key: _value(hints[key], tree[key], _join(where, key), _default(known[key])) for key in tree}
    for name, spec in known.items() if start is None else ():
        if name not in values and spec.default is MISSING and spec.default_factory is MISSING:
            raise ConfigError(f"{_join(where, name)} is missing: {_doc(cls, name)}")
    try:
        return cls(**values) if start is None else replace(start, **values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where or 'the file'}: {error}") from error


def _default(spec: Field[Any]) -> Any:
    """The section that a field holds when nothing is said of it; None where it is none, or must be said."""
    made = spec.default_factory() if spec.default_factory is not MISSING else spec.default
    return made if is_dataclass(made) else None


def _value(hint: Any, value: Any, where: str, start: Any = None) -> Any:
    if where in KINDS:
        section = dict(value) if isinstance(value, dict) else {"kind": value}
        kind = section.pop("kind", None)
        if not isinstance(kind, str) or kind not in KINDS[where]:
            raise ConfigError(_unknown(f"{where}.kind {kind!r}", str(kind), sorted(KINDS[where])))
        return _build(KINDS[where][kind], section, where)
    if is_dataclass(hint):
        tree = {SHORT[where]: value} if where in SHORT and isinstance(value, str) else value
        return _build(hint, tree, where, start)
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        shown = "not shown" if where.endswith("password") else repr(value)
        raise ConfigError(f"{where} is {shown}: {error.errors()[0]['msg'].lower()}") from None


def _unknown(what: str, key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what}: {hint}It may be {', '.join(known)}"


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _doc(cls: Any, name: str) -> str:
    hint = typing.get_type_hints(cls)[name]
    return f"a {getattr(hint, '__name__', hint)} is wanted"


def dump(config: Config) -> str:
    """The whole configuration, defaults included, as YAML that `load` reads."""
    tree = asdict(config)
    for section, kinds in KINDS.items():
        cls = type(getattr(config, section))
        kind = next(name for name, known in kinds.items() if known is cls)
        tree[section] = {"kind": kind, **tree[section]}
    text: str = yaml.safe_dump(_plain(tree), sort_keys=False, width=100)
    return text


def _plain(value: Any) -> Any:
    """Tuples as lists, so that YAML needs no tags."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
