"""The command `report`: what a packing makes of a data set, and which setting to choose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchnpack.cli.arguments import IMAGES, BatchSize, Images, Seed, Shards, Storage, open_shards
from patchnpack.cli.options import ALGORITHMS, takes_packing, whole_flag
from patchnpack.cli.parsers import parse_storage_options
from patchnpack.cli.progress import progress_bar

if TYPE_CHECKING:
    from patchnpack.loaders import Index, PackedImageLoader
    from patchnpack.packer import Advice, Packing, PackingReport, Rows, Sweep
    from patchnpack.packer.binpacking.algorithms import Algorithm


@takes_packing
def report(
    shards: Shards,
    *,
    packing: Packing,
    image: Images = IMAGES,
    seed: Seed = 0,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Plan in the order of a loader that shuffles.")] = False,
    batch_size: BatchSize = 8,
    ranks: Annotated[int, whole_flag("Number of ranks, for the load imbalance between them.")] = 8,
    width: Annotated[int, whole_flag("Width of the model, for the load imbalance.")] = 768,
    sweep: Annotated[bool, typer.Option("--sweep", help="Compare many settings and advise one.")] = False,
    sweep_seq_len: Annotated[
        str | None, typer.Option(help="Sequence lengths to try, such as 1024,2048; default: derived from the images.")
    ] = None,
    sweep_patch_size: Annotated[
        str | None, typer.Option(help="Patch sizes to try, such as 14,16; default: --patch-size.")
    ] = None,
    sweep_algorithm: Annotated[str, typer.Option(help="Algorithms to try.")] = "next_fit,largest_fit,subset_sum",
    sweep_lookahead: Annotated[str, typer.Option(help="Lookaheads to try.")] = "64,256,1024",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print one CSV line per method; with --sweep, one per setting.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write one HTML page with charts and a sweep; needs the extra `report`.")
    ] = None,
    picture: Annotated[bool, typer.Option(help="Include a picture of packs in the page.")] = True,
    storage_options: Storage = None,
) -> None:
    """Report the packing of the images in SHARDS, compare it with common baselines, and advise a setting.

    patchnpack report 'train-{000000..000009}.tar' --seq-len 1024 --patch-size 16 --sweep --html report.html
    """
    from patchnpack.loaders.shards.patterns import is_packed_folder
    from patchnpack.packer import advise
    from patchnpack.packer import report as make_report
    from patchnpack.packer import sweep as make_sweep

    if as_json and as_csv:
        raise ValueError("--json and --csv both print to standard output; give only one of them")
    tried: dict[str, Any] = {
        "seq_lens": None if sweep_seq_len is None else _whole_numbers("--sweep-seq-len", sweep_seq_len),
        "patch_sizes": None if sweep_patch_size is None else _whole_numbers("--sweep-patch-size", sweep_patch_size),
        "algorithms": _algorithms(sweep_algorithm),
        "lookaheads": _whole_numbers("--sweep-lookahead", sweep_lookahead),
    }
    if html is not None:
        from patchnpack.loaders import PackedImageLoader
        from patchnpack.report.page import check_page, picture_of, write_page

        check_page(html)
    storage, made = parse_storage_options(storage_options or []), None
    if is_packed_folder(shards[0]):
        from patchnpack.loaders.plan_report import planned_before, planned_rows

        loader = _packed_folder(shards, packing, batch_size=batch_size, shuffle=shuffle, seed=seed, storage=storage)
        rows, planned, made = planned_rows(loader), loader.packing, planned_before(loader)
        bad, seed = len(loader.index.bad), loader.steps().order.planning_order().seed
    else:
        index = open_shards(shards, image, storage_options)
        rows, planned = _rows(index, packing, batch_size=batch_size, shuffle=shuffle, seed=seed)
        bad = len(index.bad)
    found = make_report(rows, planned, seed=seed, batch_size=batch_size, ranks=ranks, width=width, made=made)
    swept = advice = None
    if sweep or html is not None:
        with progress_bar("packing") as progress:
            swept = make_sweep(rows, planned, **tried, seed=seed, ranks=ranks, width=width, progress=progress)
        advice = advise(swept)
        if html is not None:
            if picture and made is None:
                loader = PackedImageLoader(index, planned, batch_size=2, seed=seed, prefetch=1, storage_options=storage)
            drawn = picture_of(loader) if picture else None
            write_page(html, found, swept, advice, title=_title(shards), picture=drawn, bad_images=bad)
    if as_json:
        _print_json(found, swept, advice, bad=bad)
    elif as_csv:
        _print_csv(found, swept if sweep else None, advice)
    else:
        _print_tables(found, swept, advice, bad=bad)
        if html is not None:
            typer.echo(f"wrote {html}")


def _print_json(found: PackingReport, swept: Sweep | None, advice: Advice | None, *, bad: int) -> None:
    from patchnpack.report.fields import report_fields, sweep_fields

    fields = report_fields(found, bad_images=bad)
    if swept is not None and advice is not None:
        fields["sweep"] = sweep_fields(swept, advice)
    typer.echo(json.dumps(fields, indent=2))


def _print_csv(found: PackingReport, swept: Sweep | None, advice: Advice | None) -> None:
    from patchnpack.report.fields import baseline_rows, setting_fields, to_csv

    settings = [setting_fields(setting, advice) for setting in swept.settings] if swept and advice else []
    typer.echo(to_csv(settings or baseline_rows(found)), nl=False)


def _print_tables(found: PackingReport, swept: Sweep | None, advice: Advice | None, *, bad: int) -> None:
    from rich.console import Console

    from patchnpack.report.table import print_report, print_sweep

    console = Console(highlight=False)
    print_report(found, console, bad=bad)
    if swept is not None and advice is not None:
        console.print()
        print_sweep(swept, advice, console)


def _packed_folder(
    shards: list[str], packing: Packing, *, batch_size: int, shuffle: bool, seed: int, storage: dict[str, Any]
) -> PackedImageLoader:
    """A loader over a packed folder; its packing is the one the folder was packed with."""
    from patchnpack.loaders import PackedImageLoader
    from patchnpack.packer import Packing

    if len(shards) > 1 or shuffle:
        raise ValueError(f"{shards[0]!r} is a packed folder; give it alone, without other shards and --shuffle")
    loader = PackedImageLoader(shards[0], batch_size=batch_size, storage_options=storage, prefetch=1)
    if packing not in (Packing(), loader.packing.replace(algorithm=packing.algorithm)):
        raise ValueError(
            f"{shards[0]!r} was packed with {loader.packing}; leave out the packing flags, or report on the shards"
        )
    if seed not in (0, packed_seed := loader.steps().order.planning_order().seed):
        raise ValueError(f"{shards[0]!r} was packed with --seed {packed_seed}; leave out --seed {seed}")
    return loader


def _rows(index: Index, packing: Packing, *, batch_size: int, shuffle: bool, seed: int) -> tuple[Rows, Packing]:
    """The usable rows in the order of a loader, and the packing it would plan them with."""
    if not shuffle:
        import numpy as np

        return index.rows(np.setdiff1d(np.arange(len(index)), list(index.bad))), packing
    from patchnpack.loaders import PackedImageLoader
    from patchnpack.loaders.plan_report import planned_rows

    loader = PackedImageLoader(index, packing, batch_size=batch_size, shuffle=True, seed=seed)
    return planned_rows(loader), loader.packing


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
