"""Secrets are named where they lie, never written down: `env:NAME` or `file:PATH`, read when they are needed."""

from __future__ import annotations

import os
from pathlib import Path

from streamcl.errors import ConfigError


def checked(reference: str, where: str) -> str:
    """`reference`, if it names an environment variable or a file.  Raises ConfigError, which never shows it."""
    kind, colon, name = reference.partition(":")
    if kind not in ("env", "file") or not colon or not name:
        raise ConfigError(f"{where} does not say where the secret lies: write env:NAME or file:PATH, not the secret")
    return reference


def read(reference: str, where: str) -> str:
    """The secret itself, without a newline at its end.  Raises ConfigError."""
    kind, _, name = checked(reference, where).partition(":")
    try:
        secret = os.environ[name] if kind == "env" else Path(name).read_text(encoding="utf-8").rstrip("\r\n")
    except KeyError:
        raise ConfigError(f"{where}: the environment has no variable {name}; set it and start again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: {name} cannot be read ({type(error).__name__}); mount the secret there") from None
    if not secret:
        raise ConfigError(f"{where}: {reference} is empty; put the secret there")
    return secret
