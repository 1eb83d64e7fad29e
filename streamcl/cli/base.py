"""What every command's signature is made of."""

from __future__ import annotations

from typing import Annotated

import typer

File = Annotated[str, typer.Argument(metavar="RUN.YAML", help="The run's configuration.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as strategy.kind=replay.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
