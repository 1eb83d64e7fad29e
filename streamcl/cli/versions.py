"""`streamcl versions`: what a run has published, what answers, and where it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from streamcl.cli.base import AsJson, File, Overrides
from streamcl.errors import Refused

app = typer.Typer(no_args_is_help=True, help="Versions: list, promote, roll back, compare, trace, export.")
Number = Annotated[int, typer.Argument(metavar="N", help="A version's number.")]
Why = Annotated[str, typer.Option("--why", help="The reason, for the log.")]


@app.command("ls")
def ls(file: File, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Every version: number, digest, task, window, scores; * marks the live one, ! what the gate refused."""
    from streamcl.status import status_of

    found = status_of(file, overrides or ())
    if as_json:
        typer.echo(json.dumps(found["versions"], indent=1))
        return
    for version in found["versions"]:
        mark = "*" if version["number"] == found["live"] else "!" if version["refused"] else " "
        scores = "  ".join(f"{task} {score:.0%}" for task, score in version["scores"].items())
        about = f"window {version['window']:<4} {version['task']:<20}"
        typer.echo(f"{mark} v{version['number']:<4} {version['digest'][:12]}  {about} {scores}")
        if version["refused"]:
            typer.echo(f"        refused: {version['refused']}")
    if not found["versions"]:
        typer.echo("no version yet")


@app.command("promote")
def promote(file: File, number: Number, overrides: Overrides = None, why: Why = "promoted by hand") -> None:
    """Let version N answer. Every replica has loaded and tried it before; learning goes on from it."""
    from streamcl.operate import make_live, opened

    typer.echo(make_live(opened(file, overrides or ()), number, why=why))


@app.command("rollback")
def rollback(
    file: File, overrides: Overrides = None, why: Why = "rolled back by hand",
    to: Annotated[int | None, typer.Option("--to", help="The version to go to; else the one before.")] = None,
) -> None:  # fmt: skip
    """Let the version that answered before answer again. Twice goes back two steps."""
    from streamcl.operate import go_back, opened

    typer.echo(go_back(opened(file, overrides or ()), to, why=why))


@app.command("purge")
def purge(
    file: File, source: Annotated[str, typer.Option("--source", help="The samples' `source`.")],
    overrides: Overrides = None, why: Why = "purged by hand",
) -> None:  # fmt: skip
    """Drop a source's rows from replay; name the versions that were trained on some, and the newest that was not.

    What the source sends later is taken in as before: end that at the source.
    """
    from streamcl.operate import opened
    from streamcl.operate import purge as drop

    said, stained, clean = drop(opened(file, overrides or ()), source, why=why)
    typer.echo(said)
    typer.echo("tainted: " + (", ".join(f"v{number}" for number in stained) or "no version"))
    typer.echo(f"newest clean version: v{clean.number}; rollback --to {clean.number}" if clean else "no clean version")


@app.command("diff")
def diff(file: File, one: Number, two: Number, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Two versions: scores, settings that differ, and how far each layer's update has moved."""
    from streamcl.compare import difference
    from streamcl.operate import opened

    found = difference(opened(file, overrides or ()).registry, one, two)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for task, pair in found["scores"].items():
        typer.echo(f"{task:<24} " + " → ".join("-" if score is None else f"{score:.1%}" for score in pair))
    for name, pair in found["config"].items():
        typer.echo(f"{name}: {pair[0]} → {pair[1]}")
    for layer, distance in sorted((found["layers"] or {}).items(), key=lambda item: -item[1]):
        typer.echo(f"{distance:8.4f}  {layer}")
    if found["layers"] is None:
        typer.echo("the two are of different forms: their weights cannot be compared")


@app.command("lineage")
def lineage(
    file: File, number: Annotated[int | None, typer.Argument(metavar="N")] = None, overrides: Overrides = None,
    sample: Annotated[str | None, typer.Option("--sample", help="Trace this sample's id forward instead.")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Windows, positions, sources and samples that version N was made of; or where a sample went."""
    from streamcl.lineage import about_sample, about_version, lines
    from streamcl.operate import opened

    if (number is None) == (sample is None):
        raise Refused("name a version, or a sample by --sample ID")
    registry = opened(file, overrides or ()).registry
    found = about_version(registry, number) if number is not None else about_sample(registry, str(sample))
    typer.echo(json.dumps(found, indent=1) if as_json else "\n".join(lines(found)))


@app.command("export")
def export(file: File, number: Number, folder: Path, overrides: Overrides = None) -> None:
    """Write version N to a folder: PEFT's layout, a README, and its lineage as JSON."""
    from streamcl.compare import export as write
    from streamcl.operate import opened

    typer.echo(f"{folder}: {write(opened(file, overrides or ()).registry, number, folder)}")
