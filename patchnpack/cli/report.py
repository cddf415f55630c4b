"""The command `report`: what a packing makes of a data set, and which setting to choose."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchnpack.cli.options.arguments import BatchSize, Pages, Seed
from patchnpack.cli.options.flags import ALGORITHMS, ImageOptions, takes_images, takes_packing, whole_flag
from patchnpack.cli.progress import progress_bar
from patchnpack.cli.sources import open_shards

if TYPE_CHECKING:
    from patchnpack.loaders import Index, PackedImageLoader
    from patchnpack.loaders.imaging.user_decode import Decode
    from patchnpack.packer import Advice, Packing, PackingReport, Plan, Rows, Sweep
    from patchnpack.packer.binpacking.algorithms import Algorithm


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """What a report is of.

    Attributes:
        name: what the report names: the shards, the packed folder, or the tables.
        rows: the images, in the order in which they are planned.
        packing: the configuration they are planned with.
        seed: key of the random draws.
        bad: number of images that cannot be used, and are not in `rows`.
        without_image: number of samples that have no image.
        made: the plan of a packed folder.
        loader: makes a loader whose first batch is drawn; None where there are no pixels.
        index: of the images, which names them in errors; None of tables of sizes and packed folders.
    """

    name: str
    rows: Rows
    packing: Packing
    seed: int
    bad: int
    without_image: int = 0
    made: Plan | None = None
    loader: Callable[[], PackedImageLoader] | None = None
    index: Index | None = None


@takes_packing
@takes_images
def report(
    shards: Annotated[
        list[str],
        typer.Argument(
            help="A folder of images; shards as paths, globs or ranges such as 'train-{000000..000009}.tar'; an index "
            "file; a packed folder; a table of sizes, CSV or parquet, with the columns width and height; or, with "
            "--path, a table of paths."
        ),
    ],
    *,
    packing: Packing,
    images: ImageOptions,
    pages: Pages = "first",
    seed: Seed = 0,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Plan in the order of a loader that shuffles; shuffle a table.")
    ] = False,
    batch_size: BatchSize = 8,
    ranks: Annotated[int, whole_flag("Number of ranks, for the load imbalance between them.")] = 8,
    width: Annotated[int, whole_flag("Width of the model, for the load imbalance.")] = 768,
    sweep: Annotated[bool, typer.Option("--sweep", help="Compare many settings and advise one.")] = False,
    sweep_seq_len: Annotated[
        str | None, typer.Option(help="Sequence lengths to try, such as 1024,2048; default: derived from the images.")
    ] = None,
    sweep_multiple: Annotated[
        int, whole_flag("Search for a sequence length among the multiples of this number only.")
    ] = 1,
    sweep_patch_size: Annotated[
        str | None, typer.Option(help="Patch sizes to try, such as 14,16; default: --patch-size.")
    ] = None,
    sweep_algorithm: Annotated[str, typer.Option(help="Algorithms to try.")] = "next_fit,subset_sum,largest_fit,priced",
    sweep_lookahead: Annotated[str, typer.Option(help="Lookaheads to try.")] = "64,256,1024",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print one CSV line per method; with --sweep, one per setting.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write one HTML page with charts and a sweep; needs the extra `report`.")
    ] = None,
    picture: Annotated[bool, typer.Option(help="Include a picture of packs in the page.")] = True,
) -> None:
    """Report the packing of the images in SHARDS, compare it with common baselines, and advise a setting.

    patchnpack report 'train-{000000..000009}.tar' --seq-len 1024 --patch-size 16 --sweep --html report.html

    patchnpack report sizes.csv --sweep
    """
    from patchnpack.packer import advise
    from patchnpack.packer import report as make_report
    from patchnpack.packer import sweep as make_sweep
    from patchnpack.packer.checks import check_whole

    if as_json and as_csv:
        raise ValueError("--json and --csv both print to standard output; give only one of them")
    check_whole("--sweep-multiple", sweep_multiple)
    if sweep_seq_len is not None and sweep_multiple > 1:
        raise ValueError(f"--sweep-multiple is {sweep_multiple}, but --sweep-seq-len names the lengths; give only one")
    tried: dict[str, Any] = {
        "seq_lens": None if sweep_seq_len is None else _whole_numbers("--sweep-seq-len", sweep_seq_len),
        "multiple": sweep_multiple,
        "patch_sizes": None if sweep_patch_size is None else _whole_numbers("--sweep-patch-size", sweep_patch_size),
        "algorithms": _algorithms(sweep_algorithm),
        "lookaheads": _whole_numbers("--sweep-lookahead", sweep_lookahead),
    }
    if html is not None:
        from patchnpack.report.page import check_page, picture_of, write_page

        check_page(html)
    source = _source(shards, packing, images, pages, batch_size, shuffle, seed)
    seed, made = source.seed, source.made
    with _naming_images(source):
        found = make_report(
            source.rows, source.packing, seed=seed, batch_size=batch_size, ranks=ranks, width=width, made=made
        )
    swept = advice = None
    if sweep or html is not None:
        with progress_bar("packing") as progress:
            swept = make_sweep(
                source.rows, source.packing, **tried, seed=seed, ranks=ranks, width=width, progress=progress
            )
        advice = advise(swept)
        if html is not None:
            drawn = picture_of(source.loader()) if picture and source.loader is not None else None
            left_out = {"bad_images": source.bad, "without_image": source.without_image}
            write_page(html, found, swept, advice, title=source.name, picture=drawn, **left_out)
    if as_json:
        _print_json(source, found, swept, advice)
    elif as_csv:
        _print_csv(found, swept if sweep else None, advice)
    else:
        _print_tables(source, found, swept, advice)
        if html is not None:
            typer.echo(f"wrote {html}")


def _source(
    shards: list[str],
    packing: Packing,
    images: ImageOptions,
    pages: str,
    batch_size: int,
    shuffle: bool,
    seed: int,
) -> _Source:
    """Read the headers of images, an index, a packed folder or tables of sizes."""
    from patchnpack.loaders.shards.patterns import is_image_folder, is_packed_folder
    from patchnpack.report.size_table import are_size_tables, read_size_tables

    name, storage = _title(shards), images.storage_options
    if images.path is None and images.root is None and are_size_tables(shards):
        if images.sample is not None:
            raise ValueError(
                f"--sample is {images.sample!r}, and {shards[0]!r} is read as a table of sizes, whose images are each "
                "alone; leave --sample out, or for a table of paths name their column with --path"
            )
        sizes = read_size_tables(shards)
        rows = sizes.rows(seed if shuffle or sizes.counted else None)
        return _Source(name=name, rows=rows, packing=packing, seed=seed, bad=sizes.too_large)
    if is_packed_folder(shards[0]) and not is_image_folder(shards[0], storage):
        from patchnpack.loaders.plan_report import planned_before, planned_rows

        options: dict[str, Any] = {"batch_size": batch_size, "shuffle": shuffle, "seed": seed, "storage": storage}
        loader = _packed_folder(shards, packing, **options, decode=images.decode)
        return _Source(
            name=name,
            rows=planned_rows(loader),
            packing=loader.packing,
            seed=loader.steps().order.planning_order().seed,
            bad=len(loader.index.bad),
            without_image=int(loader.index.without_image.sum()),
            made=planned_before(loader),
            loader=lambda: loader,
        )
    index = open_shards(shards, images)
    rows, planned, bad = _rows(index, packing, pages, images.decode, batch_size=batch_size, shuffle=shuffle, seed=seed)

    def drawn() -> PackedImageLoader:
        from patchnpack.loaders import PackedImageLoader  # imports torch, which only the picture needs

        return PackedImageLoader(
            index,
            planned,
            batch_size=2,
            seed=seed,
            pages=pages,  # type: ignore[arg-type]  # `_rows` has checked it
            decode=images.decode,
            prefetch=1,
            storage_options=storage,
        )

    return _Source(
        name=name,
        rows=rows,
        packing=planned,
        seed=seed,
        bad=bad,
        without_image=int(index.without_image.sum()),
        loader=drawn,
        index=index,
    )


def _naming_images(source: _Source) -> AbstractContextManager[None]:
    """Return a context in which errors about rows name the first such image."""
    from patchnpack.loaders.order.first_invalid_row import naming_first_invalid_row

    if source.index is None:
        return nullcontext()
    return naming_first_invalid_row(source.index, source.rows, source.packing, seed=source.seed, epoch=0)


def _print_json(source: _Source, found: PackingReport, swept: Sweep | None, advice: Advice | None) -> None:
    from patchnpack.report.fields import report_fields, sweep_fields

    fields = report_fields(found, bad_images=source.bad, without_image=source.without_image, source=source.name)
    if swept is not None and advice is not None:
        fields["sweep"] = sweep_fields(swept, advice)
    typer.echo(json.dumps(fields, indent=2))


def _print_csv(found: PackingReport, swept: Sweep | None, advice: Advice | None) -> None:
    from patchnpack.report.fields import baseline_rows, setting_fields, to_csv

    settings = [setting_fields(setting, advice) for setting in swept.settings] if swept and advice else []
    typer.echo(to_csv(settings or baseline_rows(found)), nl=False)


def _print_tables(source: _Source, found: PackingReport, swept: Sweep | None, advice: Advice | None) -> None:
    from rich.console import Console

    from patchnpack.report.table import print_report, print_sweep

    console = Console(highlight=False)
    print_report(found, console, bad=source.bad, without_image=source.without_image, source=source.name)
    if swept is not None and advice is not None:
        console.print()
        print_sweep(swept, advice, console)


def _packed_folder(
    shards: list[str],
    packing: Packing,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    storage: dict[str, Any],
    decode: Decode | None,
) -> PackedImageLoader:
    """A loader over a packed folder; its packing is the one the folder was packed with."""
    from patchnpack.loaders import PackedImageLoader
    from patchnpack.packer import Packing

    if len(shards) > 1 or shuffle:
        raise ValueError(f"{shards[0]!r} is a packed folder; give it alone, without other shards and --shuffle")
    loader = PackedImageLoader(shards[0], batch_size=batch_size, storage_options=storage, prefetch=1, decode=decode)
    if packing not in (Packing(), loader.packing.replace(algorithm=packing.algorithm)):
        raise ValueError(
            f"{shards[0]!r} was packed with {loader.packing}; leave out the packing flags, or report on the shards"
        )
    if seed not in (0, packed_seed := loader.steps().order.planning_order().seed):
        raise ValueError(f"{shards[0]!r} was packed with --seed {packed_seed}; leave out --seed {seed}")
    return loader


def _rows(
    index: Index, packing: Packing, pages: str, decode: Decode | None, *, batch_size: int, shuffle: bool, seed: int
) -> tuple[Rows, Packing, int]:
    """The usable rows in the order of a loader, the packing it would plan them with, and the number of bad rows."""
    if not shuffle:
        import numpy as np

        from patchnpack.loaders.error_policy import ErrorPolicy
        from patchnpack.loaders.imaging.pages import check_pages
        from patchnpack.loaders.imaging.readers.boxed.heif import has_heif
        from patchnpack.loaders.order.row_filter import RowFilter

        check_pages(pages)
        usable = RowFilter.of(index, None, ErrorPolicy(), decode, pages, has_heif(), packing)  # type: ignore[arg-type]
        if not usable.mask.any():
            raise usable.none_usable(index)
        return usable.usable(index).rows(np.flatnonzero(usable.heads(index))), packing, len(usable.bad)
    from patchnpack.loaders import PackedImageLoader
    from patchnpack.loaders.plan_report import planned_rows

    loader = PackedImageLoader(
        index,
        packing,
        batch_size=batch_size,
        shuffle=True,
        seed=seed,
        pages=pages,  # type: ignore[arg-type]  # the loader checks it
        decode=decode,
    )
    return planned_rows(loader), loader.packing, len(loader.source.rows.bad)


def _whole_numbers(flag: str, text: str) -> list[int]:
    numbers = text.split(",")
    if not all(number.strip().isdecimal() and int(number) for number in numbers):
        raise ValueError(f"{flag} is {text!r}; give whole numbers of at least 1, such as 1024,2048")
    return list(map(int, numbers))


def _algorithms(text: str) -> list[Algorithm]:
    names = text.split(",")
    for name in names:
        if name not in ALGORITHMS:
            raise ValueError(f"--sweep-algorithm has {name!r}; choose from {', '.join(ALGORITHMS)}")
    return names  # type: ignore[return-value]  # the loop has checked each


def _title(shards: list[str]) -> str:
    return shards[0] if len(shards) == 1 else f"{shards[0]} and {len(shards) - 1} more"
