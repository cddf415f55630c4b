"""The `patchnpack` command: verbs over library calls, no logic of their own."""

from __future__ import annotations

import dataclasses
import json
import sys
from importlib import metadata
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from patchnpack.cli.arguments import set_verbosity
from patchnpack.cli.data import make_index, shard, show
from patchnpack.cli.prepack import add_prepack_commands
from patchnpack.cli.report import report
from patchnpack.cli.training import add_training_commands
from patchnpack.loaders import BadDataError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Load images at native resolution and pack them for vision transformers.",
)


def run() -> None:
    """Runs the command; a mistake of the user's is one line that says what to do, without a traceback."""
    try:
        app()
    except (ValueError, OSError, BadDataError) as error:
        if "--traceback" in sys.argv:
            raise
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"error: {error}")
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"patchnpack {metadata.version('patchnpack')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the code an error was raised.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Neither progress nor warnings.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Tell what the loaders do, as they do it.")] = False,
) -> None:
    """Load images at native resolution and pack them for vision transformers."""
    set_verbosity(quiet=quiet, verbose=verbose)


app.command()(shard)
app.command("index")(make_index)
app.command()(report)
app.command()(show)
add_prepack_commands(app)
add_training_commands(app)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Tell which libraries run here, what they can do, and what is missing for each extra."""
    from patchnpack.cli.doctor import diagnose, findings

    diagnosis = diagnose()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(diagnosis), indent=2))
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    for subject, finding in findings(diagnosis):
        table.add_row(subject, finding)
    Console(highlight=False, markup=False).print(table)
