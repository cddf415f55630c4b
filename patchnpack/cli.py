"""The `patchnpack` command: verbs over library calls, no logic of their own."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from patchnpack.loaders import BadDataError, Index, PackedImageLoader, open_index, update_index, write_shards
from patchnpack.loaders.folder import CLASSES
from patchnpack.loaders.store import Store
from patchnpack.models import TrainConfig
from patchnpack.options import parse_storage_options, takes_model, takes_packing, takes_training, whole_flag
from patchnpack.packer import Packing
from patchnpack.packer.drawing import draw_packs
from patchnpack.packer.report import report as make_report
from patchnpack.report_table import print_report
from patchnpack.training import train_on_shards

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Load images at native resolution and pack them for vision transformers.",
)

Shards = Annotated[
    list[str], typer.Argument(help="Shards: paths, globs, or ranges such as 'train-{000000..000009}.tar'.")
]
Images = Annotated[str, typer.Option("--image", help="Extensions that are images, separated by semicolons.")]
Seed = Annotated[int, whole_flag("Of every shuffle and draw.")]
Storage = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-options",
        metavar="KEY=VALUE",
        help="Of remote shards: anon=true, endpoint_url=URL, retry.attempts=3; once for each.",
    ),
]
_IMAGES = "jpg;jpeg;png;webp"


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
) -> None:
    """Load images at native resolution and pack them for vision transformers."""


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar where there is a terminal, moved by a call with (done, in all)."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _open(shards: list[str], image: str, storage: dict[str, Any]) -> Index:
    source, store = shards[0] if len(shards) == 1 else shards, Store(storage_options=storage)
    with _progress("reading headers") as progress:
        return open_index(source, image=image, store=store, progress=progress)


@app.command("index")
def make_index(
    shards: Shards,
    *,
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", help="The file, .parquet or .arrow, or its address; else beside the shards."),
    ] = None,
    image: Images = _IMAGES,
    storage_options: Storage = None,
) -> None:
    """Read the headers of all images in SHARDS into an index file, or bring one up to date.

    patchnpack index 'train-{000000..000009}.tar'
    """
    with _progress("reading headers") as progress:
        store = Store(storage_options=parse_storage_options(storage_options or []))
        path, index, read = update_index(shards, out, image=image, store=store, progress=progress)
    typer.echo(
        f"{path}: {len(index)} images in {len(index.shards)} shards, of which {read} were read now; "
        f"{len(index.bad)} cannot be used, {int(index.without_image.sum())} samples have no image"
    )
    for row, reason in itertools.islice(index.bad.items(), 10):
        typer.echo(f"  {index.keys[row]!r} in {index.shards[int(index.shard_of(row))]}: {reason}")


@app.command()
def shard(
    folder: Annotated[
        Path, typer.Argument(help="The folder; its sub-folders name classes, if all images lie in some.")
    ],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the shards.")],
    images_per_shard: Annotated[int, typer.Option(help="Images in a shard, at most.")] = 1000,
    validation: Annotated[float, typer.Option(help="Share of the images, drawn at random, for validation.")] = 0.0,
    folders: Annotated[str, typer.Option(help="Whether first folders name classes: auto, classes or none.")] = "auto",
    classes: Annotated[
        Path | None, typer.Option(help="File with one class name a line, of another data set with the same classes.")
    ] = None,
    image: Images = _IMAGES,
    members: Annotated[str, typer.Option(help="Extensions of files to take along beside images.")] = "txt;json;cls",
    seed: Seed = 0,
    shuffle: Annotated[bool, typer.Option(help="Write the images in random order.")] = True,
) -> None:
    """Make webdataset shards of the image files in FOLDER; the files' bytes stay as they are.

    patchnpack shard photos -o shards --validation 0.1
    """
    with _progress("writing shards") as progress:
        written = write_shards(
            folder,
            out,
            images_per_shard=images_per_shard,
            validation=validation,
            folders=folders,  # type: ignore[arg-type]  # write_shards checks it
            classes=classes,
            image=image,
            members=members.split(";") if members else (),
            seed=seed if shuffle else None,
            progress=progress,
        )
    kept = f", {written.kept} of them already there" if written.kept else ""
    held_out = f" and {written.validation:,} for validation" if written.validation else ""
    typer.echo(f"{out}: {written.images:,} images{held_out} in {len(written.shards)} shards{kept}")
    if written.classes:
        names = ", ".join(written.classes[:5]) + (" ..." if len(written.classes) > 5 else "")
        typer.echo(f"{out / CLASSES}: {len(written.classes)} classes, {names}")


@app.command()
@takes_packing
def report(
    shards: Shards,
    *,
    packing: Packing,
    image: Images = _IMAGES,
    seed: Seed = 0,
    ranks: Annotated[int, whole_flag("Ranks that train together: how long do they wait for each other?")] = 8,
    width: Annotated[int, whole_flag("Features of the model that they train.")] = 768,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    storage_options: Storage = None,
) -> None:
    """Tell what packing makes of the images in SHARDS, and what the usual ways would cost.

    patchnpack report 'train-{000000..000009}.tar' --seq-len 1024 --patch-size 16
    """
    index = _open(shards, image, parse_storage_options(storage_options or []))
    usable = np.setdiff1d(np.arange(len(index)), list(index.bad))
    found = make_report(index.rows(usable), packing, seed=seed, ranks=ranks, width=width)
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(found), "packing": repr(packing), "bad": len(index.bad)}, indent=2))
        return
    print_report(found, Console(highlight=False), bad=len(index.bad))


@app.command()
@takes_packing
def show(
    shards: Shards,
    *,
    packing: Packing,
    out: Annotated[Path, typer.Option("-o", "--out", help="The picture to write, a .png.")] = Path("packs.png"),
    packs: Annotated[int, whole_flag("Packs to draw.")] = 2,
    width: Annotated[int, whole_flag("Of the picture, in pixels.")] = 1600,
    shuffle: Annotated[bool, typer.Option(help="Draw packs of shuffled images.")] = True,
    image: Images = _IMAGES,
    label: Annotated[str | None, typer.Option(help="Member that holds the label, such as cls or json:FIELD.")] = None,
    classes: Annotated[str | None, typer.Option(help="File with one class name a line.")] = None,
    seed: Seed = 0,
    storage_options: Storage = None,
) -> None:
    """Draw packs as rows of patches, and beneath them each image put together from its patches and coords.

    patchnpack show 'train-{000000..000009}.tar' -o packs.png --seq-len 256
    """
    storage = parse_storage_options(storage_options or [])
    loader = PackedImageLoader(
        _open(shards, image, storage),
        packing,
        batch_size=packs,
        shuffle=shuffle,
        seed=seed,
        label=label,
        classes=classes,
        prefetch=1,
        storage_options=storage,
    )
    names = Path(classes).read_text().splitlines() if classes and label else None
    draw_packs(next(iter(loader)), max_packs=packs, width=width, classes=names).save(out)
    typer.echo(f"wrote {out}")


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
    image: Images = _IMAGES,
    storage_options: Storage = None,
) -> None:
    """Train a NaViT to classify the images in SHARDS.

    patchnpack train 'train-{000000..000009}.tar' --validation validation-000000.tar --resolution fit:144 --epochs 10
    """
    storage = parse_storage_options(storage_options or [])
    result = train_on_shards(
        _open(shards, image, storage),
        _open(validation, image, storage) if validation else None,
        packing,
        training,
        model=model,
        out=out,
        batch_size=batch_size,
        label=label,
        classes=classes,
        num_classes=num_classes,
        flip=flip,
        storage_options=storage,
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
