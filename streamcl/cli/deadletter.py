"""`streamcl deadletter`: samples that were refused."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from streamcl.cli.base import AsJson, File, Overrides

app = typer.Typer(no_args_is_help=True, help="Samples that were refused, and why.")


@app.command("ls")
def ls(file: File, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """The latest dead letters: where each lies in the source, its id, and why it was refused."""
    from streamcl.status import letters_of

    letters, dropped = letters_of(file, overrides or ())
    if as_json:
        typer.echo(json.dumps({"letters": [asdict(letter) for letter in letters], "dropped": dropped}, indent=1))
        return
    for letter in letters:
        typer.echo(ascii(f"{letter.partition}:{letter.position} {letter.id or '-'}  {letter.reason}")[1:-1])
    typer.echo(f"{len(letters)} dead letters" + (f"; {dropped} older ones gave way" if dropped else ""))


@app.command("replay")
def replay(file: File, overrides: Overrides = None) -> None:
    """Decode the dead letters' rows again, with present limits and files. What decodes now becomes one more partition
    of the source's folder, which the next run takes in.
    """
    from streamcl.config import load
    from streamcl.status import letters_of
    from streamcl.stream.resubmit import resubmit

    letters, _ = letters_of(file, overrides or ())
    done = resubmit(load(file, overrides or ()).source, letters)
    for letter in done.refused:
        typer.echo(ascii(f"{letter.partition}:{letter.position} {letter.id or '-'}  still {letter.reason}")[1:-1])
    typer.echo(f"{done.samples} samples written to {done.partition}" if done.partition else "nothing to submit again")
    typer.echo(f"{len(done.refused)} still refused, {done.before} submitted before")
