"""The verbs for pre-packed data: pack, verify, unpack."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from patchnpack.cli.arguments import IMAGES, Images, Seed, Shards, Storage, counted, shows_progress
from patchnpack.cli.options import parse_storage_options, takes_packing, whole_flag
from patchnpack.engines import run_local, run_ray
from patchnpack.loaders import ErrorPolicy, open_index
from patchnpack.loaders.packs.manifest import Manifest, read_manifest
from patchnpack.loaders.packs.recipe import StoreKind
from patchnpack.loaders.packs.source import is_prepacked
from patchnpack.loaders.prepacking.job import Job
from patchnpack.loaders.prepacking.unpack import unpack as unpack_images
from patchnpack.loaders.prepacking.verify import verify as verify_packs
from patchnpack.loaders.process import cpu_share
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.packer import Packing

Packs = Annotated[str, typer.Argument(help="A folder of packs, local or an address.")]


def add_prepack_commands(app: typer.Typer) -> None:
    """Adds the verbs to the command."""
    for verb in (pack, verify, unpack):
        app.command()(verb)


@takes_packing
def pack(
    shards: Shards,
    *,
    packing: Packing,
    out: Annotated[str, typer.Option("-o", "--out", help="Folder of the packs, local or an address.")],
    store: Annotated[StoreKind, typer.Option(help="What is kept: encoded images, or patches.")] = "images",
    epochs: Annotated[int | None, whole_flag("Plans to write, where sizes change each epoch.")] = None,
    shuffle: Annotated[bool, typer.Option(help="Shuffle shards, and rows inside windows of shards.")] = True,
    shuffle_window: Annotated[int, whole_flag("Shards inside which rows are shuffled.")] = 16,
    num_streams: Annotated[int, whole_flag("Slices that are packed by themselves.")] = 1,
    block: Annotated[int | None, whole_flag("Packs of one patch size in a row, with several sizes.")] = None,
    part_packs: Annotated[int | None, whole_flag("Packs of a file; by default files of up to 64 MiB.")] = None,
    compression: Annotated[str | None, typer.Option(help="Of patches: lz4 or zstd.")] = None,
    label: Annotated[str | None, typer.Option(help="Member that holds the label, such as cls or json:FIELD.")] = None,
    classes: Annotated[str | None, typer.Option(help="File with one class name a line.")] = None,
    extra: Annotated[
        list[str] | None, typer.Option("--extra", help="Other member to hand out; may be repeated.")
    ] = None,
    image: Images = IMAGES,
    max_rate: Annotated[float, typer.Option(help="Share of images that may be bad.")] = 0.01,
    seed: Seed = 0,
    workers: Annotated[int | None, whole_flag("Processes of this machine; by default one a CPU.")] = None,
    task_index: Annotated[int | None, whole_flag("Run this task alone, of --num-tasks; from 0.")] = None,
    num_tasks: Annotated[int | None, whole_flag("Tasks of a job array, or of --engine ray.")] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Where the tasks run.")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="host:port or auto; by default one is started here.")] = None,
    storage_options: Storage = None,
) -> None:
    """Write the packs of SHARDS once, so that training reads them in order, without planning.

    patchnpack pack 'train-{000000..000099}.tar' -o packed --seq-len 1024 --label cls
    """
    _check_tasks(engine, workers, task_index, num_tasks, ray_address)
    options = parse_storage_options(storage_options or [])
    source = shards[0] if len(shards) == 1 else shards
    with _bar("reading headers") as bar:
        index = open_index(source, image=image, opener=ShardOpener(storage_options=options), progress=bar)
    job = Job(
        index=index,
        out=out,
        packing=packing,
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
        errors=ErrorPolicy(max_rate=max_rate),
        storage_options=options,
    )
    total = job.num_images
    with _bar("packing images") as bar, _ended_by_sigterm():
        if task_index is not None and num_tasks is not None:
            written = 0

            def count(images: int) -> None:
                nonlocal written
                written += images
                bar(written, total // num_tasks)

            finished = job.run(task_index, num_tasks, count)
        elif engine == "ray":
            finished = run_ray(job, ray_address, num_tasks, lambda images: bar(images, total))
        else:
            finished = run_local(job, cpu_share() if workers is None else workers, lambda images: bar(images, total))
    if not finished:
        typer.echo(f"{out}: task {task_index} of {num_tasks} is done; others are not yet")
        return
    typer.echo(f"{out}: {_told(read_manifest(job.folder))}")


def verify(packs: Packs, *, storage_options: Storage = None) -> None:
    """Read all files of PACKS and compare their digests, counts and rows with the manifest.

    patchnpack verify packed
    """
    with _bar("reading bytes") as bar:
        verdict = verify_packs(packs, parse_storage_options(storage_options or []), bar)
    for problem in verdict.problems:
        typer.echo(problem)
    if verdict.problems:
        typer.echo(
            f"{packs}: {counted(len(verdict.problems), 'problem')}; copy the folder anew, or pack into another one"
        )
        raise typer.Exit(1)
    typer.echo(f"{packs}: {verdict.files} files of {verdict.nbytes} bytes are as they were written")


def unpack(
    packs: Packs,
    *,
    out: Annotated[str, typer.Option("-o", "--out", help="Folder of the shards, local or an address.")],
    images_per_shard: Annotated[int, whole_flag("Images of a shard at most.")] = 1000,
    storage_options: Storage = None,
) -> None:
    """Write the images of PACKS into webdataset shards.

    patchnpack unpack packed -o shards
    """
    if not is_prepacked(packs):
        raise ValueError(f"{packs!r} is no folder of packs; make one with: patchnpack pack SHARDS -o {packs}")
    with _bar("writing images") as bar:
        options = parse_storage_options(storage_options or [])
        images = unpack_images(packs, out, images_per_shard=images_per_shard, storage_options=options, progress=bar)
    typer.echo(f"{out}: {counted(images, 'image')}")


def _check_tasks(
    engine: str, workers: int | None, task_index: int | None, num_tasks: int | None, ray_address: str | None
) -> None:
    """Refuses options of one way to run tasks that are given for another."""
    if engine == "ray" and (workers is not None or task_index is not None):
        raise ValueError("--engine ray shares out the tasks itself; leave out --workers and --task-index")
    if engine == "local" and ray_address is not None:
        raise ValueError(f"--ray-address is {ray_address!r}; add --engine ray")
    if engine == "local" and (task_index is None) != (num_tasks is None):
        raise ValueError(f"--task-index is {task_index} and --num-tasks is {num_tasks}; give both or neither")
    if task_index is not None and workers is not None:
        raise ValueError("a task runs in one process; leave out --workers, or --task-index and --num-tasks")


def _told(manifest: Manifest) -> str:
    recipe, counts = manifest.recipe, manifest.counts
    labels = f"labels of {recipe.label!r}" if recipe.label is not None else "without labels"
    if recipe.label is None and recipe.store == "images":
        labels = "with all members of their samples"
    nbytes = sum(about["nbytes"] for about in manifest.files.values())
    plans = f" in {recipe.epochs} plans" if recipe.epochs > 1 else ""
    return (
        f"{counted(counts['packs'], 'pack')} of {recipe.packing.seq_len} slots{plans}, {manifest.padding:.1%} padding; "
        f"{counted(counts['images'], 'image')}, {labels}, {counts['bad']} bad, {counts['skipped']} skipped; "
        f"{counted(len(manifest.files), 'file')} of {nbytes} bytes"
    )


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """One bar, with rate and time left, where there is a terminal; moved by a call with (done, in all)."""
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not shows_progress(console)) as bar:
        task = bar.add_task(what, total=None, rate="")

        def move(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:,.0f}/s" if speed else "")

        yield move


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the workers, too, as an interrupt from the keyboard does."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
