"""The command line. Heavy imports wait until a command needs them, so `--help` answers at once."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamcl.cli import data, deadletter, versions
from streamcl.cli.base import AsJson, File, Overrides
from streamcl.cli.doctor import doctor
from streamcl.cli.status import status
from streamcl.errors import ConfigError, StreamclError

if TYPE_CHECKING:
    from streamcl.learner import Learner

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__ and (
    "Keeps a vision-language model current from a live stream, without forgetting and without downtime."
))  # fmt: skip
app.add_typer(versions.app, name="versions")
app.add_typer(deadletter.app, name="deadletter")
app.command("inspect")(data.inspect)
app.command("produce")(data.produce)


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


app.command()(status)
app.command()(doctor)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")] = "") -> None:
    """Measure: the benchmark NAME with its own options (try NAME --help), or a list of them."""
    folder = Path(__file__).parents[1] / "bench"
    known = sorted(path.stem for path in folder.glob("*.py") if "_" not in path.stem and path.stem != "report")
    if name not in known:
        raise ConfigError(f"no benchmark {name!r}; there are {', '.join(known)}")
    sys.argv = [f"streamcl bench {name}", *context.args]
    runpy.run_module(f"streamcl.bench.{name}", run_name="__main__")


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
