"""`streamcl versions`: what a run has published."""

from __future__ import annotations

import json

import typer

from streamcl.cli.base import AsJson, File, Overrides

app = typer.Typer(no_args_is_help=True, help="Versions that a run has published.")


@app.command("ls")
def ls(file: File, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Every version: number, digest, task, window, scores; the live one is marked."""
    from streamcl.status import status_of

    found = status_of(file, overrides or ())
    if as_json:
        typer.echo(json.dumps(found["versions"], indent=1))
        return
    for version in found["versions"]:
        mark = "*" if version["number"] == found["live"] else " "
        scores = "  ".join(f"{task} {score:.0%}" for task, score in version["scores"].items())
        about = f"window {version['window']:<4} {version['task']:<20}"
        typer.echo(f"{mark} v{version['number']:<4} {version['digest'][:12]}  {about} {scores}")
    if not found["versions"]:
        typer.echo("no version yet")
