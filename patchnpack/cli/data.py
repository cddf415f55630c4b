"""`patchnpack shard`, `index` and `show`: shards made, read and looked at."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

from patchnpack.cli.arguments import IMAGES, Images, Seed, Shards, Storage, counted, open_shards, progress_bar
from patchnpack.cli.options import parse_storage_options, takes_packing, whole_flag
from patchnpack.loaders import PackedImageLoader, update_index, write_shards
from patchnpack.loaders.remote.download import is_remote
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.writer import CLASSES
from patchnpack.packer import Packing
from patchnpack.packer.batch.drawing import draw_packs
from patchnpack.packer.files import make_folder_of


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
    image: Images = IMAGES,
    members: Annotated[str, typer.Option(help="Extensions of files to take along beside images.")] = "txt;json;cls",
    seed: Seed = 0,
    shuffle: Annotated[bool, typer.Option(help="Write the images in random order.")] = True,
) -> None:
    """Make webdataset shards of the image files in FOLDER; the files' bytes stay as they are.

    patchnpack shard photos -o shards --validation 0.1
    """
    with progress_bar("writing shards") as progress:
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
    typer.echo(f"{out}: {counted(written.images, 'image')}{held_out} in {counted(len(written.shards), 'shard')}{kept}")
    if written.classes:
        names = ", ".join(written.classes[:5]) + (" ..." if len(written.classes) > 5 else "")
        typer.echo(f"{out / CLASSES}: {len(written.classes)} classes, {names}")


def make_index(
    shards: Shards,
    *,
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", help="The file, .parquet or .arrow, or its address; else beside the shards."),
    ] = None,
    image: Images = IMAGES,
    storage_options: Storage = None,
) -> None:
    """Read the headers of all images in SHARDS into an index file, or bring one up to date.

    patchnpack index 'train-{000000..000009}.tar'
    """
    if out is not None and not is_remote(out):
        make_folder_of(out)
    with progress_bar("reading headers") as progress:
        opener = ShardOpener(storage_options=parse_storage_options(storage_options or []))
        path, index, read = update_index(shards, out, image=image, opener=opener, progress=progress)
    typer.echo(
        f"{path}: {counted(len(index), 'image')} in {counted(len(index.shards), 'shard')}, {read} read now; "
        f"{len(index.bad)} cannot be used, {counted(int(index.without_image.sum()), 'sample')} without an image"
    )
    for row, reason in itertools.islice(index.bad.items(), 10):
        typer.echo(f"  {index.keys[row]!r} in {index.shards[int(index.shard_of(row))]}: {reason}")


@takes_packing
def show(
    shards: Shards,
    *,
    packing: Packing,
    out: Annotated[Path, typer.Option("-o", "--out", help="The picture to write, a .png.")] = Path("packs.png"),
    packs: Annotated[int, whole_flag("Packs to draw.")] = 2,
    width: Annotated[int, whole_flag("Of the picture, in pixels.")] = 1600,
    shuffle: Annotated[bool, typer.Option(help="Draw packs of shuffled images.")] = True,
    image: Images = IMAGES,
    label: Annotated[str | None, typer.Option(help="Member that holds the label, such as cls or json:FIELD.")] = None,
    classes: Annotated[str | None, typer.Option(help="File with one class name a line.")] = None,
    seed: Seed = 0,
    storage_options: Storage = None,
) -> None:
    """Draw packs as rows of patches, and beneath them each image put together from its patches and coords.

    patchnpack show 'train-{000000..000009}.tar' -o packs.png --seq-len 256
    """
    make_folder_of(out)
    loader = PackedImageLoader(
        open_shards(shards, image, storage_options),
        packing,
        batch_size=packs,
        shuffle=shuffle,
        seed=seed,
        label=label,
        classes=classes,
        prefetch=1,
        storage_options=parse_storage_options(storage_options or []),
    )
    names = Path(classes).read_text().splitlines() if classes and label else None
    draw_packs(next(iter(loader)), max_packs=packs, width=width, classes=names).save(out)
    typer.echo(f"wrote {out}")
