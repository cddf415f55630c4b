"""The `patchnpack` command: thin commands over library calls."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from importlib import metadata
from typing import Annotated

import typer

from patchnpack.cli.data import make_index, shard, show, stats
from patchnpack.cli.errors import flags_of, in_flags, message_of, notes_of
from patchnpack.cli.evaluation import add_evaluation_commands
from patchnpack.cli.prepack import add_prepack_commands
from patchnpack.cli.probe import add_probe_commands
from patchnpack.cli.report import report
from patchnpack.cli.training import add_training_commands
from patchnpack.loaders.errors import BadDataError

_ABOUT = "Load images at native resolution and pack them into sequences for vision transformers."

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=_ABOUT)


def run() -> None:
    """Run the command; an error the user can fix is one line that names the flag, without a traceback."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError, BadDataError) as error:
        if "--traceback" in sys.argv:
            raise
        from rich.console import Console

        console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        message = in_flags(message_of(error), flags_of(_parameters(sys.argv[1:])))
        console.print(f"error: {message}{notes_of(error)}")
        sys.exit(2)


def _parameters(arguments: list[str]) -> list[object]:
    """The parameters of the command that the arguments call; the options before a command take no value."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # it is a group
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    return list(commands[name].params) if name in commands else []


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"patchnpack {metadata.version('patchnpack')}")
        raise typer.Exit


def _set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Choose what goes to standard error besides errors: every log line, warnings and progress, or nothing."""
    if quiet and verbose:
        raise ValueError("--quiet and --verbose contradict each other; give only one of them")
    logging.getLogger("patchnpack").setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)
    if verbose:
        logging.basicConfig(format="%(message)s")


@app.callback(help=_ABOUT)
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show neither progress nor warnings.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log what the loaders do.")] = False,
) -> None:
    _set_verbosity(quiet=quiet, verbose=verbose)


app.command()(shard)
app.command("index")(make_index)
app.command()(report)
app.command()(show)
app.command()(stats)
add_prepack_commands(app)
add_training_commands(app)
add_evaluation_commands(app)
add_probe_commands(app)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Report which libraries are installed, what they support, and what each extra still needs."""
    from rich.console import Console
    from rich.table import Table

    from patchnpack.cli.doctor import diagnose, findings

    diagnosis = diagnose()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(diagnosis), indent=2))
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    for subject, finding in findings(diagnosis):
        table.add_row(subject, finding)
    Console(highlight=False, markup=False).print(table)
