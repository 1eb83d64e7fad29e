"""`streamcl doctor`: what would fail here, before it does."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from streamcl.cli.base import AsJson, File, Overrides

COLOURS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}


def doctor(file: File, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check ports, source, store, model, memory, versions and limits; on every node where RAY_ADDRESS names a cluster.

    Exit code 1 if something would fail.
    """
    from streamcl.config import load
    from streamcl.doctor import examine

    found = examine(load(file, overrides or ()))
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=1))
    else:
        for one in found:
            typer.echo(f"{typer.style(f'{one.level:<5}', fg=COLOURS[one.level])}{one.check:<15} {one.what}")
            if one.todo:
                typer.echo(f"{'':20} → {one.todo}")
    raise typer.Exit(int(any(one.level == "fail" for one in found)))
