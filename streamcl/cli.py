"""The command line. Heavy imports wait until a command needs them, so `--help` answers at once."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamcl.errors import ConfigError, StreamclError

if TYPE_CHECKING:
    from streamcl.learner import Learner

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__ and (
    "Keeps a vision-language model current from a live stream, without forgetting and without downtime."
))  # fmt: skip
versions_app = typer.Typer(no_args_is_help=True, help="Versions that a run has published.")
app.add_typer(versions_app, name="versions")
letters_app = typer.Typer(no_args_is_help=True, help="Samples that were refused, and why.")
app.add_typer(letters_app, name="deadletter")

File = Annotated[str, typer.Argument(metavar="RUN.YAML", help="The run's configuration.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as strategy.kind=replay.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.command()
def check(file: File, overrides: Overrides = None) -> None:
    """Resolve and validate a configuration and print it whole. Touches nothing."""
    from streamcl.config import dump, load

    typer.echo(dump(load(file, overrides or ())), nl=False)


@app.command()
def run(file: File, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Learn from the stream and serve what is learned. Goes on where the same store was left."""
    from streamcl.run import run_to_the_end

    learner = _learner(file, overrides)
    signal.signal(signal.SIGINT, lambda *_: _stop(learner))
    signal.signal(signal.SIGTERM, lambda *_: _stop(learner))
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):  # Ray too may have something to say
        result = run_to_the_end(learner, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(result, indent=1))


@app.command()
def serve(file: File, overrides: Overrides = None) -> None:
    """Serve only: answer with the live version of the run's store, and follow it."""
    from streamcl.run import serve_until_stopped

    serve_until_stopped(_learner(file, overrides).config)


@app.command()
def status(file: File, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Positions, samples by fate and whether they add up, tasks, versions, and what is live."""
    from streamcl.status import status_of

    typer.echo(json.dumps(status_of(file, overrides or ()), indent=1) if as_json else _lines(file, overrides))


@versions_app.command("ls")
def versions_ls(file: File, overrides: Overrides = None, as_json: AsJson = False) -> None:
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


@letters_app.command("ls")
def letters_ls(file: File, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """The latest dead letters: where each lies in the source, its id, and why it was refused."""
    from streamcl.status import letters_of

    letters, dropped = letters_of(file, overrides or ())
    if as_json:
        typer.echo(json.dumps({"letters": [asdict(letter) for letter in letters], "dropped": dropped}, indent=1))
        return
    for letter in letters:
        typer.echo(ascii(f"{letter.partition}:{letter.position} {letter.id or '-'}  {letter.reason}")[1:-1])
    typer.echo(f"{len(letters)} dead letters" + (f"; {dropped} older ones gave way" if dropped else ""))


@letters_app.command("replay")
def letters_replay(file: File, overrides: Overrides = None) -> None:
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


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")] = "") -> None:
    """Measure: the benchmark NAME with its own options (try NAME --help), or a list of them."""
    folder = Path(__file__).parent / "bench"
    known = sorted(path.stem for path in folder.glob("*.py") if "_" not in path.stem and path.stem != "report")
    if name not in known:
        raise ConfigError(f"no benchmark {name!r}; there are {', '.join(known)}")
    sys.argv = [f"streamcl bench {name}", *context.args]
    runpy.run_module(f"streamcl.bench.{name}", run_name="__main__")


def _lines(file: str, overrides: list[str] | None) -> str:
    """The status as text."""
    from streamcl.status import status_of

    found = status_of(file, overrides or ())
    live = f"v{found['live']}" if found["live"] else "none: the bare base model answers"
    counts = "  ".join(f"{name} {count}" for name, count in found["counters"].items())
    counts += f"  unaccounted {found['unaccounted']}"
    heading = {"store": found["store"], "live": live, "samples": counts, "tasks": ", ".join(found["tasks"])}
    lines = [f"{name:<8} {value}" for name, value in heading.items()]
    positions = [f"  {name}: {at}" for name, at in found["positions"].items()]
    shards = ["  " + "  ".join(f"{key} {value}" for key, value in shard.items()) for shard in found["shards"]]
    return "\n".join([*lines, "positions", *positions, "shards", *shards])


def _learner(file: str, overrides: list[str] | None) -> Learner:
    from streamcl.learner import load

    return load(file, *(overrides or ()))


def _stop(learner: Learner) -> None:
    """The first Ctrl-C commits and ends; the second ends at once (nothing is lost: the log has everything)."""
    if learner.stopping:
        raise KeyboardInterrupt
    learner.stop()
    print("\nstopping: committing what was taken in (once more to end at once)", file=sys.stderr)


def main() -> None:
    """The entry point: our errors as one line and exit code 2, Ctrl-C as 130."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")  # peft asks, not the user
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except StreamclError as error:
        print(f"streamcl: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
