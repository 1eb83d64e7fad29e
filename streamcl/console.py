"""What a run looks like in a terminal: a line of progress that stays, and a line for everything that happened."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from streamcl import events as e
from streamcl.cluster.trainer import Progress as Training
from streamcl.learner import Learned
from streamcl.report import Matrix
from streamcl.serve.client import Asked

LAST = e.Finish
"""The action after which nothing follows."""
SHOWN = ("last", "avg", "bwt", "forgetting", "fwt")


class Screen:
    """Prints a run. Mutable: what the progress line says."""

    def __init__(self, console: Console) -> None:
        self.say = console.print
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
        self.progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self.line = self.progress.add_task("starting Ray, trainer and endpoint", total=None)
        self.samples = self.dead = 0

    def __enter__(self) -> Screen:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def began(self, run: str, *, store: str, url: str) -> None:
        """The first line."""
        self.say(f"[bold]{run}[/] from {store}, endpoint {url}")

    def watch(self, happening: object) -> None:
        """Hears events, actions and training progress."""
        match happening:
            case e.Arrived(arrival):
                self.samples += len(arrival)
                self.dead += len(arrival.dead)
                for letter in arrival.dead:
                    self.say(f"[yellow]dead letter[/] {letter.id or letter.position}: {letter.reason}")
                if arrival.waiting:
                    self._say(f"{self.samples} samples in · [yellow]waiting[/]: {escape(arrival.waiting)}", 0, None)
            case e.Train(window):
                replayed = sum(map(len, window.replay))
                self._say(f"window {window.id} ({window.task}): {window.size} samples + {replayed} replayed", 0, None)
            case Training(window=window, step=step, steps=steps, loss=loss):
                self._say(f"{self.samples} samples in · window {window} · loss {loss:.3f}", step, steps)
            case e.Failed(window, reason):
                self.say(f"[red]window {window.id} is not published[/]: {reason}")

    def _say(self, what: str, done: int, total: int | None) -> None:
        self.progress.update(self.line, description=what, completed=done, total=total)

    def learned(self, learned: Learned) -> None:
        """One finished window."""
        scores = learned.version.scores
        known = {task: score for task, score in scores.items() if task in learned.window.known} or scores
        shown = "  ".join(f"{task} {score:.0%}" for task, score in known.items())
        said = "[yellow]is not made live[/]" if learned.refused else "is live"
        self.say(
            f"[green]v{learned.version.number}[/] {learned.version.digest[:12]} {said} after window "
            f"{learned.window.id} of [bold]{learned.task}[/]   {shown}"
        )
        if learned.refused:
            self.say(f"   [yellow]gate[/]: {escape(learned.refused)}")

    def answered(self, asked: Asked) -> None:
        """A question to the endpoint, after a swap."""
        sample = asked.sample
        if asked.answer is None:
            self.say(f"   [red]no answer[/]: {asked.error}")
            return
        right = "[green]right[/]" if asked.answer.strip() == sample.answer else f"[red]wanted {sample.answer!r}[/]"
        self.say(
            f"   [dim]{sample.task}:[/] {sample.messages[-2].text!r} → [bold]{asked.answer!r}[/] {right} "
            f"[dim]answered by v{asked.version} {asked.digest[:12]}[/]"
        )


def table(result: Matrix, *, title: str) -> Table:
    """The accuracy matrix for a terminal, in percent; scores of tasks not yet learned are dim."""
    grid = Table(title=title, title_justify="left")
    grid.add_column("score on")
    if result.zero_shot is not None:
        grid.add_column("zero-shot", justify="right")
    for name in result.columns:
        grid.add_column(f"after {name}", justify="right")
    for row, task in enumerate(result.tasks):
        zero = [] if result.zero_shot is None else [f"[dim]{result.zero_shot[row]:.1%}[/]"]
        cells = [
            f"{score:.1%}" if column >= result.learned[row] else f"[dim]{score:.1%}[/]"
            for column, score in enumerate(result.a_TC[row])
        ]
        grid.add_row(task, *zero, *cells)
    return grid


def headline(values: Mapping[str, float | None]) -> str:
    """The metrics in one line, as far as there are any yet: with one finished task nothing can be forgotten."""
    names = {"last": "Last", "avg": "Avg", "bwt": "BWT", "forgetting": "forgetting", "fwt": "FWT"}
    shown = [(names[name], value) for name in SHOWN if (value := values.get(name)) is not None]
    return "   ".join(f"{name} [bold]{100 * value:.1f}[/]" for name, value in shown)
