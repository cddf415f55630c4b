"""`patchnpack report`: what packing makes of a data set, and which configuration to choose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer
from rich.console import Console

from patchnpack.cli.arguments import IMAGES, Images, Seed, Shards, Storage, open_shards, progress_bar
from patchnpack.cli.options import parse_storage_options, takes_packing, whole_flag
from patchnpack.loaders import Index, PackedImageLoader
from patchnpack.loaders.packs.source import is_prepacked
from patchnpack.loaders.plan_report import planned_before, planned_rows
from patchnpack.packer import Packing, Rows
from patchnpack.packer.analysis.advice import advise
from patchnpack.packer.analysis.report import report as make_report
from patchnpack.packer.analysis.sweep import ALGORITHMS, LOOKAHEADS
from patchnpack.packer.analysis.sweep import sweep as make_sweep
from patchnpack.packer.binpacking.algorithms import Algorithm
from patchnpack.report.fields import baseline_rows, report_fields, setting_fields, sweep_fields, to_csv
from patchnpack.report.table import print_report, print_sweep


@takes_packing
def report(
    shards: Shards,
    *,
    packing: Packing,
    image: Images = IMAGES,
    seed: Seed = 0,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Plan the images in the order of a loader that shuffles.")
    ] = False,
    batch_size: Annotated[int, whole_flag("Packs in a batch.")] = 8,
    ranks: Annotated[int, whole_flag("Ranks that train together: how long do they wait for each other?")] = 8,
    width: Annotated[int, whole_flag("Features of the model that they train.")] = 768,
    sweep: Annotated[bool, typer.Option("--sweep", help="Try many configurations and say which to choose.")] = False,
    sweep_seq_len: Annotated[
        str | None, typer.Option(help="Sequence lengths to try: 1024,2048; by default from the images.")
    ] = None,
    sweep_patch_size: Annotated[
        str | None, typer.Option(help="Patch sizes to try: 14,16; by default the one that is set.")
    ] = None,
    sweep_algorithm: Annotated[str, typer.Option(help="Algorithms to try.")] = ",".join(ALGORITHMS),
    sweep_lookahead: Annotated[str, typer.Option(help="Lookaheads to try.")] = ",".join(map(str, LOOKAHEADS)),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print a line a way of batching as CSV; with --sweep, a line a setting.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write one page with charts, the sweep's too; needs patchnpack[report].")
    ] = None,
    picture: Annotated[bool, typer.Option(help="Draw packs with their images in the page.")] = True,
    storage_options: Storage = None,
) -> None:
    """Tell what packing makes of the images in SHARDS, what the usual baselines would cost, and what to set.

    patchnpack report 'train-{000000..000009}.tar' --seq-len 1024 --patch-size 16 --sweep --html report.html
    """
    if as_json and as_csv:
        raise ValueError("--json and --csv both print; give one of them")
    lengths = None if sweep_seq_len is None else _whole_numbers("sweep-seq-len", sweep_seq_len)
    patch_sizes = None if sweep_patch_size is None else _whole_numbers("sweep-patch-size", sweep_patch_size)
    lookaheads, algorithms = _whole_numbers("sweep-lookahead", sweep_lookahead), _algorithms(sweep_algorithm)
    if html is not None:
        from patchnpack.report.page import check_page

        check_page(html)
    storage, made = parse_storage_options(storage_options or []), None
    if is_prepacked(shards[0]):
        loader = _packed_before(shards, packing, batch_size=batch_size, shuffle=shuffle, storage=storage)
        rows, planned, bad, made = planned_rows(loader), loader.packing, 0, planned_before(loader)
    else:
        index = open_shards(shards, image, storage_options)
        rows, planned = _rows(index, packing, batch_size=batch_size, shuffle=shuffle, seed=seed)
        bad = len(index.bad)
    found = make_report(rows, planned, seed=seed, batch_size=batch_size, ranks=ranks, width=width, made=made)
    swept = advice = None
    if sweep or html is not None:
        with progress_bar("packing") as progress:
            swept = make_sweep(
                rows,
                planned,
                seq_lens=lengths,
                patch_sizes=patch_sizes,
                algorithms=algorithms,
                lookaheads=lookaheads,
                seed=seed,
                ranks=ranks,
                width=width,
                progress=progress,
            )
        advice = advise(swept)
    if html is not None and swept is not None and advice is not None:
        from patchnpack.report.page import picture_of, write_page

        if picture and made is None:
            loader = PackedImageLoader(index, planned, batch_size=2, seed=seed, prefetch=1, storage_options=storage)
        drawn = picture_of(loader) if picture else None
        write_page(html, found, swept, advice, title=_title(shards), picture=drawn, bad_images=bad)
    console = Console(highlight=False)
    if as_json:
        fields: dict[str, Any] = report_fields(found, bad_images=bad)
        if swept is not None and advice is not None:
            fields["sweep"] = sweep_fields(swept, advice)
        typer.echo(json.dumps(fields, indent=2))
    elif as_csv:
        settings = [setting_fields(setting, advice) for setting in swept.settings] if swept and advice and sweep else []
        typer.echo(to_csv(settings or baseline_rows(found)), nl=False)
    else:
        print_report(found, console, bad=bad)
        if swept is not None and advice is not None:
            console.print()
            print_sweep(swept, advice, console)
        if html is not None:
            typer.echo(f"wrote {html}")


def _packed_before(
    shards: list[str], packing: Packing, *, batch_size: int, shuffle: bool, storage: dict[str, Any]
) -> PackedImageLoader:
    """A loader of a pre-packed folder, whose packing is what it was packed with."""
    if len(shards) > 1 or shuffle:
        raise ValueError(f"{shards[0]!r} is a folder of packs; give it alone, and without --shuffle")
    loader = PackedImageLoader(shards[0], batch_size=batch_size, storage_options=storage, prefetch=1)
    if packing not in (Packing(), loader.packing.replace(algorithm=packing.algorithm)):
        raise ValueError(
            f"{shards[0]!r} was packed with {loader.packing}; leave out the options of packing, or report on shards"
        )
    return loader


def _rows(index: Index, packing: Packing, *, batch_size: int, shuffle: bool, seed: int) -> tuple[Rows, Packing]:
    """The usable rows in the order of a loader, and the packing with which it would plan them."""
    if not shuffle:
        return index.rows(np.setdiff1d(np.arange(len(index)), list(index.bad))), packing
    loader = PackedImageLoader(index, packing, batch_size=batch_size, shuffle=True, seed=seed)
    return planned_rows(loader), loader.packing


def _whole_numbers(name: str, text: str) -> list[int]:
    numbers = text.split(",")
    if not all(number.strip().isdecimal() and int(number) for number in numbers):
        raise ValueError(f"{name} is {text!r}; it must be whole numbers of at least 1: 1024,2048")
    return list(map(int, numbers))


def _algorithms(text: str) -> list[Algorithm]:
    names = text.split(",")
    for name in names:
        if name not in get_args(Algorithm):
            raise ValueError(f"sweep-algorithm has {name!r}; it must be of {', '.join(get_args(Algorithm))}")
    return names  # type: ignore[return-value]  # each is one


def _title(shards: list[str]) -> str:
    return shards[0] if len(shards) == 1 else f"{shards[0]} and {len(shards) - 1} more"
