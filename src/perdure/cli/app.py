"""All commands of ``perdure``."""

from __future__ import annotations

from typing import Annotated

import typer

from perdure.cli import reading, serving, tools, writing

app = typer.Typer(
    name="perdure",
    help="Durable execution: run workers, look at workflows, talk with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
workflow = typer.Typer(
    name="workflow",
    help="Look at workflows, start them, talk with them, end them.",
    no_args_is_help=True,
)
app.add_typer(workflow)
serving.add_to(app)
tools.add_to(app)
reading.add_to(workflow)
writing.add_to(workflow)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("perdure"))
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass
