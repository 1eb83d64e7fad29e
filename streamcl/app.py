"""The endpoint for Ray Serve's own configuration files, such as a RayService's: `import_path: streamcl.app:app`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamcl.cluster.server import application
from streamcl.config import load
from streamcl.learner import resolve


def app(args: Mapping[str, Any]) -> Any:
    """The application of `args: {run: RUN.YAML, overrides: [KEY=VALUE, …]}`.  Raises ConfigError."""
    overrides: Sequence[str] = args.get("overrides", ())
    return application(resolve(load(args["run"], overrides)))
