"""The command `stats`: mean, standard deviation, extremes and percentiles of the pixels of each band."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from patchnpack.cli.options.arguments import Pages, Seed, Shards
from patchnpack.cli.options.flags import PACKING_FLAGS, ImageOptions, make_packing, takes, takes_images, whole_flag
from patchnpack.cli.sources import open_shards

if TYPE_CHECKING:
    from patchnpack.packer import Packing

_FLAGS = {name: PACKING_FLAGS[name] for name in ("image_mode", "channels", "dtype", "convert")}


@takes("packing", _FLAGS, make_packing)
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
