"""The commands `shard`, `index`, `show` and `stats`: write shards, index them, draw them and measure their pixels."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchnpack.cli.options.arguments import Classes, Label, Pages, Seed, Shards
from patchnpack.cli.options.flags import (
    IMAGE_FLAGS,
    IMAGES,
    PACKING_FLAGS,
    ImageOptions,
    make_packing,
    takes,
    takes_headers,
    takes_images,
    takes_packing,
    whole_flag,
)
from patchnpack.cli.options.targets import takes_targets
from patchnpack.cli.progress import progress_bar
from patchnpack.cli.sources import open_shards, open_source, packing_of

if TYPE_CHECKING:
    from patchnpack.loaders.targets.target import Target
    from patchnpack.packer import Packing


def shard(
    folder: Annotated[
        Path, typer.Argument(help="Folder of images. If every image lies in a sub-folder, sub-folders are classes.")
    ],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the shards.")],
    images_per_shard: Annotated[int, typer.Option(help="Maximum number of images per shard.")] = 1000,
    validation: Annotated[float, typer.Option(help="Fraction of the images to hold out for validation.")] = 0.0,
    folders: Annotated[
        str, typer.Option(help="Whether top-level sub-folders are classes: auto, classes or none.")
    ] = "auto",
    classes: Annotated[
        Path | None,
        typer.Option(help="File with one class name per line, from another data set with the same classes."),
    ] = None,
    image: Annotated[str, typer.Option(help=IMAGE_FLAGS["image"].help)] = IMAGES,
    sample: Annotated[
        str | None,
        typer.Option(
            help="Images to write as one sample, in natural order: key:REGEX such as 'key:(.+)_[0-9]+'; members also "
            "writes videos. Load the shards with --sample members."
        ),
    ] = None,
    members: Annotated[
        str, typer.Option(help="Extensions of other files to store with each image, separated by semicolons.")
    ] = "txt;json;cls",
    member: Annotated[
        list[str] | None,
        typer.Option(
            "--member",
            metavar="NAME[=FOLDER]",
            help="Member to store with each image besides --members: seg.png for a.seg.png beside a.jpg, or "
            "seg.png=masks for masks/a.png; with seg.png='masks/*_mask.png', * is the image's name. May be repeated.",
        ),
    ] = None,
    seed: Seed = 0,
    shuffle: Annotated[bool, typer.Option(help="Write the images in random order.")] = True,
) -> None:
    """Write the image files in FOLDER into webdataset shards, byte for byte.

    patchnpack shard photos -o shards --validation 0.1

    patchnpack shard pages -o shards --sample 'key:(.+)_[0-9]+'

    patchnpack shard images -o shards --member seg.png=masks
    """
    from patchnpack.loaders import write_shards
    from patchnpack.loaders.shards.folders.image_folder import count_by_extension
    from patchnpack.loaders.shards.folders.writer import CLASSES
    from patchnpack.packer.text import counted

    named = [text.partition("=") for text in member or ()]
    for text, (name, equals, of) in zip(member or (), named, strict=True):
        if not name or (equals and not of):
            raise ValueError(f"--member is {text!r}; give NAME or NAME=FOLDER, such as seg.png=masks")
    asked = [name for name, _, _ in named]
    if twice := next((name for name in asked if asked.count(name) > 1), None):
        raise ValueError(f"--member names {twice!r} twice; give each member once")
    with progress_bar("writing shards") as progress:
        written = write_shards(
            folder,
            out,
            images_per_shard=images_per_shard,
            validation=validation,
            folders=folders,  # type: ignore[arg-type]  # write_shards checks it
            classes=classes,
            image=image,
            members=[*(members.split(";") if members else ()), *(name for name, equals, _ in named if not equals)],
            member_folders={name: of for name, equals, of in named if equals},
            sample=sample,
            seed=seed if shuffle else None,
            progress=progress,
        )
    kept = f" ({written.kept} already existed)" if written.kept else ""
    held_out = f" and {written.validation:,} for validation" if written.validation else ""
    several = written.samples < written.images + written.validation
    of = f" of {counted(written.samples, 'sample')}" if several else ""
    shards = counted(len(written.shards), "shard")
    typer.echo(f"{out}: {counted(written.images, 'image')}{held_out}{of} in {shards}{kept}")
    if written.classes:
        names = ", ".join(written.classes[:5]) + (" ..." if len(written.classes) > 5 else "")
        typer.echo(f"{out / CLASSES}: {len(written.classes)} classes: {names}")
    if written.members:
        typer.echo(f"{out}: members of the images: {count_by_extension(written.members)}")
    for name, count in written.lacking.items():
        typer.echo(f"{out}: {counted(count, 'image')} without a {name} member, which loaders with targets refuse")
    left_out = [count_by_extension(written.left_out)] if written.left_out else []
    left_out += [f"{written.hidden} hidden"] if written.hidden else []
    left_out += [f"{written.loops} links to a folder that they lie in"] if written.loops else []
    if left_out:
        typer.echo(f"{out}: left out: {', '.join(left_out)}")


@takes_headers
def make_index(
    shards: Shards,
    *,
    images: ImageOptions,
    out: Annotated[
        str | None,
        typer.Option(
            "-o", "--out", help="Index file, .parquet or .arrow, local or remote; default: beside the shards."
        ),
    ] = None,
) -> None:
    """Read the header of every image in SHARDS into an index file, or update an index file.

    patchnpack index 'train-{000000..000009}.tar'

    patchnpack index train.csv --path file -o index.parquet
    """
    from patchnpack.loaders import update_index
    from patchnpack.loaders.remote.addresses import is_remote
    from patchnpack.loaders.shards.opener import ShardOpener
    from patchnpack.packer.files import make_folder_of
    from patchnpack.packer.text import counted

    if out is not None and not is_remote(out):
        make_folder_of(out)
    with progress_bar("reading headers") as progress:
        opener = ShardOpener(storage_options=images.storage_options)
        file, index, num_read = update_index(
            shards[0] if len(shards) == 1 else shards,
            out,
            image=images.image,
            sample=images.sample,
            column=images.path,
            root=images.root,
            opener=opener,
            progress=progress,
        )
    what = "file" if any(index.files) else "shard"
    held = sum(len(table) for table in index.files if table is not None) or len(index.shards)
    found = counted(len(index), "image")
    if index.samples is not None:
        found = f"{counted(index.samples.images, 'image')} of {counted(len(index.samples), 'sample')}"
    typer.echo(
        f"{file}: {found} in {counted(held, what)} ({num_read} read now); "
        f"{counted(len(index.bad), 'bad image')}, {counted(int(index.without_image.sum()), 'sample')} without an image"
    )
    for row, reason in itertools.islice(index.bad.items(), 10):
        typer.echo(f"  {index.name_of(row)!r} in {index.place(row)[0]}: {reason}")


@takes_packing
@takes_images
@takes_targets
def show(
    context: typer.Context,
    shards: Shards,
    *,
    packing: Packing,
    images: ImageOptions,
    targets: dict[str, Target],
    out: Annotated[Path, typer.Option("-o", "--out", help="Picture to write, a .png file.")] = Path("packs.png"),
    packs: Annotated[int, whole_flag("Number of packs to draw.")] = 2,
    width: Annotated[int, whole_flag("Width of the picture in pixels.")] = 1600,
    shuffle: Annotated[bool, typer.Option(help="Shuffle the images before packing.")] = True,
    pages: Pages = "first",
    label: Label = None,
    classes: Classes = None,
    seed: Seed = 0,
) -> None:
    """Draw packs as rows of patches and, below each pack, its images reassembled from patches and coords.

    Masks are tinted over the images, maps are beside them, and boxes, outlines and points are drawn in them.

    patchnpack show 'train-{000000..000009}.tar' -o packs.png --seq-len 256

    patchnpack show 'train-{000000..000009}.tar' --mask mask=seg.png --boxes boxes=json:objects.bbox,format=xywh
    """
    from patchnpack.loaders import PackedImageLoader
    from patchnpack.packer.batch.pictures.drawing import draw_packs
    from patchnpack.packer.checks import check_whole
    from patchnpack.packer.files import make_folder_of

    check_whole("--packs", packs)
    make_folder_of(out)
    source = open_source(shards, images)
    packing, _ = packing_of(context, source, packing, images.storage_options)
    loader = PackedImageLoader(
        source,
        packing,
        batch_size=packs,
        shuffle=shuffle,
        seed=seed,
        label=label,
        classes=classes,
        targets=targets,
        pages=pages,  # type: ignore[arg-type]  # the loader checks it
        prefetch=1,
        storage_options=images.storage_options,
        decode=images.decode,
    )
    names = None if loader.classes is None else list(loader.classes)  # in the order of their numbers
    draw_packs(next(iter(loader)), max_packs=packs, width=width, classes=names).save(out)
    typer.echo(f"wrote {out}")


_STATS_FLAGS = {name: PACKING_FLAGS[name] for name in ("image_mode", "channels", "dtype", "convert")}


@takes("packing", _STATS_FLAGS, make_packing)
@takes_images
def stats(
    shards: Shards,
    *,
    packing: Packing,
    images: ImageOptions,
    count: Annotated[int | None, whole_flag("Number of images to read, drawn at random; default: all.")] = None,
    pages: Pages = "first",
    seed: Seed = 0,
) -> None:
    """Print mean, std, extremes and percentiles of each band of the images in SHARDS, and --model flags to paste.

    patchnpack stats 'train-{000000..000009}.tar' --count 1000

    patchnpack stats 'scans-{000000..000009}.tar' --channels 1 --dtype int16
    """
    from rich.console import Console
    from rich.table import Table

    from patchnpack.loaders import PackedImageLoader
    from patchnpack.packer.text import counted
    from patchnpack.pixel_stats import PERCENTILES, pixel_stats

    loader = PackedImageLoader(
        open_shards(shards, images),
        packing.replace(oversize="drop"),
        batch_size=1,
        pages=pages,  # type: ignore[arg-type]  # the loader checks it
        storage_options=images.storage_options,
        decode=images.decode,
    )
    found = pixel_stats(loader, images=count, seed=seed)
    table = Table("band", "mean", "std", "min", *(f"{each:g} %" for each in PERCENTILES), "max", box=None)
    for band in range(len(found.mean)):
        columns = found.mean[band], found.std[band], found.least[band], *found.percentiles[band], found.most[band]
        table.add_row(str(band), *(f"{value:.6g}" for value in columns))
    Console(highlight=False, markup=False).print(table)
    bad = len(loader.source.rows.bad) + found.bad
    typer.echo(
        f"{counted(found.pixels, 'pixel')} of {counted(found.images, 'image')}, {found.dtype}; "
        f"{counted(bad, 'bad image')}"
    )
    mean, std = (",".join(f"{value:.6g}" for value in values) for values in found.normalization())
    typer.echo(f"--model mean={mean} --model std={std}")
