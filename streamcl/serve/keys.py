"""API keys: who may do what. Keys come from a mounted file or the environment; only their sha256 is kept.

A file (or variable) holds a key a line, or after a semicolon: its scopes, then the key itself or its digest.

    predict       sk-2f1c…                     # may ask
    predict,push  sha256:9f86d081884c7d65…     # may ask, and add samples
    admin         sha256:60303ae22b998861…     # may do everything
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from streamcl.errors import ConfigError
from streamcl.serve.errors import ApiError

SCOPES = ("predict", "push", "admin")
"""Asking for answers; adding samples; everything, and what only operators may see."""
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Keys:
    """Known keys. Without any, everyone may do everything."""

    scopes: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)
    """By sha256 (hex) of the key."""

    def check(self, authorization: str | None, scope: str) -> str:
        """Lets pass who may do `scope`: the digest of their key, "" where there are no keys.

        Raises ApiError: 401 for no key or an unknown one, 403 for another scope.
        """
        if not self.scopes:
            return ""
        kind, _, key = (authorization or "").partition(" ")
        asked = hashlib.sha256(key.strip().encode()).hexdigest() if kind.lower() == "bearer" else ""
        held: frozenset[str] = frozenset()
        for digest, scopes in self.scopes.items():  # all of them, so that the time taken tells nothing
            held |= scopes if hmac.compare_digest(digest, asked) else frozenset()
        if not held:
            raise ApiError(401, "no valid API key; send 'Authorization: Bearer <key>'", code="invalid_api_key")
        if not held & {scope, "admin"}:
            message = f"this key may {', '.join(sorted(held))}; {scope} is needed"
            raise ApiError(403, message, code="insufficient_scope")
        return asked

    @staticmethod
    def parse(text: str, where: str) -> Keys:
        """The keys in a file's or variable's text; `where` names it in errors.  Raises ConfigError, without the key."""
        found: dict[str, frozenset[str]] = {}
        for number, line in enumerate(re.split(r"[\n;]", text), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            scopes = frozenset(words[0].split(","))
            if len(words) != 2 or not scopes <= set(SCOPES):
                raise ConfigError(f"{where}, line {number}: write scopes ({', '.join(SCOPES)}), then a key")
            if words[1].startswith("sha256:") and not DIGEST.fullmatch(words[1]):
                raise ConfigError(f"{where}, line {number}: 64 hex digits are wanted after sha256:")
            known = DIGEST.fullmatch(words[1])
            digest = words[1].removeprefix("sha256:") if known else hashlib.sha256(words[1].encode()).hexdigest()
            found[digest] = found.get(digest, frozenset()) | scopes
        if not found:
            raise ConfigError(f"{where} holds no key; write scopes, then a key, on a line of their own")
        return Keys(found)


@dataclass(frozen=True)
class KeysConfig:
    """Where the API keys are. They are never written here; without any, the endpoint may be reached from this machine
    only."""

    file: str | None = None
    """A mounted file of keys."""
    env: str | None = None
    """The name of an environment variable of keys, as the replicas see it."""
    public: bool = False
    """Serve on any host without keys, because something before the endpoint asks for them."""

    @property
    def wanted(self) -> bool:
        return self.file is not None or self.env is not None

    def load(self) -> Keys:
        """The keys, read anew.  Raises ConfigError."""
        found: dict[str, frozenset[str]] = {}
        if self.file is not None:
            try:
                text = Path(self.file).read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"serve.keys.file {self.file!r} cannot be read: {error}") from error
            found |= Keys.parse(text, f"serve.keys.file {self.file}").scopes
        if self.env is not None:
            if self.env not in os.environ:
                raise ConfigError(f"serve.keys.env: the environment has no variable {self.env!r}")
            for digest, scopes in Keys.parse(os.environ[self.env], f"serve.keys.env {self.env}").scopes.items():
                found[digest] = found.get(digest, frozenset()) | scopes
        return Keys(found)

    def check_host(self, host: str) -> None:
        """Raises ConfigError if others could reach `host` and no key would be asked for."""
        if not (self.wanted or self.public or _loopback(host)):
            raise ConfigError(
                f"serve.host {host!r} may be reached by others and no API keys are set: give serve.keys.file or "
                "serve.keys.env, or serve.keys.public=true if something before it asks for keys"
            )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
