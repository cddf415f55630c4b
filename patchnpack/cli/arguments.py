"""What several commands share: their arguments, and how they open shards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from patchnpack.cli.options import parse_storage_options, whole_flag
from patchnpack.loaders import Index, open_index
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.tar import IMAGE

Shards = Annotated[
    list[str],
    typer.Argument(help="Shards: paths, globs, ranges such as 'train-{000000..000009}.tar', or an index file."),
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
IMAGES = IMAGE  # what `--image` is by default

_log = logging.getLogger("patchnpack")


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """What is told on standard error besides errors: everything, warnings and progress, or nothing."""
    if quiet and verbose:
        raise ValueError("--quiet and --verbose contradict each other; give one of them")
    _log.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)
    if verbose:
        logging.basicConfig(format="%(message)s")


def shows_progress(console: Console) -> bool:
    """Whether there is somebody to see a bar, who has not asked for quiet."""
    return console.is_terminal and _log.isEnabledFor(logging.WARNING)


def counted(number: int, what: str) -> str:
    """
    >>> counted(1, "image"), counted(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar where there is a terminal, moved by a call with (done, in all)."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not shows_progress(console)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def open_shards(shards: list[str], image: str, storage: list[str] | None) -> Index:
    """The index of shards, read with a bar, or of an index file; `storage` is what `Storage` gave."""
    source = shards[0] if len(shards) == 1 else shards
    opener = ShardOpener(storage_options=parse_storage_options(storage or []))
    with progress_bar("reading headers") as progress:
        return open_index(source, image=image, opener=opener, progress=progress)
