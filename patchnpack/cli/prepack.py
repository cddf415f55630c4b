"""The commands for packed folders: pack, verify, unpack."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from patchnpack.cli.options.arguments import Classes, Label, Pages, Seed, Shards, Storage
from patchnpack.cli.options.flags import ImageOptions, takes_images, takes_packing_but_lookahead, whole_flag
from patchnpack.cli.options.parsers import parse_storage_options
from patchnpack.cli.options.targets import takes_targets
from patchnpack.cli.progress import progress_bar
from patchnpack.cli.sources import open_shards

if TYPE_CHECKING:
    from patchnpack.loaders import Manifest
    from patchnpack.loaders.targets.target import Target
    from patchnpack.packer import Packing

Packs = Annotated[str, typer.Argument(help="A packed folder, a local path or an address.")]


def add_prepack_commands(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (pack, verify, unpack):
        app.command()(command)


@takes_packing_but_lookahead
@takes_images
@takes_targets
def pack(
    shards: Shards,
    *,
    packing: Packing,
    images: ImageOptions,
    targets: dict[str, Target],
    out: Annotated[str, typer.Option("-o", "--out", help="The packed folder, a local path or an address.")],
    lookahead: Annotated[
        int | None,
        whole_flag(
            "Number of waiting images that the packer chooses from; by default all images for auto and priced, if "
            "the shards are local and neither several patch sizes nor trim or rescale are asked for; otherwise 256."
        ),
    ] = None,
    store: Annotated[
        Literal["images", "patches"], typer.Option(help="What to keep: encoded images, or patches.")
    ] = "images",
    epochs: Annotated[int | None, whole_flag("Plans to write, if sizes change from epoch to epoch.")] = None,
    shuffle: Annotated[bool, typer.Option(help="Shuffle shards, and rows inside windows of shards.")] = True,
    shuffle_window: Annotated[int, whole_flag("Shards inside which rows are shuffled.")] = 16,
    num_streams: Annotated[int, whole_flag("Slices of the epoch, each packed separately.")] = 1,
    block: Annotated[int | None, whole_flag("Consecutive packs of one patch size, with several patch sizes.")] = None,
    part_packs: Annotated[int | None, whole_flag("Packs per file; by default files of up to 64 MiB.")] = None,
    compression: Annotated[str | None, typer.Option(help="Compression of patches: lz4 or zstd.")] = None,
    label: Label = None,
    classes: Classes = None,
    extra: Annotated[
        list[str] | None, typer.Option("--extra", help="Other member for batches to return; may be repeated.")
    ] = None,
    pages: Pages = "first",
    max_rate: Annotated[float, typer.Option(help="Maximum share of bad images.")] = 0.01,
    on_bad: Annotated[
        Literal["sample", "image"], typer.Option(help="What a bad image leaves out: its whole sample, or itself.")
    ] = "sample",
    seed: Seed = 0,
    workers: Annotated[int | None, whole_flag("Processes on this machine; by default one per CPU.")] = None,
    task_index: Annotated[int | None, whole_flag("Run only this task of --num-tasks, from 0.")] = None,
    num_tasks: Annotated[int | None, whole_flag("Number of tasks of a job array or of --engine ray.")] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Where the tasks run.")] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster, host:port or auto; by default one is started on this machine.")
    ] = None,
) -> None:
    """Pack the images of SHARDS once, so that training reads packs in order, without planning.

    patchnpack pack 'train-{000000..000099}.tar' -o packed --seq-len 1024 --label cls
    """
    from patchnpack.engines import run_local, run_ray
    from patchnpack.loaders import ErrorPolicy, Job, read_manifest
    from patchnpack.loaders.process import cpu_share
    from patchnpack.loaders.remote.addresses import is_remote

    if lookahead is not None:
        packing = packing.replace(lookahead=lookahead)  # refused before any shard is read
    _check_tasks(engine, workers, task_index, num_tasks, ray_address)
    index = open_shards(shards, images)
    if lookahead is None and packing.algorithm in ("auto", "priced") and packing.can_follow_patterns:
        lookahead = None if any(map(is_remote, index.shards)) else max(1, len(index))
    job = Job(
        source=index,
        out=out,
        packing=packing if lookahead is None else packing.replace(lookahead=lookahead),
        store=store,
        epochs=epochs,
        seed=seed,
        shuffle=shuffle,
        shuffle_window=shuffle_window,
        num_streams=num_streams,
        block=block,
        part_packs=part_packs,
        compression=compression,
        label=label,
        classes=classes,
        extras=extra or [],
        targets=targets,
        decode=images.decode,
        pages=pages,  # type: ignore[arg-type]  # the loader checks it
        errors=ErrorPolicy(max_rate=max_rate, on_bad=on_bad),
        storage_options=images.storage_options,
    )
    total = job.num_images
    with progress_bar("packing images") as bar, _ended_by_sigterm():
        if task_index is not None and num_tasks is not None:
            written = 0

            def count(number: int) -> None:
                nonlocal written
                written += number
                bar(written, total // num_tasks)

            finished = job.run(task_index, num_tasks, count)
        elif engine == "ray":
            finished = run_ray(job, ray_address, num_tasks, lambda number: bar(number, total))
        else:
            finished = run_local(job, cpu_share() if workers is None else workers, lambda number: bar(number, total))
    if not finished:
        typer.echo(f"{out}: task {task_index} of {num_tasks} is finished; other tasks are not")
        return
    typer.echo(f"{out}: {_summary(read_manifest(job.folder))}")


def verify(packs: Packs, *, storage_options: Storage = None) -> None:
    """Read all files of PACKS, and compare their digests, counts and rows with the manifest.

    patchnpack verify packed
    """
    from patchnpack.loaders.prepacking.verify import verify as verify_packs
    from patchnpack.packer.text import counted

    with progress_bar("reading bytes") as bar:
        verdict = verify_packs(packs, parse_storage_options(storage_options or []), bar)
    for problem in verdict.problems:
        typer.echo(problem)
    if verdict.problems:
        typer.echo(
            f"{packs}: {counted(len(verdict.problems), 'problem')}; copy the folder again, or pack into another one"
        )
        raise typer.Exit(1)
    typer.echo(f"{packs}: {verdict.files} files of {verdict.nbytes} bytes are unchanged since they were written")


def unpack(
    packs: Packs,
    *,
    out: Annotated[str, typer.Option("-o", "--out", help="Folder for the shards, a local path or an address.")],
    images_per_shard: Annotated[int, whole_flag("Maximum images per shard.")] = 1000,
    storage_options: Storage = None,
) -> None:
    """Write the images of PACKS into webdataset shards.

    patchnpack unpack packed -o shards
    """
    from patchnpack.loaders.prepacking.unpack import unpack as unpack_images
    from patchnpack.loaders.shards.patterns import is_packed_folder
    from patchnpack.packer.text import counted

    if not is_packed_folder(packs):
        raise ValueError(f"{packs!r} is not a packed folder; make one with: patchnpack pack SHARDS -o {packs}")
    with progress_bar("writing images") as bar:
        options = parse_storage_options(storage_options or [])
        images = unpack_images(packs, out, images_per_shard=images_per_shard, storage_options=options, progress=bar)
    typer.echo(f"{out}: {counted(images, 'image')}")


def _check_tasks(
    engine: str, workers: int | None, task_index: int | None, num_tasks: int | None, ray_address: str | None
) -> None:
    """Raise ValueError for flags that belong to another way of running tasks."""
    if engine == "ray" and (workers is not None or task_index is not None):
        raise ValueError("--engine ray distributes the tasks itself; leave out --workers and --task-index")
    if engine == "local" and ray_address is not None:
        raise ValueError(f"--ray-address is {ray_address!r}; add --engine ray")
    if engine == "local" and (task_index is None) != (num_tasks is None):
        raise ValueError(f"--task-index is {task_index} and --num-tasks is {num_tasks}; give both or neither")
    if task_index is not None and workers is not None:
        raise ValueError("a task runs in one process; leave out --workers, or --task-index and --num-tasks")


def _summary(manifest: Manifest) -> str:
    from patchnpack.loaders.packs.pack_store import store_of
    from patchnpack.packer.text import counted

    recipe, counts = manifest.recipe, manifest.counts
    labels = f"labels of {recipe.label!r}" if recipe.label is not None else "without labels"
    if recipe.label is None and store_of(recipe.store).keeps_samples:
        labels = "with all members of their samples"
    if recipe.targets:
        labels += f", targets {', '.join(recipe.targets)}"
    nbytes = sum(about["nbytes"] for about in manifest.files.values())
    plans = f" in {recipe.epochs} plans" if recipe.epochs > 1 else ""
    images = counted(counts["images"], "image")
    if counts["samples"] < counts["images"]:
        images = f"{images} of {counted(counts['samples'], 'sample')}"
    bad = f"{counts['bad']} bad" + (f" and {counts['left_out']} left out with them" if counts["left_out"] else "")
    return (
        f"{counted(counts['packs'], 'pack')} of {recipe.packing.seq_len} slots{plans}, {manifest.padding:.1%} padding; "
        f"{images}, {labels}, {bad}, {counts['skipped']} skipped; "
        f"{counted(len(manifest.files), 'file')} of {nbytes} bytes"
    )


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """End the workers on SIGTERM, as on a keyboard interrupt."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
