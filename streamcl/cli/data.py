"""Commands on streams themselves: look at one before a run reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from streamcl.cli.base import AsJson

Where = Annotated[str, typer.Argument(metavar="URL|RUN.YAML", help="A file, folder or glob, or a run's configuration.")]
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as source.columns.messages=chat.")
]


def inspect(
    where: Where,
    settings: Settings = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to look at.")] = 64,
    sheet: Annotated[Path, typer.Option(help="Where the contact sheet of the images goes.")] = Path("inspect.png"),
    as_json: AsJson = False,
) -> None:
    """What a run would read there: schema, first samples, images as a contact sheet, and what would be refused."""
    from streamcl.inspection import as_text, inspected, source_of

    found = inspected(source_of(where, settings or ()), rows=rows, sheet=sheet)
    typer.echo(json.dumps(found, indent=1) if as_json else as_text(found))


def produce(
    where: Annotated[str, typer.Argument(metavar="SOURCE", help="A file, folder or glob, zoo:stream, or a run.yaml.")],
    sink: Annotated[
        str,
        typer.Argument(
            metavar="SINK",
            help="kafka://host:port/topic, a run.yaml that reads Kafka, http(s)://host/v1/samples (with the key in "
            "STREAMCL_API_KEY), or a folder's URL (Parquet; with /*.jsonl at its end, JSON Lines).",
        ),
    ],
    settings: Settings = None,
    rate: Annotated[float, typer.Option(min=0.0, help="Samples a second at most; 0: as fast as it goes.")] = 0.0,
) -> None:
    """Feed a stream into another, from its start to its end. Sent again, its samples are noticed as repeats."""
    from streamcl.inspection import source_of
    from streamcl.produce import produce_shown

    if not produce_shown(source_of(where, settings or ()), sink, rate=rate):
        raise typer.Exit(130)
