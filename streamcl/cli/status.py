"""`streamcl status`: what the log of a run says, once or again and again."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from streamcl.cli.base import AsJson, File, Overrides

EVERY_S = 2.0

Watch = Annotated[bool, typer.Option("--watch", help=f"Again every {EVERY_S:g} s, until Ctrl-C.")]


def status(file: File, overrides: Overrides = None, as_json: AsJson = False, watch: Watch = False) -> None:
    """Positions, samples by fate and whether they add up, tasks, versions, and what is live."""
    from streamcl.status import status_of

    def look(indent: int | None) -> str:
        found = status_of(file, overrides or ())
        return json.dumps(found, indent=indent) if as_json else _lines(found)

    if not watch:
        typer.echo(look(1))
        return
    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            while True:
                typer.echo(look(None))
                time.sleep(EVERY_S)
        _live(lambda: look(None))


def _live(look: Callable[[], str]) -> None:
    """The same place of the terminal, written anew."""
    from rich.live import Live
    from rich.text import Text

    with Live(Text(look()), auto_refresh=False) as live:
        while True:
            time.sleep(EVERY_S)
            live.update(Text(look()), refresh=True)


def _lines(found: dict[str, Any]) -> str:
    """The status as text."""
    live = f"v{found['live']}" if found["live"] else "none: the bare base model answers"
    counts = "  ".join(f"{name} {count}" for name, count in found["counters"].items())
    counts += f"  unaccounted {found['unaccounted']}"
    heading = {"store": found["store"], "live": live, "samples": counts, "tasks": ", ".join(found["tasks"])}
    if found["training"]:
        heading["training"] = f"window {found['training']}"
    if found["watermark"] is not None:
        clock = datetime.fromtimestamp(found["watermark"], UTC).isoformat(" ", "seconds")
        heading["clock"] = f"{clock}, {time.time() - found['watermark']:,.0f} s behind"
    lines = [f"{name:<8} {value}" for name, value in heading.items()]
    positions = [f"  {name}: {at}" for name, at in found["positions"].items()]
    shards = ["  " + "  ".join(f"{key} {value}" for key, value in shard.items()) for shard in found["shards"]]
    return "\n".join([*lines, "positions", *positions, "shards", *shards])
