"""The `patchnpack` command: verbs over library calls, no logic of their own."""

from __future__ import annotations

import dataclasses
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from patchnpack.arguments import IMAGES, Images, Shards, Storage, open_shards, set_verbosity
from patchnpack.data_commands import make_index, shard, show
from patchnpack.loaders import BadDataError
from patchnpack.models import TrainConfig
from patchnpack.options import parse_storage_options, takes_model, takes_packing, takes_training, whole_flag
from patchnpack.packer import Packing
from patchnpack.report_commands import report
from patchnpack.training import train_on_shards

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


@app.command()
@takes_packing
@takes_model
@takes_training
def train(
    shards: Shards,
    *,
    packing: Packing,
    model: dict[str, Any],
    training: TrainConfig,
    validation: Annotated[list[str] | None, typer.Option("--validation", help="Shards to evaluate on.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the checkpoint and the history.")] = Path("runs"),
    batch_size: Annotated[int, whole_flag("Packs in a batch.")] = 4,
    label: Annotated[str, typer.Option(help="Member that holds the label, such as cls or json:FIELD.")] = "cls",
    classes: Annotated[str | None, typer.Option(help="File with one class name a line.")] = None,
    num_classes: Annotated[int | None, whole_flag("Outputs of the head; by default the highest label + 1.")] = None,
    flip: Annotated[bool, typer.Option(help="Mirror half of the training images.")] = False,
    image: Images = IMAGES,
    storage_options: Storage = None,
) -> None:
    """Train a NaViT to classify the images in SHARDS.

    patchnpack train 'train-{000000..000009}.tar' --validation validation-000000.tar --resolution fit:144 --epochs 10
    """
    result = train_on_shards(
        open_shards(shards, image, storage_options),
        open_shards(validation, image, storage_options) if validation else None,
        packing,
        training,
        model=model,
        out=out,
        batch_size=batch_size,
        label=label,
        classes=classes,
        num_classes=num_classes,
        flip=flip,
        storage_options=parse_storage_options(storage_options or []),
    )
    for name, value in result.metrics.items():
        typer.echo(f"{name}: {value:.4g}")
    typer.echo(f"wrote {result.checkpoint}")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Tell which libraries run here, what they can do, and what is missing for each extra."""
    from patchnpack.doctor import diagnose, findings

    diagnosis = diagnose()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(diagnosis), indent=2))
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    for subject, finding in findings(diagnosis):
        table.add_row(subject, finding)
    Console(highlight=False, markup=False).print(table)
